"""Commands find the agent that runs, whatever their own settings say; panic ends all where none is named."""

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from aegisflux.agent import notes, panics, remember, rescue
from aegisflux.agent.notes import Note
from aegisflux.agent.state import FileStore
from aegisflux.domain.errors import Refused, Unavailable
from aegisflux.domain.panic import Attached, Owner, Panic


def note(directory: Path, instance: str, *, enrolled: bool = True, **changes) -> Note:
    state = directory / instance
    FileStore(state)
    if enrolled:
        (state / "identity").write_bytes(b"x")
    made = Note(f"host-{instance}", str(state), instance, "", str(directory / "bpffs"), "bpf")
    return replace(made, **changes)


@pytest.fixture
def one(tmp_path):
    return note(tmp_path, "one")


@pytest.fixture
def two(tmp_path):
    return note(tmp_path, "two")


def chosen(known, state, instance=None, said=False, running=()):
    return notes.choose(known, Path(state), instance, said=said, running=lambda n: n in running)


def test_the_only_one_that_runs_is_meant(one, two):
    assert chosen([one, two], "/nowhere", running=[two]) == two
    assert chosen([one, two], one.state_dir, running=[two]) == two, "although another one was here"
    assert chosen([one, two], "/nowhere", said=True, running=[two]) == two, "although settings differ"


def test_what_is_said_and_is_there_is_meant(one, two):
    assert chosen([one, two], one.state_dir, running=[one, two]) == one
    assert chosen([one, two], one.state_dir, said=True, running=[two]) == one
    assert chosen([one, two], "/nowhere", "two", running=[one, two]) == two
    assert chosen([one, two], "/nowhere", "two") == two, "it need not run"


def test_of_several_one_must_be_named(one, two):
    with pytest.raises(Refused, match=r"one \(host host-one.*two \(host host-two.*--instance"):
        chosen([one, two], "/nowhere", running=[one, two])


def test_without_notes_settings_hold(one):
    assert chosen([], one.state_dir) is None
    assert chosen([one], "/nowhere") == one


