"""`aegisflux up` over HTTP and signals: what is documented works as written, and every kill is recovered
from.
"""

import asyncio
import ipaddress
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import asyncpg
import pytest
from nacl.signing import SigningKey
from tests.support.control import FakeAgent, request_of
from tests.support.engines import eventually
from tests.support.rows import by_day
from tests.support.up import AEGISFLUX, Up, free_base, running_up

from aegisflux.adapters.bus.nats import NatsBus, NatsOptions
from aegisflux.adapters.engines import postgres
from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.domain.errors import Unavailable
from aegisflux.runtime.supervise import Process
from aegisflux.wire import subjects
from aegisflux.wire.natsjwt import Credentials

pytestmark = pytest.mark.engines
EDGE = {"dst_cidr": "10.1.0.0/16", "proto": "tcp", "port": 443}


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    with running_up(tmp_path_factory.mktemp("up")) as up:
        yield up


def snapshot(service_id: int, version: int, **more) -> dict:
    return {"version": version, "service_id": service_id, "ttl_seconds": 600, "edges": [EDGE]} | more


def enroll(up: Up, host: str, labels: dict | None = None) -> FakeAgent:
    """Enrol a host over HTTP."""
    token = up.call("POST", "/api/v1/hosts/tokens", {"labels": labels or {}}).json["token"]
    key = SigningKey.generate()
    request = request_of(token, host, key)
    body = {name: getattr(request, name) for name in request.__struct_fields__}
    answer = up.call("POST", "/api/v1/enroll", body, token=None)
    assert answer.status == 200, answer.body
    agent = FakeAgent(host, key, Credentials(answer.json["user_jwt"], bytes(key)))
    agent.urls, agent.ca = answer.json["nats_urls"], answer.json["ca_pem"]
    return agent


class Following:
    """The agent's connection, while the block runs."""

    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent

    async def __aenter__(self) -> FakeAgent:
        agent = self.agent
        self.bus = NatsBus(
            NatsOptions(
                urls=agent.urls, credentials=agent.credentials, ca_pem=agent.ca, trouble=lambda _: None
            )
        )
        self.bus.open()
        await self.bus.ready(10)

        async def again():
            last = await self.bus.last(subjects.desired(agent.host))
            if last is not None:
                await agent.on_manifest(last)

        self.bus.on_connect(again)
        await agent.start(self.bus)
        return agent

    async def __aexit__(self, *_error) -> None:
        await self.bus.close()


