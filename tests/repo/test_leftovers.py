"""What a killed test, benchmark or demo left is taken away by the next one, and nothing of anybody else's."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.lib.report import Report, run

from aegisflux.agent.control import SOCKET
from tests.support import leftovers


@pytest.mark.parametrize(
    ("name", "maker"),
    [
        ("af12-3", 12), ("aegisflux-af12-3", 12), ("test-af12-3", 12), ("bench-af12-3", 12),
        ("af12-3-web", 12), ("af12-quickstart", 12), ("demo12-3-web", 12), ("aegisflux-demo12-3", 12),
        ("test-bench-12-3", 12), ("test-contract-12", 12), ("aegisflux-agent-12-3", 12),
        ("aegisflux-contract-12", 12), ("aegisflux-web-12", 12), ("aegisflux-db-12", 12),
        ("default", None), ("web-12", None), ("agent-12", None), ("contract-12", None), ("test-pins", None),
        ("aegisflux", None), ("aegisflux.slice", None), ("aegisflux-agent-12.service", None),
        ("aflame", None),
    ],
)  # fmt: skip
def test_a_name_says_which_process_made_it(name: str, maker: int | None) -> None:
    assert leftovers.maker(name) == maker


class Host:
    """Notes, panics, markers and pins in folders of a test; `leave` fills all of them for one instance."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folders = {name: folder / name.lower() for name in ("NOTES", "PANICS", "MARKERS", "PINS")}
        for name, path in self.folders.items():
            path.mkdir()
            monkeypatch.setattr(leftovers, name, path)

    def leave(self, instance: str) -> None:
        state = f"/state/{instance}"
        note, panic = {"state_dir": state, "instance": instance}, {"state_dir": state}
        (self.folders["NOTES"] / f"{instance}.json").write_text(json.dumps(note))
        (self.folders["PANICS"] / f"{instance}.json").write_text(json.dumps(panic))
        (self.folders["MARKERS"] / instance).touch()
        links = self.folders["PINS"] / instance / "v1" / "links"
        links.mkdir(parents=True)
        (links / "aegis_egress").touch()

    def left(self) -> set[str]:
        return {f"{n}/{p.name.removesuffix('.json')}" for n, at in self.folders.items() for p in at.iterdir()}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    before = signal.getsignal(signal.SIGTERM)
    yield Host(tmp_path, monkeypatch)
    signal.signal(signal.SIGTERM, before)


def test_what_dead_processes_left_is_taken_away_whole_and_nothing_else(host: Host) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for instance in (f"bench-af{ended.pid}-1", f"aegisflux-agent-{ended.pid}-2"):
        host.leave(instance)
    others = ("default", f"web-{ended.pid}", f"bench-af{os.getpid()}-1")
    for instance in others:
        host.leave(instance)
    (host.folders["NOTES"] / "damaged.json").write_text("[")
    leftovers.remove(leftovers.of_dead_processes())
    kept = {f"{folder}/{instance}" for folder in host.folders for instance in others}
    assert host.left() == {*kept, "NOTES/damaged"}


@pytest.mark.parametrize("ends", ["returns", "raises", "is interrupted"])
def test_a_benchmark_that_leaves_something_says_so_and_takes_it_away(
    host: Host, capsys: pytest.CaptureFixture[str], ends: str
) -> None:
    def measure(_: Report) -> None:
        host.leave(f"bench-af{os.getpid()}-1")
        if ends == "raises":
            raise SystemExit(143)
        if ends == "is interrupted":
            raise KeyboardInterrupt

    try:
        status = run(Report("x", quick=True), measure)
    except SystemExit as ended:
        status = int(str(ended.code))
    assert status == {"returns": 1, "raises": 143, "is interrupted": 130}[ends]
    said = capsys.readouterr().err
    assert "left behind, and removed now: " in said
    assert not [name for name in host.left() if name.startswith(("MARKERS", "PINS"))]


def test_a_benchmark_that_leaves_nothing_succeeds(host: Host) -> None:
    host.leave("default")
    before = host.left()
    assert run(Report("x", quick=True), lambda _: None) == 0
    assert host.left() == before


@pytest.mark.parametrize(
    ("folder", "lock", "swept"),
    [
        ("pytest-of-root/pytest-7/test_x0/state", None, True),
        ("pytest-of-root/pytest-7/test_x0/state", "999999999", True),
        ("pytest-of-root/pytest-7/popen-gw1/test_x0/state", "no number", True),
        ("pytest-of-root/pytest-7/test_x0/state", "ours", False),
        ("pytest-of-root/other/state", None, False),
        ("mine/pytest-7/state", None, False),
        ("var/lib/aegisflux", None, False),
    ],
)
def test_what_a_killed_pytest_left_of_any_instance_is_known_by_its_state_folder(
    host: Host, tmp_path: Path, folder: str, lock: str | None, swept: bool
) -> None:
    state, note = tmp_path / "tmp" / folder, host.folders["NOTES"] / "x.json"
    state.mkdir(parents=True)
    note.write_text(json.dumps({"state_dir": str(state), "instance": "default"}))
    if lock is not None:
        (tmp_path / "tmp/pytest-of-root/pytest-7/.lock").write_text(
            str(os.getpid()) if lock == "ours" else lock
        )
    assert (note in leftovers.of_dead_processes()) is swept


def test_a_note_of_an_agent_that_runs_stays(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, note = tmp_path / "pytest-of-x/pytest-1/s", host.folders["NOTES"] / "x.json"
    state.mkdir(parents=True)
    note.write_text(json.dumps({"state_dir": str(state), "instance": "default"}))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        monkeypatch.chdir(state)
        server.bind(SOCKET)
        server.listen()
        assert note not in leftovers.of_dead_processes()
    assert note in leftovers.of_dead_processes()
