"""A panic on media that fail: each row is a machine in trouble, and what a restart and resume make of it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.agent.panics import Flags, RunMedium
from aegisflux.domain.panic import Attached, Owner, Panic, chosen, standing


class Paper:
    """A medium that works, or is read-only, or cannot be read either."""

    def __init__(self, name, broken=""):
        self.name, self.broken, self.held = name, broken, None

    def read(self, _thorough=False):
        if self.broken == "gone":
            raise OSError(5, "Input/output error")
        return self.held

    def write(self, panic):
        self.check()
        self.held = panic

    def delete(self):
        self.check()
        self.held = None

    def check(self):
        if self.broken:
            raise OSError(30, "Read-only file system")


FLAG = Panic(7.0, "locked out")
BROKEN = ("", "read-only", "gone")


@pytest.mark.parametrize("kernel", BROKEN)
@pytest.mark.parametrize("run", BROKEN)
@pytest.mark.parametrize("state", BROKEN)
def test_a_panic_holds_whatever_can_be_written(kernel, run, state):
    media = [Paper("kernel", kernel), Paper("/run", run), Paper("state", state)]
    flags = Flags(media)
    assert flags.told(FLAG) == FLAG
    assert flags.standing() == FLAG, "before anything is written"
    unwritten = flags.keep(FLAG)
    assert [text.partition(":")[0] for text in unwritten] == [m.name for m in media if m.broken]
    assert flags.standing() == FLAG
    works = any(not m.broken for m in media)
    assert (Flags(media).standing() is not None) == works, "a restarted agent reads what could be written"
    flags.end()
    assert flags.standing() is None
    assert Flags(media).standing() is None


@pytest.mark.parametrize("stuck", [("state",), ("/run",), ("kernel",), ("state", "/run")])
def test_a_flag_that_cannot_be_deleted_is_overruled_until_its_medium_works(stuck):
    media = [Paper("kernel"), Paper("/run"), Paper("state")]
    Flags(media).keep(FLAG)
    for medium in media:
        medium.broken = "read-only" if medium.name in stuck else ""
    flags = Flags(media)
    assert [text.partition(":")[0] for text in flags.end()] == [m.name for m in media if m.broken]
    assert flags.standing() is None
    assert Flags(media).standing() is None, "nor for an agent that starts now"
    again = Panic(8.0, "again")
    flags.told(again)
    flags.keep(again)
    assert flags.standing() is not None, "a later panic is another one"
    for medium in media:
        medium.broken = ""
    assert flags.end() == []
    assert [m.held for m in media] == [None] * 3


def test_what_nobody_could_write_ends_only_when_the_agent_is_told():
    flags = Flags([Paper("state", "gone")])
    flags.told(FLAG)
    assert flags.standing() == flags.standing() == FLAG
    flags.end()
    assert flags.standing() is None


def test_what_was_written_ends_when_somebody_deletes_it():
    state = Paper("state")
    flags = Flags([state])
    flags.told(FLAG)
    flags.keep(FLAG)
    assert flags.standing() == FLAG
    state.held = None
    assert flags.standing() is None


def test_run_that_is_a_file_or_absent_holds_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "panic", tmp_path / "absent"):
        assert RunMedium("/state", Path(folder)).read() is None
    with pytest.raises(OSError, match="Not a directory"):
        RunMedium("/state", tmp_path / "file" / "panic").write(FLAG)
    medium = RunMedium("/state", tmp_path / "absent")
    medium.write(FLAG)
    assert (medium.read(), RunMedium("/other", tmp_path / "absent").read()) == (FLAG, None)
    medium._path.write_bytes(b"{")
    assert "damaged" in medium.read().why
    medium.delete()
    assert medium.read() is None


@given(st.lists(st.builds(Panic, st.sampled_from([1.0, 2.0]), st.just(""), st.booleans())))
def test_a_panic_stands_where_one_medium_holds_it_and_none_ends_it(words):
    ends = {w.at for w in words if w.ended}
    stands = {w.at for w in words if not w.ended} - ends
    found = standing(words)
    assert (found and found.at) == min(stands, default=None)


def at(instance, cgroup, *, kind="link", owner=True):
    return Attached(
        1,
        "aegis_egress",
        kind,
        9,
        0 if kind == "tracepoint" else cgroup,
        1,
        Owner(instance, attach=cgroup) if owner else None,
        instance,
    )


@pytest.mark.parametrize(
    ("instances", "visible", "expected"),
    [
        (None, None, {"a", "b", ""}),
        ({"a"}, None, {"a"}),
        ({"c"}, None, set()),
        (None, {10}, {"a"}),
        ({"b"}, {10}, set()),
        (None, set(), set()),
    ],
)
def test_a_panic_is_about_the_instances_that_are_meant_and_the_cgroups_that_are_seen(
    instances, visible, expected
):
    kernel = [at("a", 10), at("b", 20), at("", 30, owner=False), at("a", 10, kind="tracepoint")]
    assert {one.instance for one in chosen(kernel, instances, visible)} == expected
