"""A host that runs a service by its own report alone gets the service's snapshot, and nobody else's rules."""

import asyncio
import threading
from typing import ClassVar

import pytest

from aegisflux.domain.event import Exec
from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.joins import Joins
from aegisflux.domain.known import Known, KnownHost, KnownService
from aegisflux.domain.net import parse_address
from aegisflux.domain.policy import Group, Policy, Rule
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.policy_lint import lint
from aegisflux.domain.snapshot import ruleset
from aegisflux.domain.verdict import judge
from aegisflux.runtime import places

HOSTS = {
    "w1": HostPlace({"role": "web"}, ("10.0.0.1", "2001:db8::1")),
    "d1": HostPlace({"role": "db"}, ("10.0.0.2",)),
    "rogue": HostPlace({}, ("10.0.0.9", "2001:db8::9")),
}
OTHERS = {"evil": HostPlace({}, ("10.0.0.10",))}
WEB_TO_DB = Rule(from_="web", to="db", ports=("tcp/5432",))
DENY = Rule(from_="web", to="db", ports=("tcp/22",), action="deny")


def inventory(**reported: tuple[str, ...]) -> Inventory:
    labelled = {"web": ("w1",), "db": ("d1",)}
    services = {
        name: ServicePlace(n, tuple(sorted({*hosts, *reported.get(name, ())})), 1, reported.get(name, ()))
        for n, (name, hosts) in enumerate(labelled.items(), 1)
    }
    return Inventory(services, HOSTS)


def compiled(rule: Rule, found: Inventory, **more):
    return compile_policy(Policy(policy=1, rules=(rule,), **more), found)


@pytest.mark.parametrize(
    "rule",
    [
        WEB_TO_DB,
        Rule(from_="web", to="db", ports=("tcp",)),
        Rule(from_=("web", "host:w1"), to="db", ports=("tcp/5432",)),
    ],
)
@pytest.mark.parametrize("more", [{}, {"extra_addresses": 0}])
def test_who_only_says_that_it_runs_a_service_is_let_in_nowhere(rule: Rule, more) -> None:
    found = compiled(rule, inventory(web=("rogue",)), **more)
    assert found == compiled(rule, inventory(), **more), "the snapshots are those of a fleet without it"
    for address in HOSTS["rogue"].addresses:
        flow = Flow("ingress", 6, parse_address(address), 5432)
        assert judge(ruleset(found["db"]), flow, Host(failsafe=())).action == "deny"


def test_nor_is_it_called_as_one() -> None:
    """Or a host could have every client of `db` send it what is for `db`."""
    found = compiled(WEB_TO_DB, inventory(db=("rogue",)))
    assert found == compiled(WEB_TO_DB, inventory())


def test_a_deny_holds_against_it_too() -> None:
    found = compiled(DENY, inventory(web=("rogue",)))["db"]
    assert {entry.cidr for entry in found.deny} >= {"10.0.0.1/32", "10.0.0.9/32"}


def test_a_person_may_name_it() -> None:
    """By host, label or group: then it is not its report that lets it in."""
    for end in ("host:rogue", "members"):
        given = Policy(
            policy=1,
            rules=(Rule(from_=("web", end), to="db", ports=("tcp/5432",)),),
            groups={"members": Group(hosts=("rogue",))} if end == "members" else {},
        )
        found = compile_policy(given, inventory(web=("rogue",)))["db"]
        assert "10.0.0.9/32" in {entry.src_cidr for entry in found.ingress or ()}


def test_the_linter_says_who_is_left_out() -> None:
    given = Policy(policy=1, rules=(WEB_TO_DB,))
    (told,) = [one for one in lint(given, inventory(web=("rogue",))) if one.kind == "unlabelled"]
    assert (told.about, "rogue" in told.detail) == ("service web", True)
    assert not [one for one in lint(given, inventory()) if one.kind == "unlabelled"]


