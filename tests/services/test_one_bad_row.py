"""One bad item never fails its list, on the control plane: a host, a row, a rollout, an entry of the graph.

The store and the bus are lists here; `test_one_bad_host.py` has real ones.
"""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import msgspec
import pytest
import zstandard
from tests.services.test_graphed import PEERS, Parting, batch
from tests.support.believing import Trusting
from tests.support.facts import facts_of

from aegisflux.domain.errors import Conflict, Invalid, NotFound, Refused, Unavailable
from aegisflux.domain.inventory import Package, PackageInventory, System
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace
from aegisflux.domain.storable import check_storable
from aegisflux.runtime import metrics
from aegisflux.services.enrich import graphed, refill
from aegisflux.services.enrich.graphed import Graphed
from aegisflux.services.orchestrator import panic as panics
from aegisflux.services.orchestrator import relay, renewals, upkeep
from aegisflux.services.orchestrator.carried import readable
from aegisflux.services.orchestrator.joining import JoinPlan
from aegisflux.services.orchestrator.panic import Observing, Panic, PanicRequest
from aegisflux.services.orchestrator.relay import Relay
from aegisflux.services.orchestrator.renewals import Renewals
from aegisflux.services.orchestrator.upkeep import Upkeep
from aegisflux.wire.inventory import decode_inventory, encode_inventory


class Store:
    """Answers by query; remembers what was run."""

    def __init__(self, **answers):
        self.answers, self.ran, self.asked = answers, [], []

    async def rows(self, query, *values):
        self.asked.append((query, *values))
        found = self.answers.get(query, [])
        return found.pop(0) if found and isinstance(found[0], list) else found

    async def row(self, query, *_):
        return self.answers.get(query)

    async def run(self, query, *values):
        self.ran.append((query, *values))

    @asynccontextmanager
    async def change(self):
        yield SimpleNamespace(
            rows=self.rows, row=self.row, run=self.run, audit=self.audit, bump=lambda _hosts: None
        )

    async def audit(self, _entry):
        pass


def core(store, **parts):
    clock = SimpleNamespace(now=lambda: 1000.0)
    options = SimpleNamespace(
        max_lease=0, renew_every=0, silent_after=3, confirm_seconds=0, limits=SimpleNamespace(marks=set())
    )
    given = {"store": store, "clock": clock, "options": options, "now": lambda: 1000, "wake": lambda: None}
    return SimpleNamespace(**given | {"register": Trusting()} | parts)


async def no_doubt(*_):
    return ""


# Orchestrator


async def test_a_host_that_cannot_join_stops_neither_others_nor_what_comes_after(monkeypatch):
    joined, steps = [], []
    store = Store(joiners=[{"host_id": host, "service_id": 1} for host in ("a", "bad", "c")])

    async def planned(_core, _db, pairs, _now):
        if any(host == "bad" for _, host in pairs):
            raise KeyError("labels")
        return JoinPlan(tuple((number, host, None) for number, host in pairs))

    async def write(_core, _db, joins, _now):
        joined.extend(host for _, host, _ in joins.given)

    monkeypatch.setattr(upkeep, "planned", planned)
    monkeypatch.setattr(upkeep, "write", write)
    clockwork = Upkeep(core(store))
    for name in ("refresh", "watch"):

        async def step(name=name):
            steps.append(name)

        monkeypatch.setattr(clockwork, name, step)
    await clockwork.tick()
    assert (joined, steps) == (["a", "c"], ["refresh", "watch"])


@pytest.mark.parametrize("error", [Unavailable("x"), Conflict("x"), KeyError("x")])
@pytest.mark.parametrize("bad", ["renew", "join", "refresh", "watch"])
async def test_a_step_of_upkeep_that_fails_leaves_the_others(monkeypatch, bad, error):
    clockwork, done = Upkeep(core(Store())), []
    for name in ("renew", "join", "refresh", "watch"):

        async def step(name=name):
            if name == bad:
                raise error
            done.append(name)
            return 0

        monkeypatch.setattr(clockwork, name, step)
    await clockwork.tick()
    assert done == [name for name in ("renew", "join", "refresh", "watch") if name != bad]


