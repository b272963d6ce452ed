"""Whose requests the orchestrator hears: enrolled hosts, at once and whatever changed while it looked."""

import asyncio

import msgspec
import pytest
from tests.support.control import WHO, running_plane
from tests.support.engines import eventually

from aegisflux.adapters.bus.memory import Broker, MemoryBus
from aegisflux.domain.errors import Unheard
from aegisflux.domain.manifest import ContentChunk, ContentRequest
from aegisflux.services.orchestrator.hearing import Hearing
from aegisflux.wire import subjects


class Store:
    """Knows hosts, and answers when it is let."""

    def __init__(self, *hosts):
        self.hosts, self.gate = set(hosts), asyncio.Event()
        self.gate.set()

    async def rows(self, name):
        assert name == "host_keys"
        found = [{"host_id": host} for host in sorted(self.hosts)]
        await self.gate.wait()
        return found


async def answer(_message):
    return b"x"


async def heard(bus, *hosts):
    """Those of the hosts that both subjects hear."""
    found = []
    for host in hosts:
        try:
            for subject in (subjects.content(host), subjects.credentials(host)):
                await bus.request(subject, b"")
            found.append(host)
        except Unheard:
            pass
    return found


async def begun(store):
    bus = MemoryBus(Broker())
    hearing = Hearing(bus, store)
    await hearing.begin(answer, answer)
    return bus, hearing


async def test_those_that_the_store_knows_are_heard_and_those_that_come_and_go():
    store = Store("a", "b")
    bus, hearing = await begun(store)
    assert await heard(bus, "a", "b", "c") == ["a", "b"]
    await hearing.add("c")
    await hearing.remove("a")
    assert await heard(bus, "a", "b", "c") == ["b", "c"]
    store.hosts = {"a", "c"}  # by another process
    await hearing.follow()
    assert await heard(bus, "a", "b", "c") == ["a", "c"]


async def test_what_changes_while_the_store_is_asked_counts():
    store = Store("a", "b")
    bus, hearing = await begun(store)
    store.gate.clear()
    following = asyncio.ensure_future(hearing.follow())
    await asyncio.sleep(0)
    await hearing.add("c")
    await hearing.remove("b")
    store.gate.set()
    await following
    assert await heard(bus, "a", "b", "c") == ["a", "c"]


@pytest.mark.engines
async def test_a_host_is_heard_from_its_enrolment_to_its_release(tmp_path):
    ask = msgspec.msgpack.encode(ContentRequest("sha256:" + "0" * 64, 1, 0))
    async with running_plane(tmp_path) as plane:
        agent = await plane.agent("web-1")
        told = await agent.bus.request(subjects.content("web-1"), ask)
        assert msgspec.msgpack.decode(told, type=ContentChunk).error
        assert await agent.bus.request(subjects.credentials("web-1"), b"")
        await plane.bus._nc.close()  # a reconnect
        await eventually(lambda: not plane.bus.connected)
        await plane.bus.ready(10)
        assert await agent.bus.request(subjects.credentials("web-1"), b"")
        await plane.orchestrator.hosts.release("web-1", WHO)
        assert await heard(plane.bus, "web-1") == []
