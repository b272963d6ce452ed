"""Processes as the kernel tells them: what was done, field by field, and what happens when it is too much."""

import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import to_builtins

from aegisflux.adapters.datapath.bpf.pins import erase
from aegisflux.adapters.datapath.bpf.processes import POSITION_BITS, Processes
from aegisflux.adapters.datapath.bpf.programs import Programs
from aegisflux.adapters.datapath.bpf.ring import Unread
from aegisflux.agent.parts import TelemetrySettings
from aegisflux.agent_bootstrap import AgentConfig, make_senses
from aegisflux.cli.facts import EVENT, _event, pictured
from aegisflux.cli.output import show
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.event import MAX_ARGS, EventBatch, Exec, Exit
from aegisflux.wire.events import decode_batch, encode_batch
from aegisflux.wire.records import MAX_ANCESTORS
from tests.support.netns import Lab, cgroup_root

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SHELL = os.path.realpath("/bin/sh")
MANY = 1_000_000


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.host("a")
        yield lab


def opened(lab: Lab, **options: int) -> Processes:
    top = Path(f"/sys/fs/bpf/aegisflux/test-{lab.name}")
    source = Processes(top, Programs(), inside=lab.cgroup, **{"rate": MANY, **options})
    source.open()
    return source


@pytest.fixture
def sensor(lab: Lab) -> Iterator[Processes]:
    source = opened(lab)
    try:
        yield source
    finally:
        source.remove()
        source._home.parent.rmdir()


def drained(source: Processes, limit: int = 100_000) -> list[Exec | Exit]:
    reading = source.read(1, limit)
    source.done(reading.cursor)
    return list(reading.events)


def start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_an_exec_is_told_field_by_field(lab: Lab, sensor: Processes) -> None:
    before = time.time_ns()
    process = lab.hosts["a"].start(["/bin/cat", "-u", "/dev/stdin"], "x.service/deep", stdin=subprocess.PIPE)
    after = time.time_ns()
    (told,) = [e for e in drained(sensor) if isinstance(e, Exec)]
    ticks, started = os.sysconf("SC_CLK_TCK"), start_ticks(process.pid)
    process.communicate()
    assert told.pid == process.pid
    assert told.start_ns * ticks // 10**9 == started
    assert before - 20_000_000 <= told.time_ns <= after + 20_000_000
    assert told.uid == os.getuid()
    assert told.path == os.path.realpath("/bin/cat")
    assert told.args == ("/bin/cat", "-u", "/dev/stdin")
    assert not told.args_cut
    assert told.comm == "cat"
    assert told.cgroup == str((lab.hosts["a"].cgroup / "x.service/deep").relative_to(cgroup_root()))
    assert told.ancestors[0].pid == os.getpid()
    assert told.ancestors[0].start_ns * ticks // 10**9 == start_ticks(os.getpid())
    assert told.ancestors[0].comm == Path("/proc/self/comm").read_text().strip()
    assert told.ancestors[-1].pid == 1


def test_a_tree_of_processes_is_told_with_who_made_whom(lab: Lab, sensor: Processes) -> None:
    inner = f"{SHELL} -c '/bin/true; exit 5'; exit 3"
    lab.hosts["a"].run([SHELL, "-c", inner])
    told = drained(sensor)
    execs = {e.args[-1]: e for e in told if isinstance(e, Exec)}
    outer, middle, leaf = execs[inner], execs["/bin/true; exit 5"], execs["/bin/true"]
    assert [a.pid for a in leaf.ancestors[:3]] == [middle.pid, outer.pid, os.getpid()]
    assert [a.start_ns for a in leaf.ancestors[:2]] == [middle.start_ns, outer.start_ns]
    exits = {(e.pid, e.start_ns): e for e in told if isinstance(e, Exit)}
    assert exits[outer.pid, outer.start_ns].code == 3
    assert exits[middle.pid, middle.start_ns].code == 5
    assert exits[leaf.pid, leaf.start_ns].code == 0
    assert [e.seq for e in told] == list(range(1, len(told) + 1))


def test_an_end_by_a_signal_and_threads_that_end_first(lab: Lab, sensor: Processes) -> None:
    code = "import threading,os,time\nt=[threading.Thread(target=time.sleep,args=(.01,)) for _ in range(5)]\n"
    code += "[x.start() for x in t];[x.join() for x in t];os.kill(os.getpid(),9)"
    lab.hosts["a"].run([sys.executable, "-S", "-c", code])
    ends = [e for e in drained(sensor) if isinstance(e, Exit)]
    assert [(e.code, e.signal) for e in ends] == [(0, 9)]