def test_the_documented_requests(up):
    enroll(up, "a")
    enroll(up, "b")
    enroll(up, "c", {"role": "web"})
    service = {"id": 101, "name": "web", "selectors": ["cgroup:web.slice"], "host_labels": {"role": "web"}}
    table = [
        ("GET", "/healthz", None, 200),
        ("GET", "/version", None, 200),
        ("GET", "/readyz", None, 200),
        ("POST", "/api/v1/services", service, 200),
        ("GET", "/api/v1/services", None, 200),
        ("GET", "/api/v1/services/101", None, 200),
        ("GET", "/api/v1/services/999", None, 404),
        ("POST", "/seg/maps?target_host=a,b&target_host=c", snapshot(101, 7), 200),
        ("POST", "/seg/maps?target_host=a,b&target_host=c", snapshot(101, 7), 200),
        ("POST", "/seg/maps", snapshot(101, 7, ttl_seconds=601), 409),
        ("POST", "/seg/maps", snapshot(101, 6), 409),
        ("POST", "/seg/maps?target_host=c,a&target_host=a", snapshot(104, 1), 200),
        ("POST", "/seg/maps?target_host=nobody", snapshot(101, 8), 422),
        ("POST", "/seg/maps?target_host=", snapshot(101, 8), 422),
        ("POST", "/seg/maps", {"version": 8, "service_id": 101}, 422),
        ("POST", "/seg/maps", b"{", 422),
        ("POST", "/seg/maps", snapshot(102, 1), 200),
        ("POST", "/seg/maps/promote", {"service_id": 101}, 200),
        ("POST", "/seg/maps/promote", {"service_id": 999}, 404),
        ("POST", "/seg/maps/promote", {"service_id": 101, "versoin": 1}, 422),
        ("POST", "/seg/maps?target_host=a", snapshot(101, 8, edges=[]), 200),
        ("POST", "/seg/maps/rollback", {"service_id": 101}, 200),
        ("GET", "/seg/maps", None, 200),
        ("GET", "/seg/maps/101", None, 200),
        ("GET", "/seg/maps/101?version=7", None, 200),
        ("GET", "/seg/maps/101?version=77", None, 404),
        ("GET", "/seg/maps/101/status", None, 200),
        ("GET", "/seg/maps/101/why?peer=10.1.2.3&port=443", None, 200),
        ("GET", "/seg/maps/101/why?peer=nonsense&port=443", None, 422),
        ("GET", "/seg/maps/101/why?peer=10.1.2.3&proto=icmp", None, 200),
        ("DELETE", "/seg/maps/101?target_host=a", None, 200),
        ("DELETE", "/seg/maps/101", None, 200),
        ("GET", "/api/v1/hosts", None, 200),
        ("GET", "/api/v1/hosts/a", None, 200),
        ("GET", "/api/v1/hosts/zz", None, 404),
        ("PUT", "/api/v1/hosts/a/labels", {"labels": {"x": "y"}}, 200),
        ("DELETE", "/api/v1/hosts/a", None, 200),
        ("POST", "/api/v1/hosts/tokens", {"ttl_seconds": 3601}, 422),
        ("GET", "/api/v1/tokens", None, 200),
        ("POST", "/api/v1/tokens", {"name": "x", "role": "king"}, 422),
        ("GET", "/api/v1/keys", None, 200),
        ("GET", "/api/v1/audit?limit=3", None, 200),
        ("GET", "/metrics", None, 200),
        ("GET", "/schema/openapi.json", None, 200),
        ("GET", "/nowhere", None, 404),
    ]
    for method, path, body, wanted in table:
        status, kind, text = up.curl(method, path, body)
        assert status == wanted, (method, path, status, text[:500])
        if status >= 400:
            assert kind == "application/problem+json"
            assert json.loads(text)["status"] == status
        if path.endswith("=a,b&target_host=c"):
            assert json.loads(text)["target_hosts"] == ["a", "b", "c"]
        if path.endswith("=c,a&target_host=a"):
            assert json.loads(text)["target_hosts"] == ["c", "a"]


def test_a_problem_names_its_request(up):
    answer = up.call("GET", "/nowhere")
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]


def test_the_answer_of_a_post_has_exactly_the_documented_fields(up):
    enroll(up, "exact")
    answer = up.call("POST", "/seg/maps?target_host=exact", snapshot(201, 7)).json
    digest = answer.pop("digest")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    assert abs(answer.pop("timestamp") - time.time()) < 30
    warning = answer.pop("warnings")
    assert "registered as service-201" in warning[0]
    assert answer == {"accepted": True, "service_id": 201, "target_hosts": ["exact"], "version": 7}
    refused = up.call("POST", "/seg/maps", snapshot(201, 7, edges=[])).json
    assert (refused["current_version"], refused["next_version"]) == (7, 8)


def test_a_refused_field_is_told_by_its_path(up):
    wrong = snapshot(202, 1, edges=[EDGE, EDGE | {"dst_cidr": "10.0.0.300/8"}])
    answer = up.call("POST", "/seg/maps", wrong)
    assert answer.json["detail"] == 'edges[1].dst_cidr: expected an IPv4 or IPv6 CIDR, got "10.0.0.300/8"'
    assert answer.json["errors"][0]["pointer"] == "/edges/1/dst_cidr"
    assert up.call("GET", "/api/v1/services/202").status == 404


def test_a_body_over_16_mib_is_refused(up):
    script = (
        'head -c 16777217 /dev/zero | curl -s -o /dev/null -w "%{http_code}" --data-binary @- '
        f'-H "Authorization: Bearer {up.admin}" http://127.0.0.1:{up.port}/seg/maps'
    )
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False).stdout == "413"


def test_every_route_with_a_role_is_in_the_table(up):
    described = up.call("GET", "/schema/openapi.json", token=None).json["paths"]
    documented = {
        (method.upper(), re.sub(r"{[^}]*}", "*", path))
        for path, methods in described.items()
        for method in methods
    }
    tabled = {
        (method, re.sub(r"/(4242|nobody|none)(?=/|$)", "/*", path.partition("?")[0]))
        for method, path, _, _ in NEEDED
    }
    assert documented - tabled == {
        ("GET", path) for path in ("/healthz", "/readyz", "/version", "/api/v1/enroll/ca")
    } | {("POST", "/api/v1/enroll"), ("POST", "/api/v1/enroll/renew")}


