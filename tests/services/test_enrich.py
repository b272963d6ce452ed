"""The pipeline of enrich with a store that refuses: what is well goes on, what is not lies alone."""

import asyncio

import pytest
from msgspec import Raw
from tests.support.facts import NOON, execed, listen

from aegisflux.adapters.bus.memory import Broker, MemoryBus
from aegisflux.domain.errors import Refused, Unavailable
from aegisflux.domain.event import EventBatch
from aegisflux.domain.joins import Joins
from aegisflux.domain.known import Known, KnownHost, KnownService
from aegisflux.ports.facts import Stored
from aegisflux.services.enrich.pipeline import Pipeline
from aegisflux.wire import subjects
from aegisflux.wire.events import Sealed, decode_enriched, decode_taken, encode_batch, encode_taken

BAD = "/refused"


class Picky:
    """A store that refuses a path."""

    def __init__(self):
        self.kept, self.away, self.owned = [], False, []
        self.services, self.slow = (), None

    async def known(self):
        return Known(hosts=(), services=self.services, listeners=(), inventories=())

    async def own(self, listeners):
        if self.away:
            raise Unavailable("away")
        self.owned += [(known.port, known.service_id, tuple(self.kept)) for known in listeners]

    async def commit(self, batches):
        if self.slow is not None:
            await self.slow.wait()
        if self.away:
            raise Unavailable("away")
        found = [(b.host_id, e.event.seq) for b in batches for e in b.events]
        if any(e.event.path == BAD for b in batches for e in b.events):
            raise Refused("no row")
        self.kept += found
        return Stored(len(found), 0, tuple(batches))


class Seeing:
    def __init__(self):
        self.count = 0

    def see(self, batches):
        self.count += sum(len(batch.events) for batch in batches)


@pytest.fixture
async def lab():
    bus = MemoryBus(Broker())
    await bus.ensure_streams()
    facts, graphed = Picky(), Seeing()
    yield bus, facts, graphed, Pipeline(bus, facts, Joins(), graphed)
    await bus.close()


def batch_of(host, *events):
    return EventBatch(host_id=host, boot_id="b", sent_ns=NOON, events=events)


def raw(*batches):
    sealed = [Sealed(NOON, 0, Raw(encode_batch(batch_of(h, *events)))) for h, events in batches]
    return encode_taken(sealed)


async def handled(bus, pipeline, payload):
    """Each message that the pipeline was given, by way of the bus."""
    await bus.publish(subjects.RAW, payload, msg_id="1")
    messages = await bus.read(subjects.stream_of(subjects.RAW).name, 0, 10)
    await pipeline.on_raw(messages)


async def test_an_event_that_the_store_refuses_takes_no_other_with_it(lab):
    bus, facts, graphed, pipeline = lab
    hundred = tuple(execed(n, path=BAD if n == 37 else "/x") for n in range(1, 101))
    await handled(bus, pipeline, raw(("web-1", hundred), ("db-1", (execed(1), execed(2)))))
    assert sorted(facts.kept) == sorted(
        [("web-1", n) for n in range(1, 101) if n != 37] + [("db-1", 1), ("db-1", 2)]
    )
    assert graphed.count == 101
    (letter,) = await bus.read(subjects.stream_of(subjects.dead("x")).name, 0, 10)
    (taken,) = decode_taken(letter.payload)
    assert ([e.seq for e in taken.batch.events], letter.headers["Aegisflux-Reason"]) == ([37], "no row")
    published = await bus.read(subjects.stream_of(subjects.ENRICHED).name, 0, 10)
    told = [e.event.seq for m in published for b in decode_enriched(m.payload) for e in b.events]
    assert sorted(told) == sorted([*range(1, 37), *range(38, 101), 1, 2])


async def test_a_change_of_the_registry_waits_for_the_store_and_changes_keep_their_order(lab, monkeypatch):
    _, facts, _, pipeline = lab
    monkeypatch.setattr("aegisflux.services.enrich.pipeline.LEARN_SECONDS", 0)
    first, answers = asyncio.Event(), iter(["away", "old", "new"])

    async def known():
        answer = next(answers)
        if answer == "away":
            raise Unavailable(answer)
        if answer == "old":
            await first.wait()
        return Known(
            hosts=(KnownHost("web-1", {"is": answer}, ()),), services=(), listeners=(), inventories=()
        )

    facts.known = known
    changes = [asyncio.create_task(pipeline.changed("hosts")) for _ in range(2)]
    for _ in range(10):
        await asyncio.sleep(0)
    first.set()
    await asyncio.gather(*changes)
    assert pipeline._joins.enrich(batch_of("web-1", execed(1)), NOON).labels == {"is": "new"}


async def test_a_store_that_is_away_buries_nothing(lab):
    bus, facts, _, pipeline = lab
    facts.away = True
    with pytest.raises(Unavailable):
        await handled(bus, pipeline, raw(("web-1", (execed(1), execed(2)))))
    assert not await bus.read(subjects.stream_of(subjects.dead("x")).name, 0, 10)


async def test_a_service_that_comes_while_its_listener_is_stored_owns_it(lab):
    """The row must be there before it is said whose it is."""
    bus, facts, _, pipeline = lab
    facts.slow = asyncio.Event()
    payload = raw(("web-1", (listen(1, port=80, cgroup="/a.slice/x"),)))
    storing = asyncio.ensure_future(handled(bus, pipeline, payload))
    while not pipeline._storing:
        await asyncio.sleep(0)
    facts.services = (KnownService(5, "x", ("cgroup:a.slice",), {}),)
    changed = asyncio.ensure_future(pipeline.changed("services"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert facts.owned == []
    facts.slow.set()
    await storing
    await changed
    assert facts.owned == [(80, 5, (("web-1", 1),))]
