"""What goes wrong beside the network: events that are lost, courtesies that fail, strangers, deaths."""

import asyncio
import ctypes
import errno

import pytest
from msgspec.structs import replace

from aegisflux.agent import binder, reading, remember
from aegisflux.agent.cgroups import CgroupTree
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.panic import Panic
from aegisflux.ports.datapath import Generation
from support.agents import AgentLab, body, edges


@pytest.fixture
async def lab():
    return await AgentLab().begin()


def content(lab, version=1, service_id=101, **fields):
    return lab.plane.content(body(version, service_id, edges=edges("10.0.0.0/8 tcp/443"), **fields))


async def test_a_scan_finds_what_no_event_told(tmp_path):
    tree = CgroupTree(tmp_path)
    heard: list[bool] = []
    assert tree.on_change(lambda: heard.append(True))
    await tree.scan()
    try:
        asyncio.get_running_loop().remove_reader(tree._fd)  # events are lost
        (tmp_path / "late").mkdir()
        assert await tree.scan() == {}
        assert await tree.rescan()
        assert list(await tree.scan()) == ["late"]
    finally:
        asyncio.get_running_loop().add_reader(tree._fd, tree._readable)
        tree.close()


async def test_where_watches_run_out_the_tree_is_read(tmp_path, monkeypatch):
    (tmp_path / "slice").mkdir()
    tree = CgroupTree(tmp_path)
    watch = reading.libc.inotify_add_watch

    def full(fd, path, flags):
        if path.endswith(b"slice"):
            ctypes.set_errno(errno.ENOSPC)
            return -1
        return watch(fd, path, flags)

    monkeypatch.setattr(reading.libc, "inotify_add_watch", full)
    tree.on_change(lambda: None)
    try:
        await tree.scan()
        assert tree.blind
        (tmp_path / "slice" / "born").mkdir()
        assert "slice/born" in await tree.scan()
        monkeypatch.undo()
        await tree.rescan()
        assert not tree.blind
    finally:
        tree.close()


async def test_the_runner_scans_always_while_it_is_blind(lab):
    """So a glob is bound within a second although no event comes."""
    lab.runner._scanned = float("inf")
    await lab.runner.rescan()
    assert not lab.runner._tree_changed.is_set()
    lab.cgroups.blind = True
    await lab.runner.rescan()
    assert lab.runner._tree_changed.is_set(), "who binds reads a tree that is blind"


async def test_sockets_that_cannot_be_cut_are_no_failure(lab):
    lab.kernel.cut = failing
    await lab.desire(lab.plane.service(content(lab, established="cut")))
    assert lab.said() == ["ack 101 v1"]
    assert any("not cut" in line for line in lab.logs)


def failing(_slot: int) -> int:
    raise OSError(1, "setns")


async def test_a_stranger_in_the_kernel_is_removed(lab):
    """In a slot of nobody, and as a candidate that nobody wants."""
    await lab.desire(lab.plane.service(content(lab)))
    made = content(lab, 7, 202)
    strange = Generation(
        202, 7, made.digest, made.tables, made.tables_digest, made.mode, "open", "keep", 2**62
    )
    for slot, role in ((9, "active"), (0, "candidate")):
        lab.kernel.flip(lab.kernel.load(slot, role, strange))
    await lab.runner.drift()
    assert lab.held() == ["active 101 v1"]
    assert lab.heartbeat().loss["drift"] == 2


async def test_a_changed_end_of_the_lease_is_drift(lab):
    """The same tables and mode, and another word for what holds after the lease."""
    await lab.desire(lab.plane.service(content(lab)))
    held = lab.kernel._slots[0].roles["active"]
    held.generation = replace(held.generation, on_expiry="closed")
    await lab.runner.drift()
    assert [h.on_expiry for h in lab.kernel.held()] == ["open"]
    assert lab.heartbeat().loss["drift"] == 1


async def test_a_death_after_a_trial_failed_does_not_try_it_again(lab):
    """The kernel went back, the book did not."""
    one, two = content(lab), content(lab, 2)
    await lab.desire(lab.plane.service(one))
    trial = lab.plane.service(two, confirm=30)
    await lab.desire(trial)
    lab.clocks.advance(30)
    back = lab.kernel.flip_back

    def dies(slot):
        back(slot)
        raise SystemExit

    lab.kernel.flip_back = dies
    with pytest.raises(SystemExit):
        await lab.runner.tick()
    lab.kernel.flip_back = back
    await lab.restart()
    await lab.runner.converge()
    assert lab.held() == ["active 101 v1"]
    assert lab.heartbeat().services[0].state == "reverted"


async def test_what_was_withdrawn_while_the_kernel_was_changed_goes(lab):
    await lab.desire(lab.plane.service(content(lab)))
    lab.kernel.tamper(0, content(lab, 9, established="cut").tables)
    held = lab.kernel._slots[0].roles["active"]
    held.generation = replace(held.generation, digest="sha256:" + "0" * 64)
    await lab.runner.receive(lab.plane.desired(lab.plane.service(None, service_id=101)))
    await lab.restart()
    assert lab.held() == []


async def test_a_panic_while_programs_are_attached_holds(lab):
    await lab.desire(lab.plane.service(content(lab)))
    lab.kernel.close()
    lab.runner = lab.agent()
    begin = lab.kernel.open

    def opened():
        begin()
        remember.write_panic(lab.store, Panic(0.0, "just now"))

    lab.kernel.open = opened
    await lab.runner.start()
    assert not lab.kernel.is_open
    assert lab.runner.panic is not None
    assert lab.heartbeat().panicked
    lab.kernel.open = begin
    lab.store.delete(remember.PANIC)
    await lab.runner.tick()
    assert lab.held() == ["active 101 v1"]


async def test_more_cgroups_than_can_be_bound_are_said_and_those_that_live_come_first(lab, monkeypatch):
    monkeypatch.setattr(binder, "MAX_BINDINGS", 3)
    lab.cgroups.tree = {"web": 11, "web/1": 12}
    await lab.desire(lab.plane.service(content(lab), selectors=("cgroup:web**",)))
    lab.cgroups.tree = {"web": 11, "web/2": 13, "web/3": 14}
    await lab.runner.bind()
    assert {b.path for b in lab.kernel.bindings()} == {"web", "web/2", "web/3"}
    lab.cgroups.tree = {"web": 11, **{f"web/{n}": 20 + n for n in range(5)}}
    await lab.runner.bind()
    assert any("3 at most" in line for line in lab.logs)
    await lab.runner.drift()
    assert lab.heartbeat().loss.get("drift", 0) == 0


async def test_a_state_folder_whose_socket_cannot_be_named_says_so(lab, tmp_path):
    from aegisflux.agent.control import SOCKET, Control

    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with pytest.raises(Unavailable, match="too long"):
        await Control(lab.runner, folder / SOCKET).open()
