"""Panic and resume that reach an agent late or in another order: what was ended does not begin again."""

import asyncio
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegisflux.agent import rescue
from aegisflux.agent.control import line_of
from aegisflux.agent.notes import Note
from aegisflux.agent.panics import Flags, StateMedium
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.panic import Panic
from support.agent_socket import asked, listening
from support.agents import AgentLab

CALM = ["active 101 v1"]


class CommandLine:
    """What `aegisflux agent panic` and `resume` do beside an agent that is stuck: they write and delete the
    flag by themselves, and leave a line in the agent's socket."""

    def __init__(self, lab, path, *, writes=True):
        self._flags = Flags([StateMedium(lab.store)] if writes else [])
        self._path, self._clock = path, 100.0

    def panic(self):
        self._clock += 1
        fresh = Panic(self._clock, "locked out")
        self._say(do="panic", at=fresh.at, why=fresh.why)
        self._flags.keep(self._flags.standing() or fresh)

    def resume(self):
        self._clock += 1
        names = [word.at for word in self._flags.words()]
        self._flags.end()
        self._say(do="resume", at=self._clock, ended=names)

    def _say(self, **question):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.connect(str(self._path))
            line.sendall(line_of(question))


class NoKernel:
    """A kernel that holds nothing of ours: the agent's datapath is simulated."""

    def linked(self):
        return []

    attached = cut = linked

    def visible(self, _places):
        return None

    def detach(self, attached):
        assert not attached

    def unpin(self, attached):
        return list(attached)

    def describe(self, one):
        return one.name


async def enforcing():
    lab = await AgentLab().begin()
    await lab.desire(lab.plane.service(lab.one_edge()))
    return lab


def held(lab):
    return lab.held() if lab.kernel.is_open else []


async def settled(lab, path):
    for _ in range(3):
        await asked(path, do="status")
    await lab.runner.look()
    await lab.runner.drift()
    await lab.runner.converge()


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize(
    "commands",
    ["p", "r", "pr", "rp", "prp", "prpr", "ppr", "prr", "prprp", "prprpr", "rpr"],
)
async def test_an_agent_that_was_stuck_ends_as_it_was_last_told(tmp_path, commands, writes):
    """`p`: panic, `r`: resume, all of them before the agent reads the first one."""
    lab = await enforcing()
    async with listening(lab.runner, tmp_path) as path:
        shell = CommandLine(lab, path, writes=writes)
        for command in commands:
            (shell.panic if command == "p" else shell.resume)()
        await settled(lab, path)
    panicked = commands.endswith("p")
    assert (lab.runner.panic is not None, held(lab)) == (panicked, [] if panicked else CALM)
    if not panicked:
        assert lab.runner.flags.words() == []


@pytest.mark.parametrize("gone", [True, False])
async def test_a_panic_that_was_ended_before_it_was_read_does_not_begin(tmp_path, gone):
    lab = await enforcing()
    async with listening(lab.runner, tmp_path) as path:
        await asked(path, do="resume", at=9.0, ended=[7.0])
        if gone:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.connect(str(path))
                line.sendall(line_of({"do": "panic", "at": 7.0}))
        else:
            assert await asked(path, do="panic", at=7.0) == [{"panicked": False}]
        await settled(lab, path)
        assert (lab.runner.panic, held(lab), lab.runner.flags.words()) == (None, CALM, [])
        await asked(path, do="panic", at=7.5)
        assert (lab.runner.panic, held(lab)) == (Panic(7.5), []), "another panic is obeyed"


async def test_a_late_resume_says_nothing_of_a_panic_that_came_after_it(tmp_path):
    lab = await enforcing()
    later = Panic(20.0, "again")
    async with listening(lab.runner, tmp_path) as path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.connect(str(path))
            line.sendall(line_of({"do": "resume", "at": 19.0, "ended": [7.0]}))
        Flags([StateMedium(lab.store)]).keep(later)
        await settled(lab, path)
        assert (lab.runner.panic, held(lab), lab.runner.flags.words()) == (later, [], [later])
        await asked(path, do="resume", at=19.0)
        assert (lab.runner.panic, held(lab)) == (None, CALM), "who waits for the answer is obeyed"


async def test_a_new_panic_holds_although_the_flag_of_one_that_ended_cannot_be_deleted(tmp_path, monkeypatch):
    """Its only medium is read-only: whoever reads that alone takes the former panic for one that stands."""
    lab, medium = await enforcing(), Paper()
    lab.runner.flags = Flags([medium])
    await lab.runner.begin_panic(Panic(7.0, "first"))
    medium.works = False
    await lab.runner.end_panic()
    assert (lab.runner.panic, held(lab)) == (None, CALM)
    monkeypatch.setattr(rescue, "flags_of", lambda *_: Flags([medium]))
    note = Note("web1", str(tmp_path), "one", "", "", "simulated")
    about = rescue.Meant((note,), (), (), frozenset({"one"}))
    async with listening(lab.runner, tmp_path):
        await asyncio.to_thread(rescue.panic, about, "again", NoKernel(), lambda: 9.0)
        assert (lab.runner.panic, held(lab)) == (Panic(9.0, "again"), [])
        await lab.runner.look()
        await lab.runner.drift()
        assert lab.runner.panic == Panic(9.0, "again")
        await asyncio.to_thread(rescue.resume, about, NoKernel())
        assert (lab.runner.panic, held(lab)) == (None, CALM)


