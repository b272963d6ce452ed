"""From what hosts do to what people read: real kernels, agents, NATS, PostgreSQL and the graph, and the
command line as its users type it."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from demo import product
from tests.support import probes
from tests.support.leftovers import PINS
from tests.support.netns import cgroup_root
from tests.support.site import SERVICE, Site, until

from aegisflux.adapters.secrets.pki import CA_CERT

pytestmark = [pytest.mark.bpf, pytest.mark.netns, pytest.mark.engines]
DB = 202


class Facts:
    """A site with two named services, and the command line of a viewer in the control plane's network."""

    def __init__(self, site: Site) -> None:
        self.site = site
        selector = f"cgroup:{self.below('beta', 'db')}"
        answer = site.api.post("/api/v1/services", {"id": DB, "name": "db", "selectors": [selector]})
        assert answer.status in (200, 201), answer
        site.machine("beta").serve("db", 5432)
        for words in (("flows", "observe"), ("segment", "list")):
            until(lambda words=words: self.run(*words).returncode == 0, 30, site.fleet.tail_of_log)

    def below(self, host: str, unit: str) -> str:
        return str((self.site.machine(host).attach / f"{unit}.service").relative_to(cgroup_root()))

    def cli(self, *words: str) -> list[dict]:
        """The rows of a command."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        return found["items"] if isinstance(found, dict) and "items" in found else found

    def one(self, *words: str) -> dict:
        """What a command says."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def run(self, *words: str) -> subprocess.CompletedProcess:
        argv = [product.AEGISFLUX, *words, "-o", "json"]
        return self.site.fleet.lab.hub.run(argv, "viewer", env=self.settings())

    def says(self, *words: str) -> str:
        """What a command prints that has one form alone."""
        argv = [product.AEGISFLUX, *words]
        done = self.site.fleet.lab.hub.run(argv, "viewer", env=self.settings())
        assert done.returncode == 0, done.stderr
        return done.stdout

    def typed(self, *words: str) -> subprocess.CompletedProcess:
        """As somebody at a terminal types it."""
        return self.site.fleet.lab.hub.run([product.AEGISFLUX, *words], "viewer", env=self.settings())

    def settings(self) -> dict[str, str]:
        return product.clean_environment() | {
            "AEGISFLUX_TOKEN": self.site.api.token,
            "AEGISFLUX_LISTEN": self.site.fleet.control_address,
            "AEGISFLUX_PORT_BASE": str(self.site.fleet.port_base),
            "AEGISFLUX_DATA_DIR": str(self.site.data),
        }

    def does(self, host: str, unit: str, function, *args):
        return self.site.machine(host).host.call(function, *args, cgroup=f"{unit}.service")


@pytest.fixture(scope="module")
def facts():
    with Site(("alpha", "beta")) as site:
        yield Facts(site)


def test_a_connection_becomes_a_flow_between_two_named_services(facts):
    """Both sides tell of it; each knows the other side's service, host, program and package."""
    peer = facts.site.address("beta")

    def seen():
        assert facts.does("alpha", "app", probes.tcp, peer, 5432) == "connected"
        rows = facts.cli("flows", "observe", "--from", "app", "--to", "db", "--proto", "tcp", "--since", "1h")
        named = {row["direction"]: row for row in rows if row["service"] and row["peer_service"]}
        return named if len(named) == 2 else None

    told = until(seen, 40, facts.site.machine("alpha").tail_of_log)
    out, into = told["egress"], told["ingress"]
    assert (out["service"], out["peer_service"], out["host_id"], out["peer_host"]) == (
        "app",
        "db",
        "alpha",
        "beta",
    )
    assert (into["service"], into["peer_service"], into["host_id"], into["peer_host"]) == (
        "db",
        "app",
        "beta",
        "alpha",
    )
    assert (out["port"], into["port"]) == (5432, 5432)
    assert out["verdict"] == into["verdict"] == "allowed"
    assert into["path"] == os.path.realpath(sys.executable)


