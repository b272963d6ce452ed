"""Requests of hosts: each has a window and a share; what is beyond costs nobody else anything."""

# ruff: noqa: F811 - fixtures of another module are arguments here

import asyncio
import time

import pytest
import pytest_asyncio
from tests.contract.test_bus import server  # noqa: F401 - a fixture
from tests.support.engines import eventually, opened

from aegisflux.adapters.bus import serving
from aegisflux.adapters.bus.line import MOST_HEADERS, Line
from aegisflux.adapters.bus.memory import Broker, MemoryBus
from aegisflux.domain.errors import Busy, Refused, Unavailable, Unheard
from aegisflux.domain.shares import Share
from aegisflux.domain.windows import Asking
from aegisflux.wire import subjects

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
FLOODER, HONEST = subjects.content("flooder"), subjects.content("honest")
HOSTS = ("flooder", "honest")


@pytest_asyncio.fixture(loop_scope="module", params=["memory", "nats"])
async def bus(request, server):
    """A bus that serves nothing yet."""
    if request.param == "memory":
        made = MemoryBus(Broker())
        yield made
        await made.close()
        return
    async with server.control() as made:
        yield made


async def chunk(message):
    return message.payload + b" of " + message.subject.rpartition(".")[2].encode()


async def outcomes(bus, subject, count, payload=b"x"):
    """What so many requests at once get."""
    asked = (bus.request(subject, payload, 5) for _ in range(count))
    return await asyncio.gather(*asked, return_exceptions=True)


async def flooded(bus, count):
    """So many requests of the flooder that wait, and one of the honest host after them."""
    many = [asyncio.ensure_future(bus.request(FLOODER, b"", 10)) for _ in range(count)]
    await asyncio.sleep(0.05)
    return many, asyncio.ensure_future(bus.request(HONEST, b"", 10))


async def test_who_is_not_served_is_heard_by_nobody(bus):
    served = await bus.serve(subjects.ALL_CONTENT, chunk, ["web1"])

    async def heard():
        found = []
        for host in ("web1", "web2", "web3"):
            try:
                found.append(await bus.request(subjects.content(host), b"x") == b"x of " + host.encode())
            except Unheard:
                found.append(False)
        return found

    assert await heard() == [True, False, False]
    await served.add("web2")
    assert await heard() == [True, True, False]
    await served.remove("web1")
    assert await heard() == [False, True, False]
    await served.only(["web1", "web3"])
    assert await heard() == [True, False, True]
    await served.close()
    assert await heard() == [False, False, False]


async def test_one_subject_without_a_wildcard_is_of_its_host(bus):
    await bus.serve(HONEST, chunk)
    assert await bus.request(HONEST, b"x") == b"x of honest"


async def test_who_asks_one_after_the_other_notices_nothing_of_windows(bus):
    await bus.serve(subjects.ALL_CONTENT, chunk, HOSTS)
    for n in range(300):
        assert await bus.request(HONEST, b"%d" % n) == b"%d of honest" % n


async def test_of_a_flood_a_window_is_taken_and_the_others_are_told_at_once(bus):
    """57,600 requests of one host in 8 s made another wait for 11.5 s; 14,500 a second, a panic for 15 s."""
    gate, came = asyncio.Event(), []

    async def answer(message):
        came.append(message.subject)
        await gate.wait()
        return b"chunk"

    await bus.serve(subjects.ALL_CONTENT, answer, HOSTS)
    many = [asyncio.ensure_future(bus.request(FLOODER, b"", 10)) for _ in range(500)]
    await eventually(lambda: sum(one.done() for one in many) == 500 - 8)
    honest = asyncio.ensure_future(bus.request(HONEST, b"", 10))
    await eventually(lambda: HONEST in came)
    gate.set()
    assert await honest == b"chunk"
    done = await asyncio.gather(*many, return_exceptions=True)
    assert sum(one == b"chunk" for one in done) == 8 == came.count(FLOODER)
    assert sum(isinstance(one, Unheard) for one in done) == 492


async def test_a_host_has_a_share_of_requests_and_is_heard_again(bus):
    asking = Asking(window=4, share=Share(rate=20.0, burst=10.0))
    await bus.serve(subjects.ALL_CONTENT, chunk, HOSTS, asking)
    began = time.monotonic()
    done = [await outcomes(bus, FLOODER, 1) for _ in range(200)]
    most = 10 + 4 + 20 * (time.monotonic() - began) + 4
    assert 10 <= sum(one == b"x of flooder" for (one,) in done) <= most
    assert await bus.request(HONEST, b"x") == b"x of honest"

    async def heard_again():
        return await outcomes(bus, FLOODER, 1) == [b"x of flooder"]

    await eventually(heard_again)


async def test_too_large_a_request_is_refused_and_its_host_is_not_heard_for_a_while(bus, monkeypatch):
    monkeypatch.setattr("aegisflux.domain.windows.BARRED_SECONDS", 0.5)
    came = []

    async def answer(message):
        came.append(message.subject)
        return b"chunk"

    await bus.serve(subjects.ALL_CONTENT, answer, HOSTS)
    assert await bus.request(FLOODER, bytes(4096)) == b"chunk"
    with pytest.raises(Refused, match="4096"):
        await bus.request(FLOODER, bytes(4097))
    assert {type(one) for one in await outcomes(bus, FLOODER, 5)} == {Unheard}
    assert await bus.request(HONEST, b"") == b"chunk"
    assert came == [FLOODER, HONEST]

    async def heard_again():
        return await outcomes(bus, FLOODER, 1) == [b"chunk"]

    await eventually(heard_again)


