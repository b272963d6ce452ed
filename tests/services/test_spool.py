"""The spool: what it keeps over kills, in which order it gives things up, and that it counts them."""

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aegisflux.agent.segments import Record
from aegisflux.agent.spool import Spool
from aegisflux.domain.errors import Unavailable

MUCH = 64 << 20


def opened(folder: Path, bound: int = MUCH, boot: str = "boot-1", host: str = "web1", segment: int = 4096):
    spool = Spool(folder, host, boot, bound, segment)
    spool.open()
    return spool


def put(spool: Spool, lane: str = "events", count: int = 1, size: int = 100, **cursors: int) -> int:
    """Append a batch of `count` events of `size` bytes in all; its first sequence."""
    first = spool.first(count)
    kind = "flow" if lane == "flows" else "exec"
    data = b"%d:" % first + b"x" * size
    spool.append(lane, data, {kind: count}, first + count - 1, cursors)
    return first


def drained(spool: Spool, most: int = 1000) -> list[Record]:
    found = []
    while batch := spool.exchange(found[-8:], 8):
        found += batch
        if len(found) >= most:
            break
    spool.exchange(found, 0)
    return found


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool"


def test_what_is_appended_is_given_once_in_order_and_is_gone_when_it_is_settled(folder):
    spool = opened(folder)
    firsts = [put(spool, count=3) for _ in range(100)]
    assert spool.waiting == 100
    records = drained(spool)
    assert [record.meta.first for record in records] == firsts
    assert records[5].batch.startswith(b"%d:" % firsts[5])
    assert (spool.waiting, spool.exchange([], 8)) == (0, [])
    assert len(list(folder.glob("events/*.log"))) == 1, "segments that were sent are removed"


def test_other_events_are_given_before_flows(folder):
    spool = opened(folder)
    put(spool, "flows")
    put(spool, "events")
    assert [record.lane for record in spool.exchange([], 8)] == ["events", "flows"]


def test_after_a_kill_what_was_not_settled_comes_again_with_the_same_bytes(folder):
    before = opened(folder)
    for _ in range(10):
        put(before)
    given = before.exchange([], 8)
    before.exchange([given[0], given[3]], 0)
    after = opened(folder)
    again = drained(after)
    assert [r.meta.first for r in again] == [2, 3, 5, 6, 7, 8, 9, 10]
    assert {r.meta.first: r.batch for r in given[1:3]} == {r.meta.first: r.batch for r in again[:2]}


def test_cursors_and_sequences_go_on_after_a_kill(folder):
    before = opened(folder)
    put(before, count=7, processes=70)
    put(before, "flows", traffic=3)
    before.append("events", b"", {}, 0, {"listeners": 5})
    after = opened(folder)
    assert after.cursors == {"processes": 70, "traffic": 3, "listeners": 5}
    assert after.first(1) > 8


def test_cursors_outlive_the_records_that_said_them(folder):
    before = opened(folder)
    put(before, quiet=9)
    for n in range(200):
        put(before, busy=n)
    drained(before)
    assert opened(folder).cursors == {"quiet": 9, "busy": 199}


def test_a_boot_has_sequences_cursors_and_losses_of_its_own_and_sends_what_was_left(folder):
    before = opened(folder)
    put(before, count=500, processes=70)
    before.count("spool", {"exec": 3})
    before.close()
    after = opened(folder, boot="boot-2")
    assert (after.first(1), after.cursors, dict(after.lost)) == (1, {}, {})
    put(after)
    assert [(r.meta.boot_id, r.meta.first) for r in drained(after)] == [("boot-1", 1), ("boot-2", 1)]


def test_another_hosts_spool_is_not_sent(folder):
    before = opened(folder)
    put(before, count=5)
    before.close()
    after = opened(folder, host="web2")
    assert (drained(after), dict(after.lost)) == ([], {"spool.exec": 5})


@pytest.mark.parametrize("cut", range(1, 140, 7))
def test_a_torn_record_is_cut_and_the_others_stay(folder, cut):
    spool = opened(folder)
    put(spool, processes=1)
    put(spool, processes=2)
    (path,) = folder.glob("events/*.log")
    path.write_bytes(path.read_bytes()[:-cut])
    after = opened(folder)
    assert after.cursors == {"processes": 1}
    put(after, processes=3)
    again = opened(folder)
    assert next(r.meta.first for r in drained(again)) == 1
    assert (again.waiting, again.cursors) == (0, {"processes": 3})


