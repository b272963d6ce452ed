"""One host's flood on the bus costs that host its own share."""

# ruff: noqa: F811 - fixtures of another module are arguments here

import asyncio

import pytest
from tests.contract.test_bus import bus, server  # noqa: F401 - fixtures
from tests.support.engines import eventually

from aegisflux.domain.errors import OverLimit, Unavailable
from aegisflux.domain.shares import Share
from aegisflux.ports.bus import Fair
from aegisflux.wire import subjects
from aegisflux.wire.subjects import ANSWERS_EACH, MAX_ANSWER, MAX_TELEMETRY, TELEMETRY_EACH

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Who finds no place is told so soon."""
    monkeypatch.setattr("aegisflux.adapters.bus.nats.PUBLISH_SECONDS", 0.5)


class Taker:
    """Notes what it is given; raises for payloads that begin with `bad`."""

    def __init__(self) -> None:
        self.got, self.batches, self.calls = [], [], 0

    async def __call__(self, messages):
        self.calls += 1
        if any(message.payload.startswith(b"bad") for message in messages):
            raise ValueError("bad")
        self.batches.append([len(message.payload) for message in messages])
        self.got += [(message.subject.rpartition(".")[2], message.payload[:8]) for message in messages]

    def of(self, host):
        return [payload for name, payload in self.got if name == host]


async def test_a_host_has_its_places_in_a_queue_and_no_more(bus):
    for n in range(TELEMETRY_EACH):
        await bus.publish(subjects.telemetry("flooder"), b"x", msg_id=f"f{n}")
    with pytest.raises(Unavailable, match="per subject"):
        await bus.publish(subjects.telemetry("flooder"), b"x", msg_id="one more")
    await bus.publish(subjects.telemetry("honest"), b"x", msg_id="h")
    taker = Taker()
    await bus.consume("TELEMETRY", "ingest", taker)
    await eventually(lambda: len(taker.got) == TELEMETRY_EACH + 1)
    await bus.publish(subjects.telemetry("flooder"), b"x", msg_id="one more")


async def test_of_the_answers_of_a_host_its_own_oldest_go(bus):
    await bus.publish(subjects.acks("honest"), b"honest", msg_id="h")
    many = ANSWERS_EACH + 50
    for start in range(0, many, 100):
        some = range(start, min(many, start + 100))
        await asyncio.gather(
            *(bus.publish(subjects.acks("flooder"), b"%d" % n, msg_id=f"f{n}") for n in some)
        )
    taker = Taker()
    await bus.consume("ACKS", "orchestrator", taker)
    await eventually(lambda: len(taker.of("flooder")) == ANSWERS_EACH)
    assert taker.of("honest") == [b"honest"]


TOO_LARGE = {subjects.acks("web1"): MAX_ANSWER, subjects.telemetry("web1"): MAX_TELEMETRY}


@pytest.mark.parametrize("subject", TOO_LARGE)
async def test_a_message_beyond_the_bound_of_its_stream_is_refused_for_good(bus, subject):
    with pytest.raises(OverLimit, match="message"):
        await bus.publish(subject, bytes(TOO_LARGE[subject] + 1), msg_id="x")


async def test_a_pull_has_a_bound_in_bytes(bus):
    for n in range(20):
        await bus.publish(subjects.inventory(f"h{n}"), bytes(100_000), msg_id=str(n))
    taker = Taker()
    await bus.consume("INVENTORY", "enrich", taker, max_bytes=350_000)
    await eventually(lambda: len(taker.got) == 20)
    assert max(map(sum, taker.batches)) <= 350_000
    assert len(taker.batches) < 20, "and more than one message at a time"


async def test_what_is_over_the_share_of_a_host_comes_later_and_the_others_at_once(bus):
    fair = Fair(Share(rate=5.0, burst=4.0))
    for n in range(8):
        await bus.publish(subjects.inventory("flooder"), b"%d" % n, msg_id=f"f{n}")
        await bus.publish(subjects.telemetry("flooder"), b"%d" % n, msg_id=f"t{n}")
    await bus.publish(subjects.telemetry("honest"), b"x", msg_id="h")
    taker = Taker()
    await bus.consume("TELEMETRY", "ingest", taker, fair=fair)
    await eventually(lambda: taker.of("honest"))
    assert len(taker.of("flooder")) <= 5
    await eventually(lambda: len(set(taker.of("flooder"))) == 8, 20)  # nothing is lost


async def ten_of_each(bus, fair, flood, small):
    """Who took ten messages of each host in turn, once it has all that are honest."""
    for n in range(10):
        await bus.publish(subjects.telemetry("flooder"), flood, msg_id=f"f{n}")
        await bus.publish(subjects.telemetry("honest"), small, msg_id=f"h{n}")
    taker = Taker()
    await bus.consume("TELEMETRY", "ingest", taker, fair=fair)
    await eventually(lambda: len(taker.of("honest")) == 10)
    return taker


async def test_a_share_of_bytes_counts_bytes(bus):
    fair = Fair(Share(rate=1000.0, burst=1000.0), Share(rate=1.0, burst=10_000.0))
    taker = await ten_of_each(bus, fair, bytes(6000), bytes(60))
    assert len(taker.of("flooder")) == 2


async def test_where_room_is_scarce_a_host_has_little_of_it(bus):
    short = [True]
    small = Share(rate=1.0, burst=10_000.0)
    fair = Fair(Share(1000.0, 1000.0), scarce=small, is_scarce=lambda: short[0])
    taker = await ten_of_each(bus, fair, bytes(6000), bytes(60))
    assert len(taker.of("flooder")) == 2
    short[0] = False
    await bus.publish(subjects.telemetry("flooder"), b"later", msg_id="later")
    await eventually(lambda: b"later" in taker.of("flooder"))


async def test_what_is_dropped_beyond_a_share_is_not_handled_again(bus):
    fair = Fair(Share(rate=1 / 3600, burst=3.0), beyond="dropped")
    for n in range(50):
        await bus.publish(subjects.acks("flooder"), b"%d" % n, msg_id=f"f{n}")
    await bus.publish(subjects.acks("honest"), b"x", msg_id="h")
    taker = Taker()
    await bus.consume("ACKS", "orchestrator", taker, fair=fair)
    await eventually(lambda: taker.of("honest"))

    async def none_waits():
        return await bus.lag("ACKS", "orchestrator") == 0

    await eventually(none_waits)
    assert 3 <= len(taker.of("flooder")) <= 4


async def test_of_last_values_over_a_share_the_newest_is_handled(bus):
    fair = Fair(Share(rate=5.0, burst=2.0), beyond="newest")
    taker = Taker()
    await bus.consume("INVENTORY", "enrich", taker, fair=fair)
    for n in range(40):
        await bus.publish(subjects.inventory("flooder"), b"%d" % n, msg_id=f"f{n}")
    await bus.publish(subjects.inventory("honest"), b"x", msg_id="h")
    await eventually(lambda: taker.of("honest"))
    await eventually(lambda: taker.of("flooder")[-1:] == [b"39"])

    async def none_waits():
        return await bus.lag("INVENTORY", "enrich") == 0

    await eventually(none_waits)


async def test_a_share_of_parts_counts_what_a_message_holds(bus):
    """Small events in a batch: bytes and messages of them are few."""
    share = Share(rate=1 / 3600, burst=100.0)
    fair = Fair(Share(1000.0, 1000.0), parts=share, count=int, beyond="later")
    taker = await ten_of_each(bus, fair, b"60", b"6")
    assert len(taker.of("flooder")) == 2


async def test_what_fails_is_found_by_halves_and_holds_up_nobody(bus):
    for n in range(256):
        name = b"bad" if n == 77 else b"good%d" % n
        await bus.publish(subjects.acks(f"h{n}"), name, msg_id=str(n))
    taker, dead = Taker(), Taker()
    await bus.consume("ACKS", "orchestrator", taker, linger=0.1)
    await bus.consume("DEAD", "operators", lambda messages: noted(dead, messages))
    await eventually(lambda: len(taker.got) == 255)
    await eventually(lambda: dead.got, 15)
    assert taker.calls < 60
    assert len(dead.got) == 1


async def test_what_waits_for_our_surroundings_is_not_taken_apart(bus):
    calls, got = [], []

    async def handler(messages):
        calls.append(len(messages))
        if len(calls) == 1:
            raise Unavailable("the store is away")
        got.extend(messages)

    for n in range(100):
        await bus.publish(subjects.acks(f"h{n}"), b"x", msg_id=str(n))
    await bus.consume("ACKS", "orchestrator", handler, linger=0.2)
    await eventually(lambda: len({message.subject for message in got}) == 100)
    assert len(calls) < 10


async def noted(taker, messages):
    taker.got += messages
