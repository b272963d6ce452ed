"""What hosts say costs no more than its share: by what it makes us do, not by how many messages it is."""

from types import SimpleNamespace

import msgspec
import pytest_asyncio
from nacl.signing import SigningKey

from aegisflux.domain.manifest import Heartbeat, Nack
from aegisflux.ports.bus import Message
from aegisflux.services.orchestrator import answers as module
from aegisflux.services.orchestrator.answers import Answers
from aegisflux.wire import envelope, subjects

KEY = SigningKey(b"k" * 32)


class Store:
    """Notes what is written; the host has 250 services."""

    def __init__(self):
        self.written = []

    async def rows(self, query, *_values):
        return [{"service_id": n, "version": 1} for n in range(250)] if query == "assignments_of_host" else []

    async def run(self, query, *values):
        self.written.append((query, values))

    def of(self, query):
        return [values for name, values in self.written if name == query]


@pytest_asyncio.fixture
async def told(monkeypatch):
    """The handlers of a store, with one host, and what is logged."""
    lines = []
    log = SimpleNamespace(warning=lambda words, **more: lines.append((words, more)))
    monkeypatch.setattr(module, "log", log)
    store = Store()
    core = SimpleNamespace(
        store=store,
        clock=SimpleNamespace(now=lambda: 1000.0),
        runs={},
        host_keys={name: bytes(KEY.verify_key) for name in ("flooder", "honest")},
    )
    yield SimpleNamespace(answers=Answers(core), store=store, lines=lines)


def said(value, kind, where, number=1):
    body = msgspec.msgpack.encode(value)
    sealed = envelope.seal(kind, body, value.host_id, lambda data: KEY.sign(data).signature)
    return Message(where, envelope.encode(sealed), {}, number)


def nack(service, detail="", host="flooder"):
    one = Nack(host, "stale_serial", detail, 1, service, 1)
    return said(one, envelope.ANSWER, subjects.acks(host))


def beat(n, addresses=(), host="flooder"):
    one = Heartbeat(
        host, "boot", "0", (1,), (), n, (), 1000.0, False, "simulated", addresses=tuple(addresses)
    )  # fmt: skip
    return said(one, envelope.HEARTBEAT, subjects.heartbeat(host))


async def test_a_hundred_nacks_of_a_host_are_a_row_and_a_line(told):
    await told.answers.on_acks([nack(5, str(n)) for n in range(100)])
    ((hosts, services, _, _, _, details, _),) = told.store.of("store_nacks")
    assert (hosts, services, details) == (["flooder"], [5], ["99"])
    ((words, more),) = told.lines
    assert (words, more["nacks"], more["detail"]) == ("nack", 100, "99")


async def test_nacks_of_whole_manifests_are_written_for_all_services_some_times(told):
    for n in range(40):
        await told.answers.on_acks([nack(None, str(n)), nack(None, str(n), "honest") if n == 30 else nack(7)])
    written = [len(values[0]) for values in told.store.of("store_nacks")]
    assert sum(rows >= 250 for rows in written) <= module.WHOLE_NACKS.burst + 2  # and the honest one's
    assert any("over the share of their host: flooder" in str(words) for words, _ in told.lines)


async def test_of_many_heartbeats_of_a_host_the_newest_alone_is_read(told, monkeypatch):
    reads = []
    verified = module.verified
    monkeypatch.setattr(module, "verified", lambda *given: reads.append(1) or verified(*given))
    await told.answers.on_heartbeats([*(beat(n) for n in range(99)), beat(3, host="honest"), beat(99)])
    ((hosts, _, _, serials, *_),) = told.store.of("store_heartbeats")
    assert dict(zip(hosts, serials, strict=True)) == {"flooder": 99, "honest": 3}
    assert len(reads) == 2


async def test_addresses_that_move_all_the_time_move_some_times(told):
    """Each move makes others read the addresses of all hosts anew."""
    for n in range(40):
        await told.answers.on_heartbeats([beat(n, [f"10.0.0.{n}"]), beat(n, ["10.1.0.1"], "honest")])
    moved = [dict(zip(values[0], values[4], strict=True)) for values in told.store.of("store_heartbeats")]
    assert sum(bool(one["flooder"]) for one in moved) <= module.ADDRESSES.burst + 1
    assert all(one["honest"] == "10.1.0.1" for one in moved)
