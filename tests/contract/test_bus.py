"""What every bus promises; one suite for the bus in memory and for NATS."""

import asyncio
import time

import pytest
import pytest_asyncio

from aegisflux.adapters.bus import consumer
from aegisflux.adapters.bus.memory import Broker, MemoryBus
from aegisflux.domain.errors import Invalid, OverLimit, Refused, Unavailable
from aegisflux.wire import subjects
from support.engines import eventually, running_nats

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server(tmp_path_factory):
    async with running_nats(tmp_path_factory.mktemp("nats")) as lab:
        yield lab


@pytest_asyncio.fixture(loop_scope="module", params=["memory", "nats"])
async def bus(request, server):
    """A bus with empty streams."""
    if request.param == "memory":
        made = MemoryBus(Broker())
        await made.ensure_streams()
        yield made
        await made.close()
        return
    async with server.control() as made:
        await made.ensure_streams()
        yield made
        for stream in subjects.STREAMS:
            await made.call(f"$JS.API.STREAM.DELETE.{stream.name}", b"")


ACKS = subjects.acks("web1")


class Taker:
    """A batch handler that notes payloads and raises what it is told to, by payload."""

    def __init__(self, **errors) -> None:
        self.got, self.batches, self.errors = [], [], errors

    async def __call__(self, messages):
        self.batches.append([message.payload.decode() for message in messages])
        for message in messages:
            error = self.errors.get(message.payload.decode())
            if error is not None:
                raise error
        self.got += self.batches[-1]


async def test_streams_are_made_once(bus):
    assert await bus.ensure_streams() == ()


async def test_the_last_value_is_the_newest(bus):
    where = subjects.desired("web1")
    assert await bus.last(where) is None
    first = await bus.publish(where, b"one", msg_id="web1:1", headers={"Kind": "manifest"})
    second = await bus.publish(where, b"two", msg_id="web1:2")
    assert second > first
    found = await bus.last(where)
    assert (found.subject, found.payload, found.sequence) == (where, b"two", second)
    assert await bus.last(subjects.desired("web2")) is None


async def test_headers_travel(bus):
    await bus.publish(ACKS, b"x", msg_id="x", headers={"traceparent": "00-ab"})
    assert (await bus.last(ACKS)).headers["traceparent"] == "00-ab"


@pytest.mark.parametrize(
    ("stream", "subject"),
    [("MAPS", subjects.MAPS), ("EVENTS_RAW", subjects.RAW), ("DEAD", subjects.dead("acks"))],
)
async def test_the_same_id_is_stored_once_where_only_our_services_publish(bus, stream, subject):
    taker = Taker()
    assert await bus.publish(subject, b"a", msg_id="1") == await bus.publish(subject, b"a", msg_id="1")
    await bus.publish(subject, b"b", msg_id="2")
    await bus.consume(stream, "reader", taker)
    await eventually(lambda: "b" in taker.got)
    assert taker.got == ["a", "b"]


@pytest.mark.parametrize("how", [subjects.acks, subjects.heartbeat, subjects.telemetry, subjects.inventory])
async def test_no_id_suppresses_a_message_where_hosts_publish(bus, how):
    """An id that one host chose first would be the end of another one's message."""
    first = await bus.publish(how("web1"), b"a", msg_id="1")
    assert await bus.publish(how("web2"), b"b", msg_id="1") > first
    assert await bus.publish(how("web1"), b"c", msg_id="1") > first + 1
    assert [(await bus.last(how(host))).payload for host in ("web1", "web2")] == [b"c", b"b"]
    assert "Nats-Msg-Id" not in (await bus.last(how("web1"))).headers


