"""The tree of cgroups is read beside the event loop, and what happens meanwhile is not lost."""

import asyncio
import os
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegisflux.agent import reading
from aegisflux.agent.cgroups import CgroupTree
from services.test_agent_cgroups import STEPS, prune, step
from support.agents import AgentLab

OVERFLOW = reading.EVENT.pack(-1, reading.IN_Q_OVERFLOW, 0, 0)


class Told(CgroupTree):
    """A tree of a test's folder; `heard` is set when it tells of a change."""

    def __init__(self, root, **given):
        super().__init__(root, **given)
        self.heard = asyncio.Event()
        assert self.on_change(self.heard.set)

    async def told(self):
        """The tree once it tells of a change."""
        await asyncio.wait_for(self.heard.wait(), 10)
        self.heard.clear()
        return sorted(await self.scan())


@pytest.fixture
def readers(monkeypatch):
    """The threads that read directories, one for each directory."""
    threads, scandir = [], os.scandir

    def noted(path):
        threads.append(threading.get_ident())
        return scandir(path)

    monkeypatch.setattr(reading.os, "scandir", noted)
    return threads


async def lose(tree):
    """Lose the events that wait, as the kernel does when there are too many: then it says so."""
    os.read(tree._fd, 1 << 16)
    tree._now.take_events(OVERFLOW)


async def overflow(tree, root):
    asyncio.get_running_loop().remove_reader(tree._fd)
    (root / "lost").mkdir()
    await lose(tree)
    tree._hear(True)
    (root / "seen").mkdir()
    assert await tree.told() == ["a", "a/b", "lost", "seen"]


async def safety_net(tree, root):
    assert not await tree.rescan()


async def first(tree, root):
    tree._unread = True
    assert sorted(await tree.scan()) == ["a", "a/b"]


@pytest.mark.parametrize("why", [first, safety_net, overflow])
async def test_no_directory_is_read_on_the_loop(tmp_path, readers, why):
    (tmp_path / "a/b").mkdir(parents=True)
    tree = Told(tmp_path)
    try:
        await tree.scan()
        readers.clear()
        await why(tree, tmp_path)
        assert readers
        assert threading.get_ident() not in readers
    finally:
        tree.close()


async def test_what_an_event_opens_is_read_on_the_loop_as_far_as_it_is_small(tmp_path, readers, monkeypatch):
    """A user's directory with very many cgroups that root takes back."""
    monkeypatch.setattr(reading, "READ_AT_ONCE", 4)
    for n in range(40):
        (tmp_path / f"user/{n}").mkdir(parents=True)
    (tmp_path / "user").chmod(0o777)
    tree = Told(tmp_path)
    try:
        assert list(await tree.scan()) == ["user"]
        readers.clear()
        (tmp_path / "user").chmod(0o755)
        found = await tree.told()
        while len(found) < 41:
            found = await tree.told()
        assert 0 < readers.count(threading.get_ident()) <= 4
    finally:
        tree.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(STEPS, STEPS, STEPS, st.booleans())
def test_what_happens_while_the_tree_is_read_is_not_lost(tmp_path, before, after, later, listens):
    """Before the thread begins and after it ended; the loop goes on meanwhile."""

    async def live() -> None:
        async def run(read, *args):
            for kind, path in before:
                step(tmp_path, kind, path)
            await asyncio.sleep(0)
            differs = await asyncio.to_thread(read, *args)
            for kind, path in after:
                step(tmp_path, kind, path)
            await asyncio.sleep(0)
            return differs

        tree = Told(tmp_path, run=run)
        try:
            await tree.scan()
            if listens:
                await tree.rescan()
            for kind, path in later:
                step(tmp_path, kind, path)
            for _ in range(6):
                await asyncio.sleep(0)
            while tree._again is not None and not tree._again.done():
                await tree._again
            fresh, now = CgroupTree(tmp_path), tree._now
            assert dict(await tree.scan()) == dict(await fresh.scan())
            assert tree.delegated == fresh.delegated
            assert set(now.tree) <= set(now.numbers), "all that is known is watched"
        finally:
            tree.close()
            prune(tmp_path)

    asyncio.run(live())


async def test_what_is_closed_while_it_is_read_stays_closed(tmp_path):
    """The thread has a descriptor of its own: the agent's number may be another file's by then."""
    (tmp_path / "a").mkdir()
    ended = asyncio.Event()

    async def run(read, *args):
        tree.close()
        differs = await asyncio.to_thread(read, *args)
        ended.set()
        return differs

    tree = Told(tmp_path, run=run)
    open_before = len(os.listdir("/proc/self/fd"))
    assert list(await tree.scan()) == ["a"]
    assert ended.is_set()
    assert len(os.listdir("/proc/self/fd")) < open_before + 1


async def test_who_starts_is_told_of_what_comes_after_the_first_reading(monkeypatch):
    """So that one reading is enough for the services to be bound, and no later start is missed."""
    lab = await AgentLab().begin()
    await lab.desire(lab.plane.service(lab.one_edge()))
    lab.kernel.close()
    lab.runner, order = lab.agent(), []
    on_change, scan, bind = lab.cgroups.on_change, lab.cgroups.scan, lab.kernel.bind

    def listened(call):
        order.append("listens")
        return on_change(call)

    async def read():
        order.append("reads")
        return await scan()

    def bound(bindings):
        order.append("binds")
        return bind(bindings)

    for where, name, call in (
        (lab.cgroups, "on_change", listened),
        (lab.cgroups, "scan", read),
        (lab.kernel, "bind", bound),
    ):
        monkeypatch.setattr(where, name, call)
    stop, ready = asyncio.Event(), asyncio.Event()
    life = asyncio.create_task(lab.runner.run(stop, ready.set))
    await ready.wait()
    stop.set()
    await life
    assert order[:3] == ["listens", "reads", "binds"]
