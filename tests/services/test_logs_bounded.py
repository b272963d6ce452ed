"""Logs of a flood: no line again and again, and no file without an end."""

import io
import json
import subprocess
import sys
import time

import pytest

from aegisflux.runtime import logs
from aegisflux.runtime.logfiles import rotate
from aegisflux.runtime.supervise import Child, Process

FLOOD = """
from aegisflux.runtime import logs
logs.configure()
log = logs.get("answers")
for n in range(20_000):
    log.warning("dead letter", host_id="flooder", reason=f"version {n}")
log.warning("dead letter", host_id="honest", reason="one")
"""


def test_a_flood_of_one_host_is_some_lines_and_hides_none_of_another():
    done = subprocess.run([sys.executable, "-c", FLOOD], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert 10 <= len(lines) <= 60
    assert [line for line in lines if line.get("host_id") == "honest"]


def test_a_log_that_is_open_is_emptied_and_its_end_is_kept(tmp_path):
    log = tmp_path / "x.log"
    with log.open("ab", buffering=0) as writer:
        for n in range(1000):
            writer.write(b"%09d\n" % n)
        assert not rotate(log, 10_000)
        writer.write(b"last one\n")
        assert rotate(log, 10_000)
        writer.write(b"afterwards\n")
    assert log.read_bytes() == b"afterwards\n"
    kept = (tmp_path / "x.log.1").read_bytes()
    assert len(kept) == 10_000
    assert kept.endswith(b"last one\n")
    assert (tmp_path / "x.log.1").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log", "x.log.1"]


def test_a_log_that_is_not_there_is_no_trouble(tmp_path):
    assert not rotate(tmp_path / "none.log")


@pytest.mark.asyncio
async def test_a_child_that_floods_its_log_has_a_bound_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("aegisflux.runtime.logfiles.rotate.__defaults__", (100_000,))
    monkeypatch.setattr("aegisflux.runtime.supervise.PROBE_SECONDS", 0.05)
    code = "import sys, time\nfor n in range(300):\n print('x' * 9_999, flush=True); time.sleep(0.002)"

    async def ready():
        return True

    log = tmp_path / "child.log"
    process = Process(
        Child(name="child", argv=[sys.executable, "-c", code], ready=ready, log=log), tmp_path / "run"
    )
    (tmp_path / "run").mkdir()
    await process.start()
    began = time.monotonic()
    await process.wait()
    assert time.monotonic() - began < 30
    rotate(log, 100_000)
    assert sum(path.stat().st_size for path in tmp_path.glob("child.log*")) < 3_000_000 / 3


def test_a_logger_that_was_used_follows_the_next_configuration(monkeypatch):
    """In tests, whose stderr is another one each time (tests/conftest.py)."""
    log = logs.get("kept")
    for said in ("first", "second"):
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        logs.configure(form="json")
        log.warning(said)
        assert said in stream.getvalue()
        stream.close()