def test_a_damaged_segment_in_the_middle_loses_only_its_rest(folder):
    spool = opened(folder, segment=1000)
    firsts = [put(spool, size=300) for _ in range(12)]
    middle = sorted(folder.glob("events/*.log"))[1]
    data = bytearray(middle.read_bytes())
    data[60] ^= 1
    middle.write_bytes(data)
    after = opened(folder, segment=1000)
    assert [r.meta.first for r in drained(after)] == [f for f in firsts if f not in firsts[3:6]]
    assert after.lost == {"damaged.batches": 3}
    assert opened(folder, segment=1000).lost == after.lost, "counted once"


def test_what_is_damaged_while_it_waits_is_skipped_and_counted(folder):
    spool = opened(folder, segment=1000)
    firsts = [put(spool, size=300) for _ in range(9)]
    for index, damaged in enumerate(sorted(folder.glob("events/*.log"))[:2]):
        with damaged.open("r+b") as file:
            file.seek(60 if index else 4)
            file.write(bytes([0xFF] * 8))
    assert [r.meta.first for r in drained(spool)] == firsts[6:]
    assert spool.lost == {"damaged.batches": 6}


def test_numbers_that_were_settled_before_a_damage_are_not_given_again(folder):
    """What is newer than the damage would pass for sent."""
    spool = opened(folder)
    for _ in range(8):
        put(spool)
    given = spool.exchange([], 8)
    spool.exchange(given[4:7], 0)
    (path,) = folder.glob("events/*.log")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    after = opened(folder)
    new = [put(after) for _ in range(8)]
    assert [r.meta.first for r in drained(after)][-8:] == new


def test_a_file_that_is_none_of_ours_is_left_alone(folder):
    spool = opened(folder)
    put(spool)
    (folder / "events/copy of.log").write_bytes(b"x")
    assert len(drained(opened(folder))) == 1
    assert (folder / "events/copy of.log").exists()


def test_lost_marks_send_again_and_give_no_sequence_twice(folder):
    spool = opened(folder)
    for _ in range(300):
        put(spool, count=2)
    for record in drained(spool, 100)[:8]:
        assert record
    (folder / "marks").unlink()
    after = opened(folder)
    left = drained(after)
    assert left
    assert after.lost == {}
    assert after.first(1) > 600
    put(after)
    assert len(drained(after)) == 1


def test_one_copy_of_the_marks_is_enough(folder):
    spool = opened(folder)
    for _ in range(3):
        put(spool)
    for record in spool.exchange([], 3):
        spool.exchange([record], 0)
    marks = bytearray((folder / "marks").read_bytes())
    marks[spool._turn % 2 * 8192 + 20] ^= 1
    (folder / "marks").write_bytes(marks)
    assert [r.meta.first for r in drained(opened(folder))] == [3], "as the older copy says"


def test_a_full_spool_gives_up_the_oldest_flows_first_then_the_oldest_of_the_rest(folder):
    spool = opened(folder, bound=40_000)
    for _ in range(20):
        put(spool, "flows", size=900)
    for _ in range(30):
        put(spool, "events", size=900)
    assert spool.lost["spool.flow"] > 0
    assert spool.lost["spool.exec"] == 0
    while not spool.lost["spool.exec"]:
        put(spool, "events", size=900)
    assert spool.lost["spool.flow"] == 20
    kept = drained(spool)
    assert {r.lane for r in kept} == {"events"}
    assert [r.meta.first for r in kept] == sorted(r.meta.first for r in kept)
    assert len(kept) + sum(spool.lost.values()) == spool._next["events"] + 20


def test_a_flow_that_finds_the_spool_full_of_other_things_is_lost_itself_but_not_its_cursor(folder):
    spool = opened(folder, bound=20_000)
    for _ in range(17):
        put(spool, "events", size=1000)
    lost = spool.lost["spool.exec"]
    put(spool, "flows", size=9000, traffic=7)
    assert (spool.lost["spool.flow"], spool.lost["spool.exec"]) == (1, lost)
    assert opened(folder, bound=20_000).cursors == {"traffic": 7}


def test_the_bound_holds_on_disk(folder):
    spool = opened(folder, bound=100_000)
    for n in range(500):
        put(spool, "flows" if n % 3 else "events", size=997)
        assert sum(p.stat().st_size for p in folder.glob("*/*.log")) <= 100_000


def test_what_was_given_up_stays_counted_over_a_kill(folder):
    spool = opened(folder, bound=20_000)
    for _ in range(50):
        put(spool, count=2, size=1000)
    lost = dict(spool.lost)
    assert lost["spool.exec"] > 0
    assert dict(opened(folder, bound=20_000).lost) == lost