def test_threads_that_end_together_are_one_end(lab: Lab, sensor: Processes) -> None:
    """Two threads on two CPUs: each may find that no other one lives."""
    code = "import hashlib,os,threading\nmuch=bytes(20_000_000)\nfor _ in range(400):\n if not os.fork():\n"
    code += "  threading.Thread(target=hashlib.sha256,args=(much,)).start();os._exit(7)\n os.wait()"
    lab.hosts["a"].run([sys.executable, "-S", "-c", code])
    ends = Counter((e.pid, e.start_ns) for e in drained(sensor) if isinstance(e, Exit))
    assert len(ends) == 401
    assert {pid for pid, n in ends.items() if n > 1} == set()


def test_the_identity_is_the_real_user_and_a_script_is_its_interpreter(lab: Lab, sensor: Processes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run me"
        script.write_text(f"#!{SHELL}\nexit 0\n")
        for path in (script, script.parent):
            path.chmod(0o755)
        lab.hosts["a"].run(["setpriv", "--reuid", "12345", "--clear-groups", str(script), "one"])
    told = [e for e in drained(sensor) if isinstance(e, Exec)][-1]
    assert (told.uid, told.path, told.args) == (12345, SHELL, (SHELL, str(script), "one"))


def test_bytes_that_are_no_text_and_control_characters_reach_the_wire(lab: Lab, sensor: Processes) -> None:
    odd = [b"/bin/true", b"\xff\xfe", b"a\nb\x1b[31m\x07", "ä€𝄞".encode(), b"", b'"\\']
    lab.hosts["a"].run(odd)
    (told,) = [e for e in drained(sensor) if isinstance(e, Exec)]
    assert told.args == ("/bin/true", "\\xff\\xfe", "a\nb\x1b[31m\x07", "ä€𝄞", "", '"\\')
    batch = EventBatch(host_id="h", boot_id="b", sent_ns=1, events=(told,))
    assert decode_batch(encode_batch(batch)) == batch


def test_argument_lists_without_bound_are_cut_and_marked(lab: Lab, sensor: Processes) -> None:
    lab.hosts["a"].run(["/bin/true", *("x" * 1000 for _ in range(100))])
    lab.hosts["a"].run(["/bin/true", *("y" for _ in range(1000))])
    lab.hosts["a"].run(["/bin/true", b"\xff" * 100_000])
    long, many, wild = [e for e in drained(sensor) if isinstance(e, Exec)]
    assert long.args_cut
    assert sum(len(a) + 1 for a in long.args) <= 4097
    assert set(long.args[1:4]) == {"x" * 1000}
    assert many.args_cut
    assert len(many.args) == MAX_ARGS
    assert wild.args_cut
    assert max(map(len, wild.args)) <= 4096
    batch = EventBatch(host_id="h", boot_id="b", sent_ns=1, events=(long, many, wild))
    assert decode_batch(encode_batch(batch)) == batch


def test_paths_across_mounts_and_deep_ones(lab: Lab, sensor: Processes, tmp_path: Path) -> None:
    deep = tmp_path / "/".join(f"folder-{i:02}" for i in range(20))
    deep.mkdir(parents=True)
    program = deep / "true"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    lab.hosts["a"].run([str(program)])
    mounted = f"mount -t tmpfs none {deep} && cp /bin/true {deep}/other && exec {deep}/other"
    lab.hosts["a"].run(["unshare", "-m", SHELL, "-c", mounted])
    paths = [e.path for e in drained(sensor) if isinstance(e, Exec)]
    assert paths[0] == str(program)
    assert paths[-1] == str(deep / "other")


def test_a_program_that_lies_in_no_folder_has_its_name(lab: Lab, sensor: Processes) -> None:
    code = "import os;f=os.memfd_create('of memory');os.write(f,open('/bin/true','rb').read());"
    lab.hosts["a"].run([sys.executable, "-S", "-c", code + "os.execve(f,['kworker'],{})"])
    told = [e for e in drained(sensor) if isinstance(e, Exec)][-1]
    assert (told.path, told.args) == ("/memfd:of memory", ("kworker",))


def test_a_program_told_by_a_thread_is_the_process(lab: Lab, sensor: Processes) -> None:
    """The thread takes over the number and the start of the process; its leader's end is none."""
    code = "import os,threading;threading.Thread(target=os.execv,args=('/bin/true',['t'])).start();"
    process = lab.hosts["a"].start([sys.executable, "-S", "-c", code + "threading.Event().wait()"])
    assert process.wait(20) == 0
    first, second, end = drained(sensor)
    assert isinstance(second, Exec)
    assert second.args == ("t",)
    assert isinstance(end, Exit)
    assert {(e.pid, e.start_ns) for e in (first, second, end)} == {(process.pid, first.start_ns)}


def test_a_namespace_of_numbers_is_told_by_the_hosts_numbers(lab: Lab, sensor: Processes) -> None:
    process = lab.hosts["a"].start(["unshare", "-pf", SHELL, "-c", "/bin/true; exit 3"])
    assert process.wait(20) == 3
    told = drained(sensor)
    outer, shell, leaf = [e for e in told if isinstance(e, Exec)]
    assert outer.pid == process.pid
    assert [a.pid for a in leaf.ancestors[:3]] == [shell.pid, outer.pid, os.getpid()]
    assert {e.pid for e in told if isinstance(e, Exit)} == {outer.pid, shell.pid, leaf.pid}
    assert 1 not in {e.pid for e in told}


def test_more_ancestors_than_are_told_leave_the_nearest(lab: Lab, sensor: Processes) -> None:
    code = (
        "import os\nfor _ in range(25):\n if os.fork():\n  os.wait();os._exit(0)\nos.execv('/bin/true',['x'])"
    )
    lab.hosts["a"].run([sys.executable, "-S", "-c", code])
    told = drained(sensor)
    leaf = [e for e in told if isinstance(e, Exec)][-1]
    ended = [e.pid for e in told if isinstance(e, Exit)]
    assert [a.pid for a in leaf.ancestors] == ended[1 : MAX_ANCESTORS + 1]


def test_reading_takes_nothing_away_until_it_is_done(lab: Lab, sensor: Processes) -> None:
    for _ in range(3):
        lab.hosts["a"].run(["/bin/true"])
    first = sensor.read(1, 2)
    assert len(first.events) == 2
    assert first.more
    assert [(e.pid, type(e)) for e in sensor.read(1, 2).events] == [(e.pid, type(e)) for e in first.events]
    sensor.done(first.cursor)
    second = sensor.read(3, 100)
    assert len(second.events) == 4
    assert not second.more
    assert {(e.pid, type(e)) for e in first.events}.isdisjoint({(e.pid, type(e)) for e in second.events})


def test_whoever_has_read_all_is_woken_by_the_next_record(lab: Lab, sensor: Processes) -> None:
    drained(sensor)
    assert sensor.fd is not None
    with select.epoll() as waiting:
        waiting.register(sensor.fd, select.EPOLLIN)  # from here on only a wake-up makes it ready
        assert waiting.poll(0) == []
        lab.hosts["a"].run(["/bin/true"])
        assert waiting.poll(2) != []
        reading = sensor.read(1, 1000)
        assert waiting.poll(0) != [], "what was read is not done"
        sensor.done(reading.cursor)
        assert waiting.poll(0) == []
        lab.hosts["a"].run(["/bin/true"])
        assert waiting.poll(2) != []
    sensor.close()
    assert sensor.fd is None


def test_an_agent_that_was_away_misses_nothing_and_repeats_nothing(lab: Lab, sensor: Processes) -> None:
    lab.hosts["a"].run(["/bin/true", "spooled"])
    spooled = sensor.read(1, 100)
    sensor.close()  # killed after it wrote its spool, before it said so
    lab.hosts["a"].run(["/bin/true", "while away"])
    again = opened(lab)
    try:
        again.resume(spooled.cursor)
        lab.hosts["a"].run(["/bin/true", "after"])
        assert [e.args[-1] for e in drained(again) if isinstance(e, Exec)] == ["while away", "after"]
    finally:
        again.close()


def test_a_cursor_of_another_ring_says_nothing_of_this_one(lab: Lab, sensor: Processes) -> None:
    lab.hosts["a"].run(["/bin/true"])
    cursor = sensor.read(1, 100).cursor
    sensor.remove()
    sensor.open()
    for _ in range(3):
        lab.hosts["a"].run(["/bin/true"])
    sensor.resume(cursor)
    assert len(drained(sensor)) == 6


def test_a_position_that_outgrows_the_cursor_is_still_done(lab: Lab, sensor: Processes) -> None:
    """Positions rise for as long as the host runs; a cursor holds their lower bits."""
    lab.hosts["a"].run(["/bin/true"])
    ring, beyond = sensor._ring, 3 << POSITION_BITS
    sensor._ring = Risen(ring, beyond)
    try:
        cursor = sensor.read(1, 100).cursor
        sensor.done(cursor)
        assert sensor.read(1, 100).events == ()
        sensor.done(cursor)
    finally:
        sensor._ring = ring


class Risen:
    """A ring whose positions are higher by so much."""

    def __init__(self, ring: Unread, by: int) -> None:
        self._ring, self._by = ring, by

    @property
    def begin(self) -> int:
        return self._ring.begin + self._by

    def records(self) -> Iterator[tuple[bytes, int]]:
        return ((data, at + self._by) for data, at in self._ring.records())

    def release(self, position: int) -> None:
        self._ring.release(position - self._by)


def test_pins_that_somebody_took_away_are_made_again(lab: Lab, sensor: Processes) -> None:
    erase(sensor._home)
    with pytest.raises(Unavailable, match="pins are gone"):
        sensor.read(1, 10)
    sensor.open()
    lab.hosts["a"].run(["/bin/true", "seen"])
    assert [e.args[-1] for e in drained(sensor) if isinstance(e, Exec)] == ["seen"]


def test_after_a_panic_nothing_comes_back_by_itself(lab: Lab, tmp_path: Path) -> None:
    top = Path(f"/sys/fs/bpf/aegisflux/test-{lab.name}")
    source = Processes(top, Programs(), inside=lab.cgroup, beside=tmp_path / "links")
    with pytest.raises(Unavailable, match="datapath is not open"):
        source.open()
    assert not top.exists()


def test_an_agent_that_is_told_to_tell_nothing_takes_its_programs_away(lab: Lab, sensor: Processes) -> None:
    sensor.close()
    quiet = AgentConfig(instance=sensor._home.parent.name, telemetry=TelemetrySettings(enabled=False))
    assert make_senses(quiet, None, {}) is None
    assert not sensor._home.exists()


def test_what_another_cgroup_does_is_not_told(lab: Lab, sensor: Processes) -> None:
    subprocess.run(["/bin/true", "outside"], check=True)
    assert drained(sensor) == []


def test_a_fork_bomb_is_bounded_and_counted_and_the_host_lives(lab: Lab) -> None:
    """Told + lost == seen, by the kernel's own counts; the rest of the machine goes on."""
    source = opened(lab, rate=400)
    try:
        bomb = "i=0; while [ $i -lt 300 ]; do /bin/true & /bin/true & /bin/true & i=$((i+1)); done; wait"
        bombs = [lab.hosts["a"].start([SHELL, "-c", bomb], "bomb") for _ in range(2)]
        for process in bombs:
            assert process.wait(60) == 0
        execs = [e for e in drained(source) if isinstance(e, Exec)]
        counts = source.counts()
        assert counts["seen.exec"] == 2 * 901
        assert counts["rate.exec"] > 0
        assert len(execs) == counts["seen.exec"] - counts["rate.exec"] - counts["full.exec"]
        assert source.lost()["rate.exec"] == counts["rate.exec"]
        assert "seen.exec" not in source.lost()
    finally:
        source.remove()


def test_a_full_ring_loses_the_newest_and_counts_them(lab: Lab, sensor: Processes) -> None:
    bomb = f"i=0; while [ $i -lt 1400 ]; do /bin/true {'x' * 3000}; i=$((i+1)); done"
    lab.hosts["a"].run([SHELL, "-c", bomb], timeout=60)
    told, counts, late = drained(sensor), sensor.counts(), drained(sensor)
    assert counts["full.exec"] > 0
    least, more = (sum(isinstance(e, Exec) for e in some) for some in (told, late))
    assert least <= counts["seen.exec"] - counts["full.exec"] <= least + more, "others' programs come late"
    lab.hosts["a"].run(["/bin/true"])
    assert len(drained(sensor)) >= 2, "there is room again"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"\x1b[31m", "\x1b[31m"),
        (b"\x1b]0;x\x07", "\x1b]0;x\x07"),
        ("\u202egpj.exe".encode(), "\u202egpj.exe"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"a\nforged", "a\nforged"),
        (b"\xc2\x9b31m", "\x9b31m"),
        ("x\u2028\u200b\ufeff".encode(), "x\u2028\u200b\ufeff"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
        (b" (deleted)", " (deleted)"),
        (b") S 1 1", ") S 1 1"),
    ],
)
def test_a_program_of_any_name_is_told_and_never_printed_raw(
    lab: Lab, sensor: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: bytes, shown: str
) -> None:
    """A user gives process, file and argument the same name, and an operator reads all of it in a table."""
    tmp_path.chmod(0o755)
    program = os.path.join(os.fsencode(tmp_path), name)
    shutil.copy("/bin/true", program)
    lab.hosts["a"].run([program, name])
    (told,) = [e for e in drained(sensor) if isinstance(e, Exec)]
    assert told.path == f"{tmp_path}/{shown}"
    assert told.args[1] == shown
    assert told.comm.encode().startswith(shown.encode()[:4])
    assert decode_batch(encode_batch(EventBatch(host_id="h", boot_id="b", sent_ns=1, events=(told,))))
    row = {"kind": "exec", "service": None, "body": {"event": to_builtins(told)}, "host_id": "h", "time": "t"}
    show(pictured([row], "table", _event), "table", EVENT)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 2
    assert printed.replace("\n", "").isprintable()