def test_request_ids_are_echoed_and_bad_ones_replaced(up):
    assert up.call("GET", "/healthz", **{"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    assert up.call("GET", "/healthz", **{"X-Request-Id": "a b<"}).headers["X-Request-Id"] != "a b<"


ROLES = ("viewer", "operator", "approver", "admin")


NEEDED = [
    ("GET", "/seg/maps", None, "viewer"),
    ("GET", "/seg/maps/4242", None, "viewer"),
    ("GET", "/seg/maps/4242/status", None, "viewer"),
    ("GET", "/seg/maps/4242/why?peer=10.0.0.1", None, "viewer"),
    ("GET", "/api/v1/services", None, "viewer"),
    ("GET", "/api/v1/services/4242", None, "viewer"),
    ("GET", "/api/v1/hosts", None, "viewer"),
    ("GET", "/api/v1/hosts/nobody", None, "viewer"),
    ("GET", "/api/v1/keys", None, "viewer"),
    ("GET", "/metrics", None, "viewer"),
    ("DELETE", "/api/v1/services/4242", None, "approver"),
    ("PUT", "/api/v1/hosts/nobody/labels", {"labels": {}}, "admin"),
    ("DELETE", "/api/v1/tokens/none", None, "admin"),
    ("POST", "/api/v1/keys/rotate", {}, "admin"),
    ("POST", "/seg/maps", {}, "operator"),
    ("POST", "/seg/maps/rollback", {}, "operator"),
    ("DELETE", "/seg/maps/4242", None, "operator"),
    ("POST", "/api/v1/services", {}, "operator"),
    ("POST", "/seg/maps/promote", {}, "approver"),
    ("GET", "/api/v1/audit", None, "approver"),
    ("POST", "/api/v1/services/4242/health", {}, "operator"),
    ("GET", "/api/v1/services/changes", None, "viewer"),
    ("POST", "/api/v1/services/4242/approve", {}, "approver"),
    ("POST", "/api/v1/services/4242/discard", {}, "operator"),
    ("POST", "/api/v1/hosts/nobody/suspicion", {}, "operator"),
    ("GET", "/api/v1/rollouts", None, "viewer"),
    ("GET", "/api/v1/rollouts/4242", None, "viewer"),
    ("POST", "/api/v1/rollouts", {}, "operator"),
    ("POST", "/api/v1/rollouts/4242/promote", {}, "approver"),
    ("POST", "/api/v1/rollouts/4242/pause", {}, "operator"),
    ("POST", "/api/v1/rollouts/4242/resume", {}, "operator"),
    ("POST", "/api/v1/rollouts/4242/abort", {}, "operator"),
    ("POST", "/api/v1/rollouts/4242/rollback", {}, "operator"),
    ("POST", "/api/v1/panic", {}, "operator"),
    ("POST", "/api/v1/hosts/tokens", {"ttl_seconds": 0}, "admin"),
    ("DELETE", "/api/v1/hosts/nobody", None, "admin"),
    ("POST", "/api/v1/tokens", {}, "admin"),
    ("GET", "/api/v1/tokens", None, "admin"),
]


@pytest.mark.parametrize(("method", "path", "body", "needed"), NEEDED)
def test_roles(up, method, path, body, needed):
    for role in ROLES[:-1] if path.endswith("rotate") else ROLES:
        token = _token(up, role)
        answer = up.call(method, path, body, token=token)
        enough = ROLES.index(role) >= ROLES.index(needed)
        assert (answer.status == 403) is not enough, (role, answer.status, answer.body)
    assert up.call(method, path, body, token=None).status == 401
    assert up.call(method, path, body, token="afx_wrong").status == 401


_TOKENS: dict[tuple[int, str], str] = {}


def _token(up: Up, role: str) -> str:
    if (up.port, role) not in _TOKENS:
        made = up.call("POST", "/api/v1/tokens", {"name": f"t-{role}", "role": role})
        _TOKENS[up.port, role] = made.json["token"]
    return _TOKENS[up.port, role]


def test_documentation_pages_load_nothing_from_elsewhere(up):
    page = up.call("GET", "/schema", token=None)
    assert page.status == 200
    assert not re.search(rb"(src|href)\s*=\s*['\"]?(https?:)?//", page.body)
    document = up.call("GET", "/schema/openapi.json", token=None).json
    assert document["openapi"].startswith("3.1")
    body = document["paths"]["/seg/maps"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["required"]) == {"version", "service_id", "ttl_seconds"}


def test_healthz_answers_within_50_ms_while_100_000_entries_compile(up):
    edges = [
        {"dst_cidr": f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}/32", "proto": "tcp", "port": 443}
        for i in range(100_000)
    ]
    body = json.dumps(snapshot(203, 1, edges=edges)).encode()
    worst = []
    for version in range(3):
        sent = body.replace(b'"version": 1', b'"version": %d' % (version + 1), 1)
        answers: list = []
        post = threading.Thread(
            target=lambda sent=sent, answers=answers: answers.append(up.call("POST", "/seg/maps", sent))
        )
        post.start()
        slowest, asked = 0.0, 0
        while post.is_alive():
            began = time.monotonic()
            assert up.call("GET", "/healthz", token=None).status == 200
            slowest, asked = max(slowest, time.monotonic() - began), asked + 1
            time.sleep(0.01)
        post.join()
        assert answers[0].status == 200, answers[0].body[:300]
        assert asked > 10
        worst.append(slowest)
    assert sorted(worst)[1] < 0.05, worst


def test_env_and_bus_watch(up):
    exports = up.exports()
    assert {"AEGISFLUX_TOKEN", "NATS_URL", "NATS_CREDS", "NATS_CA"} <= exports.keys()
    assert up.call("GET", "/seg/maps", token=exports["AEGISFLUX_TOKEN"]).status == 200
    assert up.call("POST", "/seg/maps", {}, token=exports["AEGISFLUX_TOKEN"]).status == 403
    watch = subprocess.Popen(
        [AEGISFLUX, "bus", "watch", "--count", "1"], env=up.environ | exports, stdout=-1, stderr=-1, text=True
    )
    version = 0

    def heard():
        nonlocal version
        version += 1
        up.call("POST", "/seg/maps", snapshot(204, version))
        time.sleep(0.3)
        return watch.poll() is not None

    up.until(heard)
    said = json.loads(watch.stdout.read())
    assert (said["service_id"], said["snapshot"]["edges"]) == (204, [EDGE])
    watch.communicate()


def test_the_example_scripts(up, tmp_path, repository):
    path = f"{os.path.dirname(AEGISFLUX)}:{os.environ['PATH']}"
    exports = up.exports() | {"PATH": path}
    file = tmp_path / "snapshot.json"
    file.write_text(json.dumps(snapshot(205, 1)))
    enroll(up, "example-1")
    done = up.run(
        str(repository / "examples/post_maps.sh"),
        str(file),
        "example-1",
        **exports | {"AEGISFLUX_TOKEN": up.admin},
    )
    assert json.loads(done.stdout)["target_hosts"] == ["example-1"], done.stderr
    refused = up.run(str(repository / "examples/post_maps.sh"), str(file), **exports)
    assert refused.returncode != 0
    done = up.run(str(repository / "examples/orchestrator.sh"), **exports)
    assert done.returncode == 0, done.stderr
    assert '"status":"ok"' in done.stdout


def test_audit_verify(up):
    done = up.run(AEGISFLUX, "audit", "verify")
    assert done.returncode == 0, done.stdout + done.stderr


def test_secrets_are_files_of_the_owner_alone_and_in_no_log_and_no_argv(up):
    token = up.data / "secrets" / "admin-token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert str(token) in up.log.read_text()
    for log in (up.data / "log").glob("*"):
        assert up.admin not in log.read_text(errors="replace")
    assert up.admin not in up.log.read_text()
    for pid in [up.process.pid, *(up.pid(c) for c in ("nats", "postgres", "orchestrator"))]:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            assert up.admin.encode() not in file.read()


async def test_nats_data_deleted_while_it_runs(up):
    async with Following(enroll(up, "lost-1")) as agent:
        up.call("POST", "/seg/maps?target_host=lost-1", snapshot(301, 1))
        await eventually(lambda: 301 in agent.in_force)
        old = up.pid("nats")
        await asyncio.to_thread(shutil.rmtree, up.data / "nats", True)
        await asyncio.to_thread(up.until, lambda: up.pid("nats") != old)
        await asyncio.to_thread(up.wait_ready)

        async def published_again():
            try:
                return await agent.bus.last(subjects.desired("lost-1"))
            except Unavailable:
                return None

        await eventually(published_again, 30)
        up.call("POST", "/seg/maps?target_host=lost-1", snapshot(301, 2))
        await eventually(lambda: agent.in_force[301].version == 2, 20)
        status = up.call("GET", "/seg/maps/301/status").json
        await eventually(
            lambda: up.call("GET", "/seg/maps/301/status").json["hosts"][0]["observed"]["version"] == 2
        )
        assert status["hosts"][0]["desired"]["version"] == 2


async def test_kill_9_of_each_child_under_a_stream_of_posts(up):
    seed = int(os.environ.get("AEGISFLUX_SEED") or time.time())
    chance, kills = random.Random(seed), int(os.environ.get("AEGISFLUX_KILLS", "2"))
    print(f"seed {seed}")
    accepted: list[int] = []
    stop = threading.Event()

    def posting():
        version = 0
        while not stop.is_set():
            version += 1
            while not stop.is_set():
                try:
                    answer = up.call("POST", "/seg/maps?target_host=kill-1", snapshot(302, version))
                except OSError:
                    time.sleep(0.05)
                    continue
                if answer.status == 200:
                    accepted.append(version)
                    break
                time.sleep(0.05)

    async with Following(enroll(up, "kill-1")) as agent:
        thread = threading.Thread(target=posting)
        thread.start()
        try:
            for child in ["orchestrator", "nats", "postgres"] * kills:
                await asyncio.sleep(chance.uniform(0.2, 0.8))
                before = len(accepted)
                os.kill(up.pid(child), signal.SIGKILL)
                await asyncio.to_thread(up.until, lambda before=before: len(accepted) > before + 2, 40)
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)
        last = accepted[-1]
        await eventually(lambda: agent.in_force[302].version >= last, 20)
        versions = [
            s.active.version for m in agent.manifests for s in m.services if s.service_id == 302 and s.active
        ]
        serials = [m.serial for m in agent.manifests]
        assert versions == sorted(versions)
        assert serials == sorted(set(serials))
    assert (await asyncio.to_thread(up.run, AEGISFLUX, "audit", "verify")).returncode == 0
    for version in accepted:
        assert up.call("GET", f"/seg/maps/302?version={version}").status == 200


def test_a_clean_stop_and_a_killed_supervisor(tmp_path):
    up = Up(tmp_path / "data", free_base())
    up.start()
    try:
        assert up.call("POST", "/seg/maps", snapshot(1, 1)).status == 200
        old = {child: up.pid(child) for child in ("nats", "postgres", "orchestrator")}
        up.stop(signal.SIGKILL)
        up.start()
        assert up.call("GET", "/seg/maps/1").json["latest"] == 1
        assert all(not os.path.exists(f"/proc/{pid}") or up.pid(child) != pid for child, pid in old.items())
        shutil.rmtree(up.data / "nats")
        new = {child: up.pid(child) for child in old}
        assert up.stop() == 0
        assert not any(os.path.exists(f"/proc/{pid}") for pid in new.values())
        up.start()
        assert up.call("GET", "/readyz").status == 200
    finally:
        if up.process and up.process.poll() is None:
            assert up.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="then every test here is one of an ordinary user")