async def test_who_never_wants_an_answer_uses_its_share_all_the_same(server):
    came = []

    async def answer(message):
        came.append(message)
        return b"chunk"

    asking = Asking(window=4, share=Share(rate=1.0, burst=20.0))
    async with server.control() as bus, opened(server.bus(server.agent("flooder"))) as agent:
        await bus.serve(subjects.ALL_CONTENT, answer, HOSTS, asking)
        for _ in range(100):
            await agent.send(FLOODER, b"")
        assert await bus.request(HONEST, b"") == b"chunk"
        assert len(came) == 1
        for _ in range(100):
            await outcomes(agent, FLOODER, 1)
        assert 1 < len(came) < 30


async def test_headers_of_a_request_are_never_parsed_nor_any_that_are_long(server, monkeypatch):
    parsed, parse = [], Line._process_headers

    async def note(self, headers):
        parsed.append(len(headers or b""))
        return await parse(self, headers)

    async with server.control() as bus, opened(server.bus(server.agent("flooder"))) as agent:
        await bus.serve(subjects.ALL_CONTENT, chunk, HOSTS)
        await bus.ensure_streams()
        monkeypatch.setattr(Line, "_process_headers", note)
        short, long = {"A": "b"}, {f"h{n}": "" for n in range(50_000)}
        assert (await agent._nc.request(FLOODER, b"x", 5, headers=short)).data == b"x of flooder"
        said = await agent._nc.request(FLOODER, b"x", 5, headers=long)
        assert "request" in said.headers[serving.REFUSED]
        got = []

        async def take(messages):
            got.extend(messages)

        await bus.consume("HEARTBEATS", "orchestrator", take)
        stored = dict(list(long.items())[:6000])  # a stream takes 64 KiB of headers
        await agent._nc.publish(subjects.heartbeat("flooder"), b"beat", headers=stored)
        await eventually(lambda: got)
        assert (got[0].payload, dict(got[0].headers)) == (b"beat", {})
        assert got[0].sequence == 1
    assert max(parsed) <= MOST_HEADERS
    await eventually(lambda: any("flooder 1" in words and "larger" in words for words in server.troubles))


async def test_after_a_reconnect_all_are_heard_and_nothing_is_forgiven(server):
    hosts = [f"h{n}" for n in range(3000)]
    async with server.control() as bus:
        await bus.serve(subjects.ALL_CONTENT, chunk, [*hosts, *HOSTS])
        with pytest.raises(Refused):
            await bus.request(FLOODER, bytes(5000))
        await bus._nc.close()
        await eventually(lambda: not bus.connected)
        await bus.ready(10)
        for host in ("h0", "h511", "h512", "h2999", "honest"):
            assert await bus.request(subjects.content(host), b"x") == b"x of " + host.encode()
        with pytest.raises(Unheard):
            await bus.request(FLOODER, b"x")
        assert len(bus._nc.served) == len(hosts) + 1


async def test_requests_that_wait_are_answered_host_by_host(server, monkeypatch):
    monkeypatch.setattr(serving, "AT_ONCE", 2)
    order, gate = [], asyncio.Event()

    async def answer(message):
        await gate.wait()
        order.append(message.subject)
        return b"chunk"

    async with server.control() as bus:
        await bus.serve(subjects.ALL_CONTENT, answer, HOSTS)
        many, honest = await flooded(bus, 8)
        await asyncio.sleep(0.05)
        gate.set()
        assert await honest == b"chunk"
        assert order.index(HONEST) <= 4
        await asyncio.gather(*many)


async def test_of_a_queue_that_is_full_the_longest_part_goes(server, monkeypatch):
    monkeypatch.setattr(serving, "AT_ONCE", 1)
    monkeypatch.setattr(serving, "IN_ALL", 4)
    gate = asyncio.Event()

    async def answer(_message):
        await gate.wait()
        return b"chunk"

    async with server.control() as bus:
        await bus.serve(subjects.ALL_CONTENT, answer, HOSTS)
        many, honest = await flooded(bus, 5)
        await eventually(lambda: any(one.done() for one in many))
        gate.set()
        assert await honest == b"chunk"
        done = await asyncio.gather(*many, return_exceptions=True)
    assert [type(one) for one in done].count(Busy) == 1


async def test_a_host_has_its_share_of_the_bytes_of_answers(server, monkeypatch):
    monkeypatch.setattr(serving, "ANSWERS", Share(rate=1000.0, burst=50_000.0))

    async def answer(_message):
        return bytes(40_000)

    async with server.control() as bus:
        await bus.serve(subjects.ALL_CONTENT, answer, HOSTS)
        assert len(await bus.request(FLOODER, b"")) == 40_000
        with pytest.raises(Unavailable, match="no answer within"):
            await bus.request(FLOODER, b"", 0.5)
        assert len(await bus.request(HONEST, b"")) == 40_000