def test_real_traffic_becomes_a_proposal_a_policy_and_a_plan(facts, tmp_path):
    """Calls between namespaces over three periods are learned; one call to another port is held back, and
    the plan says that it would have been cut."""
    peer = facts.site.address("beta")
    facts.site.machine("beta").serve("db", 5433)
    calls = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()"

    def connects(port):
        argv = [sys.executable, "-c", calls, peer, str(port)]
        return facts.site.machine("alpha").host.run(argv, "app.service").returncode == 0

    until(lambda: connects(5433), 10)

    def learned():
        assert connects(5432)
        found = facts.one("segment", "propose", "--since", "10m", "--period", "10s")
        rules = {(r["client"], r["server"], r["port"]): r["held"] for r in found["proposal"]["rules"]}
        return found if rules.get(("app", "db", 5432)) == "" and ("app", "db", 5433) in rules else None

    kept = until(learned, 120, facts.site.machine("alpha").tail_of_log)
    held = {rule["port"]: rule["held"] for rule in kept["proposal"]["rules"]}
    assert held[5433] == "one_client_few_days"
    assert kept["proposal"]["blast_radius"]["app"] == 2
    file = tmp_path / "policy.yaml"
    file.write_text(facts.says("segment", "export", str(kept["id"])))
    assert "- name: app-to-db\n    from: app\n    to: db\n    ports: [tcp/5432]" in file.read_text()
    assert f"({os.path.realpath(sys.executable)})" in file.read_text()
    valid = facts.run("policy", "validate", str(file))
    remarks = {remark["kind"] for remark in json.loads(valid.stdout)}
    # both hosts see one tree of cgroups here
    assert (valid.returncode, remarks) == (1, {"shared_host", "unlabelled"})
    assert facts.run("policy", "diff", str(file)).returncode == 1
    tried = facts.typed("policy", "apply", str(file), "--dry-run")
    assert (tried.returncode, "nothing was begun: aegisflux rollout begin" in tried.stderr) == (1, True)
    asked = facts.typed("policy", "apply", str(file))
    assert (asked.returncode, "somebody else has to look, aegisflux segment show --plan" in asked.stderr) == (
        1,
        True,
    )
    with file.open("a") as more:
        more.write("tests:\n  - {from: app, to: db, port: tcp/5433, expect: allowed}\n")
    tested = facts.run("policy", "test", str(file))
    assert (tested.returncode, json.loads(tested.stdout)[0]["got"]) == (1, "blocked")
    broken = facts.typed("policy", "apply", str(file))
    assert (broken.returncode, "see above what holds it" in broken.stderr) == (1, True)
    file.write_text(file.read_text().replace("to: db\n    ports", "to: dbb\n    ports"))
    wrong = facts.run("policy", "validate", str(file))
    assert (wrong.returncode, "no service, group or kind of end is named 'dbb'" in wrong.stderr) == (2, True)
    plan = facts.one("segment", "plan", "--proposal", str(kept["id"]))
    assert [one["service"] for one in plan["plan"]["services"]] == ["app", "db"]
    cut = [line for line in plan["plan"]["replay"]["lines"] if line["rule"] == "app -> db tcp/5433"]
    assert {line["direction"] for line in cut} == {"egress", "ingress"}
    assert cut[0]["programs"] == [os.path.realpath(sys.executable)]
    simulated = facts.run("segment", "simulate", str(plan["id"]))
    assert (simulated.returncode, json.loads(simulated.stdout)) == (1, plan["plan"]["replay"])
    shown = facts.typed("segment", "simulate", str(plan["id"]))
    assert (shown.returncode, "app -> db tcp/5433" in shown.stdout) == (1, True)
    for words, told in (
        (("list",), "COVERAGE"),
        (("show", str(kept["id"])), "held: one client, too few days"),
        (("plans",), "WOULD_BLOCK"),
    ):
        assert told in facts.says("segment", *words)


def test_a_process_is_an_event_with_its_ancestors(facts):
    command = "/bin/true of the test; exit 3"
    facts.site.machine("alpha").host.run(["/bin/sh", "-c", command], "app.service")

    def seen():
        rows = facts.cli("events", "--host", "alpha", "--since", "1h", "--limit", "1000")
        found = {row["kind"]: row for row in rows if command in str(row) or row["kind"] == "exit"}
        return rows if any(command in str(row) for row in rows) and "exit" in found else None

    rows = until(seen, 30, facts.site.machine("alpha").tail_of_log)
    shell = next(
        row for row in rows if row["kind"] == "exec" and command in str(row["body"]["event"]["args"])
    )
    assert shell["body"]["event"]["path"] == os.path.realpath("/bin/sh")
    assert shell["service"] == "app"
    assert shell["body"]["event"]["ancestors"][0][0] == os.getpid()
    ends = [
        r for r in rows if r["kind"] == "exit" and r["body"]["event"]["pid"] == shell["body"]["event"]["pid"]
    ]
    assert [r["body"]["event"]["code"] for r in ends] == [3]


def test_enriched_events_are_heard_on_the_bus(facts):
    """With the credentials of a viewer, as they happen."""
    fleet = facts.site.fleet
    argv = [product.AEGISFLUX, "bus", "watch", "events", "--count", "1"]
    listening = fleet.lab.hub.start(argv, "viewer", env=facts.settings(), stdout=subprocess.PIPE, text=True)
    facts.site.machine("alpha").host.run(["/bin/true"], "app.service")
    told = [json.loads(line) for line in listening.communicate(timeout=30)[0].splitlines()]
    assert {"host_id", "boot_id", "event", "context"} <= told[0].keys()


def test_a_host_tells_again_after_a_panic(facts):
    machine = facts.site.machine("beta")
    assert product.agent(machine, "panic").returncode == 0
    until(lambda: not (PINS / machine.pins).exists(), 10)
    machine.host.run(["/bin/true", "in the panic"], "db.service")
    assert product.agent(machine, "resume").returncode == 0

    def seen():
        machine.host.run(["/bin/true", "after it"], "db.service")
        rows = facts.cli("events", "--kind", "exec", "--host", "beta", "--since", "1h", "--limit", "1000")
        return [row for row in rows if "after it" in row["body"]["event"]["args"]]

    until(seen, 30, machine.tail_of_log)