def test_an_ordinary_user_has_it_all(tmp_path):
    """By a uid that is not root's, without any capability."""
    up = Up(tmp_path / "data", free_base())
    up.become = (*postgres.NAMESPACE, "setpriv", "--bounding-set=-all", "--inh-caps=-all")
    up.start()
    enroll(up, "plain")
    assert up.call("POST", "/seg/maps?target_host=plain", snapshot(1, 1)).status == 200
    assert up.stop() == 0


@pytest.mark.parametrize(
    "given", by_day(["one plain role", "a role for each service"], ["a role for each service"])
)
def test_given_engines_are_used_and_none_is_started(up, tmp_path, given):
    engine = PostgresEngine(tmp_path / "postgres", log=tmp_path / "postgres.log")
    (tmp_path / "run").mkdir()
    with asyncio.Runner() as runner:
        server = Process(engine.child(), tmp_path / "run")
        runner.run(server.start())
        try:
            _runs_on(up, tmp_path, engine, given == "a role for each service")
        finally:
            runner.run(server.stop())


def _runs_on(up, tmp_path, engine, roles):
    exports = up.exports()
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    shutil.copytree(up.data / "secrets", data / "secrets")
    other = Up(
        data,
        free_base(),
        AEGISFLUX_DATABASE_URL=engine.dsn,
        **({"AEGISFLUX_DATABASE_PASSWORDS": str(engine.data_dir / "passwords")} if roles else {}),
        AEGISFLUX_NATS_URLS=exports["NATS_URL"],
        AEGISFLUX_NATS_CA=exports["NATS_CA"],
    )
    other.start()
    try:
        children = {path.stem for path in (data / "run").glob("*.pid")}
        assert children == {"enrich", "ingest", "orchestrator", "segmenter"}
        assert other.call("GET", "/seg/maps").status == 401, "the secrets are those of another, longer log"
        done = other.run(AEGISFLUX, "audit", "accept", "--yes")
        assert done.returncode == 0, done.stderr
        assert other.call("POST", "/seg/maps", snapshot(1, 1)).status == 200
        words = [path.read_text() for path in (engine.data_dir / "passwords").iterdir()]
        for child in children:
            said = Path(f"/proc/{other.pid(child)}/environ").read_text()
            said += Path(f"/proc/{other.pid(child)}/cmdline").read_text()
            assert not any(word in said for word in words), child
        users = "select distinct usename::text from pg_stat_activity where datname = 'aegisflux'"
        found = {row["usename"] for row in asyncio.run(_asked(engine.dsn, users))}
        services = {f"aegisflux_{name}" for name in ("orchestrator", "ingest", "enrich", "segmenter")}
        assert found == ({*services, "aegisflux_owner"} if roles else {"aegisflux_owner"})
        done = other.run(AEGISFLUX, "audit", "verify")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        log = (data / "log/orchestrator.log").read_text()
        looked = [json.loads(line) for line in log.splitlines() if "NATS of your own" in line]
        assert [line["remarks"] for line in looked] == [0]
    finally:
        assert other.stop() == 0