@pytest.mark.parametrize("error", [Conflict("x"), KeyError("x"), ValueError("x")])
async def test_a_rollout_that_cannot_be_renewed_leaves_the_others(monkeypatch, error):
    seen = []
    rows = [{"id": number, "stage": "promoted"} for number in (1, 2, 3)]

    async def read(_):
        return SimpleNamespace(digest="d")

    def carried_of(row):
        if row["id"] == 2:
            raise error
        return row["id"]

    async def one(carried, _doubt, _here):
        seen.append(carried)
        return True

    monkeypatch.setattr(renewals.places, "read", read)
    monkeypatch.setattr(renewals, "carried_of", carried_of)
    monkeypatch.setattr(renewals, "doubt_of", no_doubt)
    clockwork = Renewals(core(Store(live_rollouts=rows)))
    monkeypatch.setattr(clockwork, "_one", one)
    await clockwork.look()
    assert seen == [3, 1]
    assert clockwork._quiet == "", "it is looked at again"


WEB = Inventory({"web": ServicePlace(1, ("w1",))}, {"w1": HostPlace({}, ("10.0.0.1",))})
GOOD, UNREADABLE, REFUSED = ("policy: 1\nservices: [web]\n", "policy: 2\n", "policy: 1\nname: refused\n")


@pytest.mark.parametrize(
    ("texts", "processes"),
    [
        ([GOOD], 1),
        ([GOOD] * 3, 1),
        ([GOOD, UNREADABLE, GOOD], 1),
        ([GOOD, REFUSED, GOOD], 2),
    ],
)
async def test_one_process_compiles_all_policies_but_those_that_are_refused(monkeypatch, texts, processes):
    policies = dict(enumerate(texts, 1))
    ran, said = [], []

    class Plans(Store):
        async def row(self, query, *values):
            return {"policy": policies[values[0]]} if query == "plan" else None

    async def computed(function, *values):
        ran.append(function.__name__)
        return function(*values)

    async def read(_):
        return SimpleNamespace(digest="d", inventory=WEB, in_force={})

    def carried_of(row):
        return SimpleNamespace(id=row["id"], plan=row["plan"], parts=(), run=SimpleNamespace(reason=""))

    def compiled(policy, inventory, real=renewals.compile_in_force):
        if policy.name == "refused":
            raise NotFound("nothing of it can be compiled")
        return real(policy, inventory)

    for module in (renewals, renewals.in_force):
        monkeypatch.setattr(module, "compile_in_force", compiled)
    monkeypatch.setattr(renewals, "computed", computed)
    monkeypatch.setattr(renewals.places, "read", read)
    monkeypatch.setattr(renewals, "carried_of", carried_of)
    monkeypatch.setattr(renewals, "doubt_of", no_doubt)
    clockwork = Renewals(
        core(Plans(live_rollouts=[{"id": n, "plan": n, "stage": "promoted"} for n in policies]))
    )

    async def say(carried, reason):
        said.append((carried.id, bool(reason)))

    monkeypatch.setattr(clockwork, "_say", say)
    await clockwork.look()
    assert len(ran) == processes, (ran, said)
    refused = [number for number, why in said if why]
    assert refused == [n for n, text in policies.items() if text != GOOD]


class Bus:
    """Keeps what is published; refuses what is called bad."""

    def __init__(self):
        self.sent = []

    async def publish(self, subject, payload, msg_id, headers=None):
        if b"bad" in payload or "bad" in subject:
            raise Refused("too large")
        self.sent.append((subject, payload))

    async def last(self, subject):
        if "bad" in subject:
            raise Refused("no subject")


async def test_an_announcement_that_the_bus_refuses_does_not_hold_the_later_ones(monkeypatch):
    async def woken(*_):
        pass

    monkeypatch.setattr(relay, "woken", woken)
    rows = [{"id": n, "payload": text, "msg_id": str(n)} for n, text in enumerate((b"a", b"bad", b"c"))]
    store, bus = Store(unsent=[rows, []]), Bus()
    await Relay(core(store, bus=bus, announcements_due=None)).announcements()
    assert [payload for _, payload in bus.sent] == [b"a", b"c"]
    assert [values for _, *values in store.ran] == [[0], [1], [2]]