@pytest.mark.parametrize("step", ["take-down", "write"])
@pytest.mark.parametrize("outside", [True, False])
async def test_a_resume_while_a_panic_is_carried_out_ends_it(step, outside):
    """The datapath or the disk is slow; `outside`: the command line deletes the flag by itself, too."""
    lab = await enforcing()
    runner, busy, free = lab.runner, asyncio.Event(), asyncio.Event()
    slow = {"take-down": lab.kernel.panic, "write": runner.flags.keep}[step]

    async def blocking(call, *values):
        if call == slow and not busy.is_set():
            busy.set()
            await free.wait()
        return call(*values)

    object.__setattr__(runner.parts, "blocking", blocking)
    flag = Panic(7.0, "locked out")
    begins = asyncio.create_task(runner.begin_panic(flag))
    await busy.wait()
    if outside:
        shell = Flags([StateMedium(lab.store)])
        shell.keep(flag)
        shell.end()
    ends = asyncio.create_task(runner.end_panic([7.0]))
    for _ in range(20):
        await asyncio.sleep(0)
    free.set()
    await asyncio.gather(begins, ends)
    for _ in range(3):
        await runner.look()
    assert (runner.panic, runner.flags.words(), held(lab)) == (None, [], CALM)


@pytest.mark.parametrize("step", ["start", "drift", "end_panic", "_open_datapath"])
async def test_all_maps_of_the_kernel_are_read_beside_the_loop_and_only_for_what_no_pin_says(step):
    """There may be many thousand maps of others."""
    lab, beside, looked = AgentLab(), [False], []
    medium = Paper()
    medium.read = lambda thorough=False: looked.append(beside[0]) if thorough else medium.held

    async def blocking(call, *values):
        beside[0] = True
        try:
            return call(*values)
        finally:
            beside[0] = False

    lab.runner.flags = Flags([medium])
    object.__setattr__(lab.runner.parts, "blocking", blocking)
    if step != "start":
        await lab.begin()
        await lab.desire(lab.plane.service(lab.one_edge()))
    looked.clear()
    lab.runner._open &= step != "_open_datapath"
    await getattr(lab.runner, step)()
    assert looked
    assert all(looked)
    looked.clear()
    if step == "drift":
        medium.held = Panic(7.0)
        await lab.runner.drift()
        assert (lab.runner.panic, looked) == (medium.held, [])
        await lab.runner.look()
        assert looked == [], "nor while the panic stands"


class Paper:
    name = "paper"

    def __init__(self):
        self.held, self.works = None, True

    def read(self, _thorough=False):
        return self.held

    def write(self, panic):
        if not self.works:
            raise Unavailable("read-only")
        self.held = panic

    def delete(self):
        self.write(None)


steps = st.sampled_from(["told", "keep", "end", "late end", "other keeps", "other ends", "breaks", "works"])


@settings(max_examples=300)
@given(st.lists(st.tuples(steps, st.sampled_from([1.0, 2.0, 3.0]), st.integers(0, 1)), max_size=12))
def test_whatever_happens_what_was_ended_neither_stands_nor_is_written(history):
    media = [Paper(), Paper()]
    flags, other, ended = Flags(media), Flags(media), set()
    for step, at, number in history:
        panic = Panic(at)
        match step:
            case "told":
                told = flags.told(panic)
                assert told is None or told.at not in ended
            case "keep":
                before = [medium.held for medium in media]
                flags.keep(panic)
                assert at not in ended or before == [medium.held for medium in media]
            case "end":
                flags.end([at])
                ended.add(at)
                stands = flags.standing()
                assert stands is None
            case "late end":
                flags.end([at], until=0.5)
                ended.add(at)
            case "other keeps":
                other.keep(panic)
            case "other ends":
                other.end()
            case _:
                media[number].works = step == "works"
        found = flags.standing()
        assert found is None or found.at not in ended


@pytest.mark.parametrize("half", [True, False])
async def test_a_take_down_that_fails_is_done_at_the_next_look_and_can_be_resumed(monkeypatch, half):
    """Somebody else removes the same pins: it fails once the datapath is closed, or before that."""
    lab = await enforcing()
    whole = lab.kernel.panic

    def failing():
        if half:
            whole()
        raise OSError(39, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(lab.kernel, "panic", failing)
        await lab.runner.begin_panic(Panic(7.0, "locked out"))
        assert lab.runner.flags.words() == [Panic(7.0, "locked out")], "it is written all the same"
    if not half:
        assert held(lab) == CALM
        await lab.runner.look()
    assert (lab.runner.panic, held(lab)) == (Panic(7.0, "locked out"), [])
    await lab.runner.end_panic()
    assert (lab.runner.panic, held(lab)) == (None, CALM)
