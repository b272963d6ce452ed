"""Waking up when there is something to do."""

import asyncio
import os
import socket

import pytest
from tests.services.test_agent_telemetry import AWAY, Bench, numbered

from aegisflux.agent.wakes import Bell, Watch
from support.sources import FakeSource, Kernel

pytestmark = pytest.mark.asyncio


async def test_a_bell_is_heard_once_and_what_was_rung_before_counts():
    bell = Bell()
    bell.ring()
    bell.ring()
    assert await bell.heard()
    assert not await bell.heard(0)
    asyncio.get_running_loop().call_soon(bell.ring)
    assert await bell.heard(60)
    assert not await bell.heard(0.001)


async def test_a_task_that_is_cancelled_while_it_waits_leaves_the_bell_as_it_was():
    bell = Bell()
    waiting = asyncio.create_task(bell.heard(60))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await asyncio.gather(waiting, return_exceptions=True) != [True]
    bell.ring()
    assert await bell.heard(60)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def test_a_watch_calls_once_until_it_is_armed_again(pair):
    ours, theirs = pair
    calls = []
    bell = Bell()
    watch = Watch(lambda: (calls.append(1), bell.ring()))
    watch.arm(ours.fileno())
    watch.arm(ours.fileno())
    assert not await bell.heard(0.001)
    theirs.send(b"x")
    assert await bell.heard(5)
    assert not await bell.heard(0.01)
    assert calls == [1]
    watch.arm(ours.fileno())
    assert await bell.heard(5), "it is still readable"
    assert calls == [1, 1]
    watch.close()
    watch.close()


async def test_a_watched_descriptor_may_be_closed_and_its_number_given_to_another_file(pair):
    ours, theirs = pair
    bell = Bell()
    watch = Watch(bell.ring)
    number = ours.fileno()
    watch.arm(number)
    other, peer = socket.socketpair()
    with other, peer:
        os.dup2(other.fileno(), number)
        theirs.send(b"x")
        assert await bell.heard(5), "the file that was watched, whatever its number means now"
        watch.arm(number, anew=True)
        assert not await bell.heard(0.001)
        peer.send(b"x")
        assert await bell.heard(5)
    watch.close()


@pytest.mark.parametrize("fd", [None, 10**6])
async def test_what_cannot_be_watched_is_not(pair, fd):
    ours, theirs = pair
    bell = Bell()
    watch = Watch(bell.ring)
    watch.arm(ours.fileno())
    watch.arm(fd)
    theirs.send(b"x")
    assert not await bell.heard(0.01)
    watch.close()


class Waking(FakeSource):
    """It says itself when there is something to read."""

    fd = 0


def looked_at(folder):
    """Such a source, and a bench that has just found nothing in it."""
    source = Waking(Kernel())
    bench = Bench(folder, source)
    bench.step()
    return source, bench


async def test_a_source_that_wakes_us_is_not_looked_at_before(tmp_path):
    source = Waking(Kernel())
    bench = Bench(tmp_path, source)
    assert bench.step() == 5.0
    assert bench.collector.waits_for() == [0]
    assert bench.step(1) == 4.0
    assert source.calls.count("read") == 1
    source.kernel.happen(3)
    assert bench.collector.wake(bench.now) == 0.0, "a second after the last reading: at once"
    assert bench.collector.waits_for() == []
    assert bench.step(0) == 5.0
    assert bench.paths() == numbered(3)


async def test_a_burst_is_read_in_batches_however_often_it_wakes_us(tmp_path):
    source, bench = looked_at(tmp_path)
    source.kernel.happen(1)
    assert bench.collector.wake(bench.now + 0.25) == 0.75, "no sooner than a second after the last reading"
    assert bench.step(0.25) == 0.75
    source.kernel.happen(50)
    assert bench.step(0.75) == 5.0
    assert source.calls.count("read") == 2
    assert bench.paths() == numbered(51)


async def test_a_wake_up_that_was_missed_costs_seconds_and_no_event(tmp_path):
    source, bench = looked_at(tmp_path)
    source.kernel.happen(1)
    assert bench.step(5) == 5.0
    assert bench.paths() == numbered(1)


async def test_above_the_rate_a_source_does_not_wake_us_for_what_we_know(tmp_path):
    source = Waking(Kernel())
    bench = Bench(tmp_path, source, rate=10)
    source.kernel.happen(150)
    assert bench.step() == 0.05
    assert bench.collector.waits_for() == []


async def test_after_a_panic_everything_is_looked_at(tmp_path):
    source, bench = looked_at(tmp_path)
    source.refuse["read"] = AWAY
    bench.collector.again(bench.now)
    assert bench.step(0) == 1.0
    del source.refuse["read"]
    bench.collector.again(bench.now)
    assert bench.step(0) == 5.0
    assert source.calls.count("open") == 2