async def test_a_manifest_that_cannot_be_made_or_sent_leaves_those_of_other_hosts(monkeypatch):
    def seal(_kind, payload):
        if b"unmade" in payload:
            raise ValueError("surrogates")
        return "sealed"

    monkeypatch.setattr(relay.envelope, "encode", lambda _: b"message")
    monkeypatch.setattr(relay, "ManifestMessage", lambda *_: None)
    keys = SimpleNamespace(seal=seal, envelope=None)
    hosts = ("a", "unmade", "bad", "c")
    dirty = [
        {"host_id": h, "serial": 1, "built_serial": 0, "message": b"", "labels": {}, "left_out": ""}
        for h in hosts
    ]
    built = [{"host_id": host} for host in hosts if host != "unmade"]
    store, bus = Store(dirty=dirty, store_built=built), Bus()
    shared = core(store, bus=bus, keys=keys, digests={}, unmade={})
    assert await Relay(shared)._publish_dirty()
    assert [subject.rpartition(".")[2] for subject, _ in bus.sent] == ["a", "c"]
    assert store.ran == [("published", ["a", "c"], [1, 1])]
    assert {host: (one.serial, one.why) for host, one in shared.unmade.items()} == {
        "unmade": (1, "surrogates"),
        "bad": (1, "too large"),
    }
    await Relay(shared)._publish_dirty()
    asked = [values for query, *values in store.asked if query == "dirty"]
    assert asked[1][1:] == [["unmade", "bad"], [1, 1]], (
        "they stand before no other, and the loop does not spin"
    )


async def test_a_host_that_cannot_be_compared_leaves_the_others():
    loop = Relay(core(Store(), bus=Bus()))
    rows = [{"host_id": host, "message": b"m"} for host in ("a", "bad", "c")]
    assert await loop._held(rows) == [False, True, False]


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": ["b", "c\0"]}, r"\[1\]"), (1 << 63, "expected"), (-(1 << 63) - 1, "expected"),
        (float("nan"), "finite"),
        (float("inf"), "finite"), ({"a\0": 1}, "NUL"), (Package(type="deb", name="a\0", version="1"), "name"),
    ],
)  # fmt: skip
def test_what_the_store_cannot_hold_is_refused_with_its_field(value, where):
    with pytest.raises(Invalid, match=where):
        check_storable(value)


def test_what_the_store_can_hold_passes():
    check_storable({"a": ["\x1b\u202e\n", (1 << 63) - 1, -(1 << 63), 1.5, None, True, b"\0"]})


# Graph


class Picky(Parting):
    """Refuses the entries of one peer, and answers nevertheless."""

    def __init__(self, bad, error):
        super().__init__()
        self.bad, self.error = bad, error

    async def upsert(self, upserts):
        if any(self.bad in str(entry) for entry in (*upserts.nodes, *upserts.edges)):
            raise self.error
        await super().upsert(upserts)

    async def check(self):
        return "fine"

    async def forget_software(self, _host):
        pass


@pytest.mark.parametrize("error", [Unavailable("cannot cast"), TypeError("x"), OverflowError("y")])
async def test_an_entry_that_the_graph_cannot_hold_is_left_out_and_counted(monkeypatch, error):
    monkeypatch.setattr(graphed, "AT_ONCE", 4)
    before = metrics.graph_dropped._value.get()
    graph = Picky(PEERS[3], error)
    told = Graphed(graph)
    told.see(batch(*PEERS))
    await told.flush()
    expected = facts_of(batch(*(peer for peer in PEERS if peer != PEERS[3])))
    assert graph.held == expected
    assert metrics.graph_dropped._value.get() - before == 2


async def test_a_failure_of_any_kind_keeps_what_was_seen_while_the_graph_does_not_answer():
    graph = Parting()
    graph.upsert, real = failing, graph.upsert
    told = Graphed(graph)
    told.see(batch(*PEERS))
    with pytest.raises(TypeError):
        await told.flush()
    graph.upsert = real
    await told.flush()
    assert graph.held == facts_of(batch(*PEERS))


async def failing(_upserts):
    raise TypeError("x")


def inventory(host, *names):
    packages = tuple(Package(type="deb", name=name, version="1") for name in names)
    return PackageInventory(host_id=host, taken_ns=1, digest="d", system=System(), packages=packages)


async def test_the_software_of_a_host_that_fails_leaves_that_of_the_others():
    graph = Picky("nowhere", TypeError())

    async def forget(host):
        if host == "bad":
            raise Unavailable("x")

    graph.forget_software = forget
    told = Graphed(graph)
    for host in ("a", "bad", "c"):
        told.see_inventory(inventory(host, f"of-{host}"))
    with pytest.raises(Unavailable):
        await told.flush()
    assert {ref.key for ref in graph.held.nodes if ref.label == "Host"} == {"a", "c"}
    assert set(told._inventories) == {"bad"}