def test_a_note_lives_as_long_as_state_or_pins(tmp_path, one):
    folder = tmp_path / "notes"
    notes.leave(one, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert notes.read(folder) == [one]
    one.pins.mkdir(parents=True)
    notes.take_away(one, folder)
    assert notes.read(folder) == [one], "what is pinned is still enforced"
    one.pins.rmdir()
    remember.write_panic(FileStore(Path(one.state_dir)), Panic(0.0))
    notes.take_away(one, folder)
    assert notes.read(folder) == [one], "somebody will want to resume"
    (Path(one.state_dir) / "panic").unlink()
    notes.take_away(one, folder)
    assert notes.read(folder) == []
    notes.leave(note(tmp_path, "never", enrolled=False), folder)
    notes.leave(replace(one, state_dir=str(tmp_path / "gone")), folder)
    assert notes.read(folder) == []
    assert not list(folder.glob("*.json"))


def pinned(*found: Note):
    return [(Path(n.bpffs), n.instance) for n in found]


def test_without_a_name_every_instance_is_meant(tmp_path, one, two):
    settings = note(tmp_path, "default", enrolled=False)
    strange = (tmp_path / "bpffs", "strange")
    about = rescue.meant(settings, [one, two], [*pinned(one, two), strange], None, said=False)
    assert set(about.agents) == {one, two}
    assert {name for _, name in about.pins} == {"one", "two", "strange"}
    about = rescue.meant(settings, [one], pinned(one), None, said=True)
    assert about.agents == (one,), "settings that fit no agent name none"
    about = rescue.meant(replace(one, instance="other"), [one, two], pinned(one, two), None, said=True)
    assert set(about.agents) == {one, two}, "nor do settings that differ from what it ran with"


def test_a_named_one_is_meant_alone_and_the_others_are_told(one, two):
    for about in (
        rescue.meant(one, [one, two], pinned(one, two), None, said=True),
        rescue.meant(two, [one, two], pinned(one, two), "one", said=False),
    ):
        assert about.agents == (one,)
        assert {name for _, name in about.pins} == {"one"}
        assert about.others == ("two",)


class Paper:
    """A marker in a kernel that is a dict."""

    name = "the kernel"

    def __init__(self, held, key):
        self.held, self.key = held, key

    def read(self, _thorough=False):
        return self.held.get(self.key)

    def write(self, panic):
        self.held[self.key] = panic

    def delete(self):
        self.held.pop(self.key, None)


class FakeKernel:
    """Attachments that end when they are detached; `stuck` instances come back."""

    def __init__(self, *instances, stuck=(), refuses=""):
        self.there = [
            Attached(n, "aegis_egress", "link", n, 10 + n, 1, None, i) for n, i in enumerate(instances, 1)
        ]
        self.stuck, self.refuses, self.markers, self.acts = stuck, refuses, {}, []

    def attached(self):
        if self.refuses:
            raise Unavailable(self.refuses)
        return list(self.there)

    def linked(self):
        return self.attached()

    def cut(self):
        return []

    def visible(self, _places):
        return None

    def detach(self, attached):
        self.acts.append(("detach", dict(self.markers)))
        gone = [one for one in attached if one.instance not in self.stuck]
        self.there = [one for one in self.there if one not in gone]

    def unpin(self, attached):
        return []

    def erase(self, bpffs, instance):
        self.acts.append(("erase", instance))

    def marked(self):
        return []

    def marker(self, bpffs, instance, state_dir=""):
        return Paper(self.markers, instance)

    def describe(self, one):
        return f"program {one.program_id}"


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(panics.RunMedium.__init__, "__defaults__", (tmp_path / "run",))
    return tmp_path / "run"


def test_panic_and_resume_of_all_without_any_agent(one, two, run_folder):
    kernel = FakeKernel("one", "two")
    about = rescue.meant(one, [one, two], pinned(one, two), None, said=False)
    done = rescue.panic(about, "locked out", kernel, lambda: 5.0)
    assert done == rescue.Outcome(("one", "two"), (), ())
    assert kernel.acts[0] == ("detach", {}), "before anything that could take long"
    assert kernel.acts[1] == ("detach", {name: Panic(5.0, "locked out") for name in ("one", "two")}), (
        "and marked before the last time, so that no agent attaches again"
    )
    assert {act[1] for act in kernel.acts if act[0] == "erase"} == {"one", "two"}
    for each in (one, two):
        assert remember.read_panic(FileStore(Path(each.state_dir))) == Panic(5.0, "locked out")
    assert len(list(run_folder.iterdir())) == 2
    done = rescue.resume(about, kernel)
    assert (done.running, done.idle) == ((), about.agents)
    assert (kernel.markers, list(run_folder.iterdir())) == ({}, [])
    assert rescue.resume(about, kernel) == rescue.Resumed((), ()), "what is in no panic is let be"


def test_what_still_enforces_is_named_and_the_rest_is_done(one, two):
    kernel = FakeKernel("one", "two", "lost", stuck=("two",))
    about = rescue.meant(one, [one, two], (), None, said=False)
    done = rescue.panic(about, "x", kernel)
    assert (done.left, [a.instance for a in kernel.there]) == (("program 2",), ["two"])
    assert set(kernel.markers) == {"one", "two", "lost"}, "also what only the kernel knows"
    assert remember.read_panic(FileStore(Path(two.state_dir))) is not None


def test_a_kernel_that_lists_nothing_is_no_success(one):
    about = rescue.meant(one, [one], (), None, said=False)
    done = rescue.panic(about, "x", FakeKernel("one", refuses="run as root"))
    assert done.left == ("run as root",)
    assert remember.read_panic(FileStore(Path(one.state_dir))) is not None


def test_a_named_simulation_needs_no_kernel(tmp_path, one, run_folder):
    kernel = FakeKernel()
    kernel.refuses = "the kernel does not list its BPF programs: Operation not permitted; run as root"
    simulated = note(tmp_path, "sim", datapath="simulated")
    for known, instance, left in (
        ([simulated], "sim", ()),  # a simulation has nothing in the kernel
        ([simulated], None, (kernel.refuses,)),  # every one of this host: who knows what else there is
        ([simulated, replace(one, instance="sim")], "sim", (kernel.refuses,)),
    ):
        settings = replace(simulated, state_dir="/nowhere")
        about = rescue.meant(settings, known, [], instance, said=False)
        assert (instance, rescue.panic(about, "x", kernel).left) == (instance, left)


def test_only_what_is_there_is_found(tmp_path, one):
    """Nothing is attached, nothing runs: only an agent that is enrolled could enforce later."""
    never = note(tmp_path, "never", enrolled=False)
    about = rescue.meant(one, [one, never], (), None, said=False)
    done = rescue.panic(about, "x", FakeKernel())
    assert (done.found, done.idle) == ((), ("one",))
    assert remember.read_panic(FileStore(Path(never.state_dir))) is None


def test_an_agent_that_only_the_kernel_knows_is_found(tmp_path, one):
    owner = Owner("lost", str(tmp_path / "bpffs"), str(tmp_path / "lost"), 7, "/cg")
    there = Attached(1, "aegis_egress", "link", 1, 7, 1, owner, "lost")
    (known, found) = rescue.with_kernel([one], [there])
    assert (known, found.instance, found.state_dir) == (one, "lost", str(tmp_path / "lost"))
    assert rescue.with_kernel([one], [there], visible={8}) == [one]
    (_, found) = rescue.with_kernel([one], [], None, [owner])
    assert found.state_dir == str(tmp_path / "lost"), "in a panic nothing is attached: its marker tells"
    assert rescue.with_kernel([one], [], {7}, [owner]) == [one]


def test_a_state_folder_that_is_gone_is_not_made_again(tmp_path, one):
    shutil.rmtree(one.state_dir)
    about = rescue.meant(one, [one], pinned(one), "one", said=False)
    done = rescue.panic(about, "x", FakeKernel("one"))
    assert (done.left, done.fleeting) == ((), ())
    assert done.unwritten == (("one", f"the state folder {one.state_dir}: it does not exist"),)
    assert not Path(one.state_dir).exists()
    assert rescue.resume(about, FakeKernel()).idle == (one,)