def test_one_batch_that_stays_under_way_holds_up_at_most_a_window(folder):
    spool = opened(folder)
    for _ in range(400):
        put(spool)
    first, *rest = spool.exchange([], 8)
    while rest:
        rest = spool.exchange(rest, 7)
    assert spool.waiting == 400 - 255
    spool.exchange([first], 0)
    assert len(drained(spool)) == 400 - 256
    assert drained(opened(folder)) == []


def test_a_full_disk_is_unavailable_and_leaves_the_spool_whole(folder, monkeypatch):
    import os

    spool = opened(folder)
    put(spool, processes=1)
    real = os.pwrite

    def full(fd, data, offset):
        if len(data) > 50:
            return real(fd, data[:50], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Unavailable, match="No space left"):
        put(spool, processes=2)
    monkeypatch.undo()
    assert spool.cursors == {"processes": 1}
    put(spool, processes=3)
    after = opened(folder)
    assert (len(drained(after)), after.cursors) == (2, {"processes": 3})


@pytest.mark.parametrize("folder_is", ["a file", "read-only"])
def test_a_folder_that_cannot_be_used_is_unavailable(tmp_path, folder_is):
    path = tmp_path / "spool"
    if folder_is == "a file":
        path.write_text("")
    else:
        path = Path("/proc/aegisflux-spool")
    with pytest.raises(Unavailable, match="spool"):
        opened(path)


class Life(RuleBasedStateMachine):
    """Any interleaving of append, send, acknowledge, kill and reopen loses or doubles nothing but what the
    bound gives up, which is counted."""

    BOUND = 16_000

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="aegisflux-spool-"))
        self.spool = opened(self.folder, self.BOUND, segment=2000)
        self.made: dict[int, tuple[str, int, bytes]] = {}
        self.arrived: Counter[int] = Counter()
        self.settled: set[int] = set()
        self.flying: list[Record] = []
        self.cursor = 0
        self.seen = 0
        self.kinds: Counter[str] = Counter()

    def teardown(self) -> None:
        self.spool.close()
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self) -> None:
        assert self.spool.exchange([], 8) == []

    @rule(lane=st.sampled_from(["flows", "events"]), count=st.integers(1, 5), size=st.integers(1, 3000))
    def append(self, lane: str, count: int, size: int) -> None:
        first = self.spool.first(count)
        assert first > self.seen
        self.seen = first + count - 1
        self.cursor += 1
        kind = "flow" if lane == "flows" else "exec"
        data = b"%d:" % first + b"x" * size
        self.made[first] = (kind, count, data)
        self.kinds[kind] += count
        self.spool.append(lane, data, {kind: count}, self.seen, {lane: self.cursor})

    @rule(most=st.integers(1, 8))
    def send(self, most: int) -> None:
        for record in self.spool.exchange([], most):
            assert record.batch == self.made[record.meta.first][2]
            assert record.meta.first not in self.settled, "what was settled is not sent again"
            self.flying.append(record)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        record = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.spool.exchange([record], 0)
        self.settled.add(record.meta.first)

    @rule(torn=st.binary(max_size=60), clean=st.booleans())
    def restart(self, torn: bytes, clean: bool) -> None:
        cursors, lost = dict(self.spool.cursors), +self.spool.lost
        if clean:
            self.spool.close()
        else:
            segments = sorted(self.folder.glob("events/*.log"))
            for path in segments[-1:]:
                with path.open("ab") as out:
                    out.write(torn)
        self.flying.clear()
        self.spool = opened(self.folder, self.BOUND, segment=2000)
        assert self.spool.cursors == cursors
        assert +self.spool.lost == lost

    @invariant()
    def nothing_is_lost_uncounted(self) -> None:
        waiting = self.spool.waiting
        assert waiting <= len(self.made) - len(self.settled)

    def finish(self) -> None:
        for record in self.flying:
            self.spool.exchange([record], 0)
            self.settled.add(record.meta.first)
        for record in drained(self.spool, 10**6):
            assert record.meta.first not in self.settled
            self.settled.add(record.meta.first)
        assert self.spool.waiting == 0
        sent = Counter()
        for first in self.settled:
            kind, count, _ = self.made[first]
            sent[kind] += count
        for kind, made in self.kinds.items():
            lost = self.spool.lost[f"spool.{kind}"]
            assert made <= sent[kind] + lost, "gone, and not counted"

    @rule()
    def drain(self) -> None:
        self.finish()
        self.flying.clear()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