def test_a_row_of_the_store_that_fits_nothing_leaves_the_others():
    good = {
        "host_id": "a", "service_id": 1, "service": "web", "last_ns": 1, "address": "10.0.0.1", "proto": 6,
        "port": 80,
    }  # fmt: skip
    found = refill._sights(
        [good, {"host_id": "b", "service_id": None}, good | {"host_id": "c"}], refill._listener, {}
    )
    assert {ref.key for ref in found.nodes if ref.label == "Host"} == {"a", "b", "c"}
    assert {edge.start.key for edge in found.edges if edge.name == "RUNS"} == {"a", "c"}


# Inventories


def packed(value):
    return zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(value))


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "deb", "name": "x" * 300, "version": "1"},
        {"type": "exe", "name": "x", "version": "1"},
        {"type": "deb", "name": msgspec.Raw(b"\xa1\xff"), "version": "1"},
        {"type": "deb"},
        "x",
        {"type": "deb", "name": "x", "version": "1", "binaries": ["/" + "x" * 5000]},
    ],
)
def test_a_package_that_breaks_the_schema_leaves_the_others(bad):
    whole = msgspec.to_builtins(inventory("h", "a", "b"))
    first, last = whole["packages"]
    whole["packages"] = [first, bad, last]
    found = decode_inventory(packed(whole))
    assert [one.name for one in found.packages] == ["a", "b"]
    assert found.failed[0].startswith("1 packages refused; packages[1]: ")
    assert decode_inventory(encode_inventory(found)) == found


@pytest.mark.parametrize("body", [b"", b"x", packed({}), packed({"host_id": "h"}), packed("x")])
def test_what_is_no_inventory_is_refused(body):
    with pytest.raises(Invalid):
        decode_inventory(body)


# Panic of the fleet


class Alone(Panic):
    """A panic whose services and rollouts are numbers; some of them cannot be dealt with."""

    def __init__(self, bad, error, rollouts=()):
        store = Store(services_in_force=[{"service_id": n} for n in (1, 2, 3)], live_rollouts=list(rollouts))
        super().__init__(core(store), None)
        self.bad, self.error, self.tried = bad, error, []

    async def _one(self, service_id, *_):
        self.tried.append(service_id)
        if service_id in self.bad:
            raise self.error
        return Observing(service_id=service_id, service="s", version=2, hosts=("h",))


@pytest.mark.parametrize(
    "error", [Conflict("busy"), Refused("a name"), KeyError("x"), Unavailable("no memory")]
)
async def test_a_service_that_cannot_observe_keeps_no_other_of_the_fleet_from_it(error):
    panic = Alone({2}, error)
    found = await panic.observe(PanicRequest(fleet=True), None)
    assert [one.service_id for one in found.services] == [1, 3]
    (failed,) = found.failed
    assert failed.service_id == 2
    assert failed.reason


async def test_a_store_that_is_away_is_said_at_once():
    panic = Alone({1, 2, 3}, Unavailable("the store"))
    with pytest.raises(Unavailable):
        await panic.observe(PanicRequest(fleet=True), None)


async def test_a_rollout_that_cannot_be_read_stops_no_panic():
    rows = [{"id": 4, "stage": "canary", "run": {"stage": "of another version"}}]
    panic = Alone(set(), None, rows)
    found = await panic.observe(PanicRequest(fleet=True), None)
    assert ([one.service_id for one in found.services], found.aborted) == ([1, 2, 3], ())


@pytest.mark.parametrize("error", [KeyError("x"), NotFound("gone"), Unavailable("bus")])
async def test_a_rollout_that_cannot_be_aborted_stops_no_panic(monkeypatch, error):
    async def load(*_):
        raise error

    async def live(_):
        return [4, 5]

    monkeypatch.setattr(panics, "load", load)
    panic = Alone(set(), None)
    monkeypatch.setattr(panic, "_live", live)
    assert len((await panic.observe(PanicRequest(fleet=True), None)).services) == 3


def test_a_rollout_that_cannot_be_read_is_left_out_of_a_list():
    assert readable([{"id": 4, "run": 5}, {"id": 5}]) == []
