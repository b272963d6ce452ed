"""The command line as people type it."""

import os
import subprocess
import sys

from aegisflux.cli.client import show

NOWHERE = {"AEGISFLUX_URL": "http://127.0.0.1:1", "AEGISFLUX_TOKEN": "afx_none"}


def ran(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """The command without a control plane."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AEGISFLUX_")} | NOWHERE
    return subprocess.run(
        [sys.executable, "-m", "aegisflux", *arguments],
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_snapshot_may_come_from_stdin():
    done = ran("snapshot", "post", "-", "--host", "a", given='{"version": 1}')
    assert (done.returncode, "127.0.0.1:1" in done.stderr) == (4, True), done


def test_a_file_that_is_not_there_is_told_in_one_line(tmp_path):
    done = ran("snapshot", "post", str(tmp_path / "none.json"))
    assert done.returncode == 2
    assert "none.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refusal_is_shown_by_its_reason(capsys):
    show([{"last_nack": {"reason": "map_full", "version": None}}], "table", ("last_nack",))
    assert capsys.readouterr().out.splitlines() == ["LAST_NACK", "map_full"]


def test_times_in_a_table_are_for_people(capsys):
    show(
        [{"lease_until": 1795490141, "since": None, "at": 1795490141500}],
        "table",
        ("lease_until", "since", "at"),
    )
    assert capsys.readouterr().out.splitlines() == [
        "LEASE_UNTIL           SINCE  AT",
        "2026-11-24T03:15:41Z  -      2026-11-24T03:15:41Z",
    ]