async def _asked(dsn, text):
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(text)
    finally:
        await connection.close()


def _addresses(port):
    """The addresses on which this machine listens at a port, of both families."""
    text = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    found = set()
    for local, state in (line.split()[1:4:2] for line in text.splitlines()):
        address, _, number = local.partition(":")
        if state == "0A" and int(number, 16) == port:
            raw = bytes.fromhex(address)[::-1] if len(address) == 8 else bytes.fromhex(address)
            found.add(str(ipaddress.ip_address(raw)))
    return found


def test_other_addresses_have_tls_of_our_ca_and_hosts_enrol_there(tmp_path):
    with running_up(tmp_path, AEGISFLUX_LISTEN="127.0.0.2") as up:
        url = f"https://127.0.0.2:{up.port}"
        ca = up.data / "secrets" / "ca.crt"
        assert up.call("GET", "/healthz", token=None).status == 200
        asked = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5"]
        assert up.run(*asked, "--cacert", str(ca), f"{url}/healthz").stdout == "200"
        assert up.run(*asked, f"{url}/healthz").returncode == 60
        assert _addresses(up.port + 1) == {"127.0.0.2"}, "NATS is on the given address alone"
        for port in (up.port, up.port + 2, up.port + 5, up.port + 6):
            assert _addresses(port) == {"127.0.0.1", "127.0.0.2"}, port
        assert up.run(*asked, f"http://127.0.0.2:{up.port}/healthz").stdout != "200"
        made = up.run(AEGISFLUX, "hosts", "token", "--label", "role=web")
        assert made.returncode == 0, made.stderr
        settings = {
            "AEGISFLUX_AGENT_STATE_DIR": str(tmp_path / "agent"),
            "AEGISFLUX_AGENT_DATAPATH": "simulated",
        }
        enrolled = up.run(
            AEGISFLUX, "agent", "enroll", "--host-id", "tls-1", **settings, AEGISFLUX_ENROLL_TOKEN=made.stdout
        )
        assert enrolled.returncode == 0, enrolled.stderr
        assert up.call("GET", "/api/v1/hosts/tls-1").json["labels"] == {"role": "web"}
        again = settings | {"AEGISFLUX_AGENT_STATE_DIR": str(tmp_path / "other")}
        second = up.run(
            AEGISFLUX, "agent", "enroll", "--host-id", "tls-1", **again, AEGISFLUX_ENROLL_TOKEN=made.stdout
        )
        assert second.returncode == 3, second.stderr


def test_a_taken_port_and_a_second_supervisor_are_told(up, tmp_path):
    same_port = up.run(AEGISFLUX, "up", AEGISFLUX_DATA_DIR=str(tmp_path / "other"))
    assert same_port.returncode == 4
    assert f"process {up.pid('nats')}" in same_port.stderr
    same_folder = up.run(AEGISFLUX, "up")
    assert same_folder.returncode == 4
    assert f"already supervised by process {up.process.pid}" in same_folder.stderr