async def test_a_durable_reader_goes_on_where_it_stopped(bus):
    first, second, other = Taker(), Taker(), Taker()
    await bus.publish(ACKS, b"a", msg_id="1")
    reading = await bus.consume("ACKS", "reader", first)
    await eventually(lambda: first.got == ["a"])
    await asyncio.sleep(0.05)
    await reading.close()
    await bus.publish(ACKS, b"b", msg_id="2")
    await bus.consume("ACKS", "reader", second)
    await bus.consume("ACKS", "another", other)
    await eventually(lambda: second.got == ["b"] and other.got == ["a", "b"])


async def test_many_messages_come_in_batches_and_in_order(bus):
    taker = Taker()
    await asyncio.gather(*(bus.publish(subjects.acks(f"h{n}"), b"%d" % n, msg_id=str(n)) for n in range(600)))
    await bus.consume("ACKS", "reader", taker, batch=100)
    await eventually(lambda: len(taker.got) == 600)
    assert max(map(len, taker.batches)) <= 100
    assert len(set(taker.got)) == 600


async def test_a_refused_message_becomes_a_dead_letter_and_the_others_are_handled(bus):
    taker, dead = Taker(bad=Refused("no such host")), []

    async def bury(messages):
        dead.extend(messages)

    for payload in ("good", "bad", "better"):
        await bus.publish(ACKS, payload.encode(), msg_id=payload)
    await bus.consume("ACKS", "reader", taker)
    await bus.consume("DEAD", "operators", bury)
    await eventually(lambda: dead and {"good", "better"} <= set(taker.got))
    assert (dead[0].payload, dead[0].subject) == (b"bad", "dead.acks")
    assert dead[0].headers["Aegisflux-Reason"] == "Refused: no such host"
    assert dead[0].headers["Aegisflux-Subject"] == ACKS


async def test_what_is_unavailable_now_comes_again(bus):
    taker = Taker(a=Unavailable("database away"))
    await bus.publish(ACKS, b"a", msg_id="1")
    await bus.consume("ACKS", "reader", taker)
    await eventually(lambda: len(taker.batches) >= 2)
    taker.errors.clear()
    await eventually(lambda: taker.got == ["a"])


async def test_a_handler_that_fails_twice_gives_a_dead_letter(bus):
    taker, dead = Taker(a=ValueError("bug")), Taker()
    await bus.publish(ACKS, b"a", msg_id="1")
    await bus.consume("ACKS", "reader", taker)
    await bus.consume("DEAD", "operators", dead)
    await eventually(lambda: dead.got == ["a"], 15)
    assert len(taker.batches) == 2


async def test_watching_hears_new_messages(bus):
    heard = []

    async def hear(message):
        heard.append((message.subject, message.payload))
        if len(heard) == 1:
            raise ValueError("a failing handler does not end the watching")

    await bus.publish(subjects.MAPS, b"old", msg_id="0")
    watching = await bus.watch(subjects.MAPS, hear)
    for number in range(3):
        await bus.publish(subjects.MAPS, b"%d" % number, msg_id=f"m{number}")
    await eventually(lambda: len(heard) == 3)
    assert heard == [(subjects.MAPS, b"0"), (subjects.MAPS, b"1"), (subjects.MAPS, b"2")]
    await watching.close()
    await bus.publish(subjects.MAPS, b"late", msg_id="late")
    assert len(heard) == 3


async def test_a_request_is_answered_by_whoever_serves_the_subject(bus):
    async def answer(message):
        return subjects.host_of(message.subject).encode() + b":" + message.payload

    await bus.serve(subjects.ALL_CONTENT, answer, ["web1", *(f"h{n}" for n in range(200))])
    assert await bus.request(subjects.content("web1"), b"chunk") == b"web1:chunk"
    found = await asyncio.gather(*(bus.request(subjects.content(f"h{n}"), b"") for n in range(200)))
    assert found == [b"h%d:" % n for n in range(200)]