def test_who_can_reach_a_service_and_what_a_host_exposes(facts):
    def seen():
        return [way["actor"] for way in facts.cli("graph", "reach", "db")["reached_by"]]

    assert "app" in str(until(seen, 30))
    assert "db" in json.dumps(facts.cli("graph", "blast-radius", "alpha"))


def test_what_a_version_beside_would_block_is_told_and_the_flow_lives(facts):
    """The kernel judges the same flow by both: one lets it through, the other only says what it would do."""
    site = facts.site
    version, peer = site.next_version(), site.address("beta")
    assert site.post(version, [site.allow("beta", "tcp", 5432)]).status == 200
    until(lambda: site.in_force("alpha", version), 30, site.machine("alpha").tail_of_log)
    beside = site.api.post("/seg/maps?beside=true", site.body(version + 1, []))
    assert (beside.status, beside.body["version"]) == (200, version + 1)
    assert site.status("alpha")["beside"] == version + 1

    def seen():
        assert facts.does("alpha", "app", probes.tcp, peer, 5432) == "connected"
        rows = facts.cli("events", "--host", "alpha", "--kind", "verdict", "--since", "1h")
        return [row["body"]["event"] for row in rows if row["body"]["event"].get("candidate")]

    told = until(seen, 40, site.machine("alpha").tail_of_log)[0]
    assert (told["peer"], told["peer_port"], told["reason"]) == (peer, 5432, "no_match")
    assert (told["verdict"], told["digest"]) == ("would block", beside.body["digest"])
    assert site.in_force("alpha", version)


def test_a_blocked_flow_is_shown_as_one_with_its_reason(facts):
    """The kernel refuses at the call; the host tells of it, and of the rule."""
    site = facts.site
    assert site.post(site.next_version(), [site.allow("beta", "tcp", 9999)]).status in (200, 201, 202)
    until(lambda: site.in_force("alpha", site.next_version() - 1), 30, site.machine("alpha").tail_of_log)
    assert facts.does("alpha", "app", probes.tcp, site.address("beta"), 5432) == "EPERM"

    def seen():
        rows = facts.cli("events", "--host", "alpha", "--kind", "verdict", "--since", "1h")
        told = [row["body"]["event"] for row in rows]
        return [event for event in told if event["reason"] == "no_match" and not event.get("candidate")]

    told = until(seen, 30)[0]
    assert (told["service_id"], told["peer"], told["verdict"]) == (SERVICE, site.address("beta"), "blocked")


def test_another_host_sends_events_of_others_as_the_guide_says(facts, tmp_path):
    """Over TLS, to the address that hosts reach; the token says whose events they are."""
    body = {"name": "falco", "role": "source", "host_id": "beta"}
    answer = facts.site.api.post("/api/v1/tokens", body)
    assert answer.status in (200, 201), answer
    header, alert = tmp_path / "token-header", tmp_path / "falco.ndjson"
    header.write_text(f"Authorization: Bearer {answer.body['token']}\n")
    told = {
        "time": datetime.now(UTC).isoformat(),
        "rule": "Terminal shell in container",
        "priority": "Notice",
        "output": "a shell was spawned",
        "output_fields": {"proc.name": "bash"},
        "hostname": "somebody else",
    }
    alert.write_text(json.dumps(told) + "\n")
    url = f"https://{facts.site.fleet.control_address}:8085/api/v1/events?format=falco"
    authority = facts.site.data / "secrets" / CA_CERT
    argv = f"curl -sS {url} --cacert {authority} -H @{header} -H Content-Type:application/x-ndjson"
    done = facts.site.machine("alpha").host.run([*argv.split(), "--data-binary", f"@{alert}"])
    assert json.loads(done.stdout)["accepted"] == 1, (done.stdout, done.stderr)

    def seen():
        return facts.cli("events", "--host", "beta", "--kind", "log", "--since", "1h")

    (row,) = until(seen, 20)
    assert row["body"]["event"]["rule"] == told["rule"]


def test_what_no_snapshot_forbids_could_be(facts):
    """db calls nobody, and may call app, until app is told to take no calls."""
    site = facts.site
    site.machine("alpha").serve("app", 8080)

    def could():
        found = facts.one("graph", "reach", "app")
        return [way["actor"] for way in found["could"]], found["open"]

    until(lambda: could() == (["service:db"], True), 40)
    assert "service:app" in [way["actor"] for way in facts.one("graph", "blast-radius", "beta")["could"]]
    assert site.post(site.next_version(), [], ingress=[]).status in (200, 201, 202)
    until(lambda: could() == ([], False), 40, lambda: str(could()))


def test_the_software_of_a_host_is_known(facts):
    def seen():
        hosts = {row["host_id"]: row for row in facts.cli("inventory", "hosts")}
        return hosts if {"alpha", "beta"} <= hosts.keys() and hosts["alpha"].get("inventory") else None

    until(seen, 60, facts.site.machine("alpha").tail_of_log)
    known = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "bash"], capture_output=True, text=True, check=True
    ).stdout
    rows = facts.cli("inventory", "list", "--host", "alpha", "--name", "bash")
    assert [row["version"] for row in rows if row["name"] == "bash"] == [known]