class Rows:
    """What the store has: `rogue` and `w1` report a cgroup of `web`, which has host_labels or not."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.found = {
            "host_places": [
                {"host_id": name, "labels": place.labels, "addresses": place.addresses}
                for name, place in HOSTS.items()
            ],
            # the query leaves out hosts without the service's labels
            "all_running": [
                {"service_id": 1, "host_id": name}
                for name in ("rogue", "w1")
                if labels.items() <= HOSTS[name].labels.items()
            ],
            "services": [
                {"id": 1, "name": "web", "selectors": ["unit:w"], "host_labels": labels, "latest": 4}
            ],
            "in_force": [],
        }

    async def rows(self, name: str):
        return self.found[name]


@pytest.mark.parametrize(
    ("labels", "hosts", "reported"),
    [({}, ("rogue", "w1"), ("rogue", "w1")), ({"role": "web"}, ("w1",), ()), ({"role": "x"}, (), ())],
)
def test_only_labels_prove_where_a_service_runs(labels, hosts, reported) -> None:
    now = asyncio.run(places.read(Rows(labels)))  # type: ignore[arg-type]
    assert now.inventory.services["web"] == ServicePlace(1, hosts, 5, reported, f"web ['unit:w'] {labels}")


class Watched(dict):  # type: ignore[type-arg]
    """Labels that note when and where they are read."""

    reads: ClassVar[list[threading.Thread]] = []

    def get(self, *values):  # type: ignore[no-untyped-def]
        self.reads.append(threading.current_thread())
        return super().get(*values)

    def items(self):  # type: ignore[no-untyped-def]
        self.reads.append(threading.current_thread())
        return super().items()


@pytest.mark.parametrize("services", [1, 40])
def test_services_are_placed_by_one_look_at_each_host_beside_the_loop(services: int) -> None:
    rows = Rows({})
    hosts = [f"h{n}" for n in range(20)]
    labels = {host: Watched(env="prod", role=host) for host in hosts}
    rows.found["host_places"] = [{"host_id": h, "labels": labels[h], "addresses": []} for h in hosts]
    rows.found["services"] = [
        {
            "id": n,
            "name": f"s{n}",
            "selectors": [],
            "host_labels": {"env": "prod", "role": f"h{n}"},
            "latest": 0,
        }
        for n in range(services)
    ]
    rows.found["all_running"] = []
    Watched.reads.clear()
    now = asyncio.run(places.read(rows))  # type: ignore[arg-type]
    assert now.inventory.services["s0"].hosts == ("h0",)
    assert len(Watched.reads) <= len(hosts)
    assert threading.main_thread() not in Watched.reads


@pytest.mark.parametrize(
    ("cgroup", "service"),
    [
        ("/system.slice/web.service", "web"),
        ("/system.slice/web.service/worker", "web"),
        ("/user.slice/web.service", ""),
        ("/user.slice/user-7.slice/user@7.service/app.slice/web.service", ""),
        ("/user.slice/user-7.slice/user@7.service/any/batch", ""),
        ("/user.slice/batch", "batch"),
        ("/login/user@7.service/x", "login"),
        ("/login/user@7.service/login", "login"),
        ("/system.slice/other.service/web.service", ""),
        ("/system.slice/\\xff", ""),
    ],
)
def test_the_fleets_view_of_a_program_is_that_of_its_host(cgroup: str, service: str) -> None:
    wanted = {
        "web": ("unit:web",),
        "batch": ("cgroup:**/batch",),
        "login": ("cgroup:login", "cgroup:**/login"),
    }
    services = tuple(KnownService(n, name, texts, {}) for n, (name, texts) in enumerate(wanted.items(), 1))
    joins = Joins()
    joins.learn(Known(hosts=(KnownHost("h", {}, ()),), services=services, listeners=(), inventories=()))
    seen = Exec(seq=1, time_ns=1, pid=7, start_ns=7, uid=0, path="/x", cgroup=cgroup)
    assert joins._of_program(joins._host("h"), seen.cgroup, seen.path, None).service == service