@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (Refused("unknown digest"), Refused, "unknown digest"),
        (Unavailable("no database"), Unavailable, "no database"),
        (ValueError("secret detail"), Unavailable, "its log says why"),
    ],
)
async def test_the_responders_error_reaches_the_asker(bus, raised, expected, text):
    async def answer(_message):
        raise raised

    await bus.serve(subjects.ALL_CONTENT, answer, ["web1"])
    with pytest.raises(expected, match=text):
        await bus.request(subjects.content("web1"), b"")


async def test_nobody_answers(bus):
    with pytest.raises(Unavailable, match="nobody answers"):
        await bus.request(subjects.content("web1"), b"")


async def test_too_large_a_message_is_refused_with_the_limit(bus):
    with pytest.raises(OverLimit, match="over the limit message"):
        await bus.publish(ACKS, bytes(subjects.MAX_MESSAGE + 1), msg_id="large")


async def test_a_subject_of_no_stream_has_no_last_value(bus):
    with pytest.raises(Invalid):
        await bus.last("nowhere.at.all")


async def test_a_stream_is_read_in_pages_and_nothing_is_taken_away(bus):
    for number in range(5):
        await bus.publish(subjects.acks(f"h{number % 2}"), b"%d" % number, msg_id=str(number))
    first = await bus.read("ACKS", 0, 3)
    assert [m.payload for m in first] == [b"0", b"1", b"2"]
    assert [m.payload for m in await bus.read("ACKS", first[-1].sequence, 3)] == [b"3", b"4"]
    assert await bus.read("ACKS", first[-1].sequence + 2, 3) == []
    odd = await bus.read("ACKS", 0, 10, subjects.acks("h1"))
    assert [(m.subject, m.payload) for m in odd] == [("agent.acks.h1", b"1"), ("agent.acks.h1", b"3")]
    assert [m.payload for m in await bus.read("ACKS", 0, 10)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_what_is_read_says_when_it_was_stored_and_has_its_headers(bus):
    before = time.time_ns()
    await bus.publish(ACKS, b"x", msg_id="x", headers={"Kind": "test"})
    taker = []

    async def take(messages):
        taker.extend(messages)

    await bus.consume("ACKS", "reader", take)
    await eventually(lambda: taker)
    (found,) = await bus.read("ACKS", 0, 10)
    assert found.headers["Kind"] == "test"
    assert before - 10**9 < found.stored_ns < time.time_ns() + 10**9
    assert taker[0].stored_ns == found.stored_ns


async def test_an_empty_stream_has_nothing_to_read_and_no_stream_is_unavailable(bus):
    assert await bus.read("ACKS", 0, 10) == []
    with pytest.raises(Unavailable):
        await bus.read("NOTHING", 0, 10)


async def test_the_lag_counts_what_was_not_handled(bus):
    taker = Taker(b=Unavailable("later"))
    assert await bus.lag("ACKS", "reader") == 0
    for payload in (b"a", b"b"):
        await bus.publish(ACKS, payload, msg_id=payload.decode())
    await bus.consume("ACKS", "reader", taker)
    await eventually(lambda: "a" in taker.got)

    async def one_left():
        return await bus.lag("ACKS", "reader") == 1

    await eventually(one_left)
    taker.errors.clear()

    async def none_left():
        return await bus.lag("ACKS", "reader") == 0

    await eventually(none_left)


async def test_work_that_takes_longer_than_the_bus_waits_is_not_given_twice(bus, monkeypatch):
    monkeypatch.setattr(consumer, "ACK_SECONDS", 0.4)
    monkeypatch.setattr(consumer, "PROGRESS_SECONDS", 0.1)
    given, done = [], []

    async def slow(messages):
        given.extend(m.payload for m in messages)
        await asyncio.sleep(1.2)
        done.append(len(messages))

    await bus.publish(ACKS, b"a", msg_id="a")
    await bus.consume("ACKS", "reader", slow)
    await eventually(lambda: done)

    async def nothing_left():
        return await bus.lag("ACKS", "reader") == 0

    await eventually(nothing_left)
    assert given == [b"a"]
