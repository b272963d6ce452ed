"""Commands find the agent that runs, whatever their own settings say; panic ends all where none is named."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from aegisflux.agent import notes, remember, rescue
from aegisflux.agent.notes import Note
from aegisflux.agent.state import FileStore
from aegisflux.domain.errors import Refused, Unavailable


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
    remember.write_panic(FileStore(Path(one.state_dir)), remember.Panic(0.0))
    notes.take_away(one, folder)
    assert notes.read(folder) == [one], "somebody will want to resume"
    (Path(one.state_dir) / "panic").unlink()
    notes.take_away(one, folder)
    assert notes.read(folder) == []
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


def test_panic_and_resume_of_all_without_any_agent(one, two):
    gone = []
    about = rescue.meant(one, [one, two], pinned(one, two), None, said=False)
    assert rescue.panic(about, "locked out", lambda _, name: gone.append(name)) == []
    assert set(gone) == {"one", "two"}
    for each in (one, two):
        found = remember.read_panic(FileStore(Path(each.state_dir)))
        assert found is not None
        assert found.why == "locked out"
    assert rescue.resume(about) == ([], list(about.agents))
    assert rescue.resume(about) == ([], []), "what is in no panic is let be"


def test_one_failure_does_not_stop_the_rest(one, two):
    about = rescue.meant(one, [one, two], pinned(one, two), None, said=False)
    gone = []

    def remove(folder: Path, name: str) -> None:
        (folder / "aegisflux" / "one").mkdir(parents=True, exist_ok=True)
        if name == "one":
            raise Unavailable("no permission")
        gone.append(name)

    (failed, again) = rescue.panic(about, "x", remove)
    assert failed == again == "one: no permission"
    assert "two" in gone
