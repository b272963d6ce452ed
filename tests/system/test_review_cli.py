"""The command line as people type it."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from datetime import datetime

import pytest
from ruamel.yaml import YAML
from tests.support import facts

from aegisflux.cli.facts import moment, pictured
from aegisflux.cli.nouns import enriched
from aegisflux.cli.output import show
from aegisflux.domain.errors import Invalid
from aegisflux.wire import events

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


def test_each_enriched_event_is_a_line_of_ascii():
    """A message holds batches of several hosts; what a host wrote into arguments reaches no terminal."""
    hostile = "caf\u00e9 \x1b[2J\u009b2J\u202e\x7f\n"
    sent = [
        facts.enriched(facts.execed(1, args=("x", hostile)), facts.listen(2)),
        facts.enriched(facts.flow(7), host="db-1", boot="boot-9"),
    ]
    lines = enriched(events.joined(map(events.encode_enriched, sent)))
    assert all(line.isascii() and line.isprintable() for line in lines)
    told = [json.loads(line) for line in lines]
    names = [(row["host_id"], row["boot_id"], row["event"]["type"], row["event"]["seq"]) for row in told]
    assert names == [
        ("web-1", "boot-1", "exec", 1),
        ("web-1", "boot-1", "listen", 2),
        ("db-1", "boot-9", "flow", 7),
    ]
    assert told[0]["event"]["args"] == ["x", hostile]
    assert {row["context"]["service"] for row in told} == {"web"}


def test_what_is_no_enriched_message_is_refused():
    with pytest.raises(Invalid, match="enriched batches"):
        enriched(b"\x93\x01\x02")


@pytest.mark.parametrize("char", ["\x1b]0;pwned\x07", "\r", "\n", "\x9b31m", "\u202e", "\ud800"])
def test_what_hosts_say_never_moves_the_terminal(capsys, char):
    show([{"name": f"a{char}b", "lost": {char: 1}, "by": [char]}], "table", ("name", "lost", "by"))
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 2
    assert all(c.isprintable() for c in said.replace("\n", ""))


@pytest.mark.parametrize("since", ["99999999999999d", "9" * 5000 + "s", "", "x", "-1h", "99999d", "٣d", "²s"])
def test_a_time_is_one_or_refused(since):
    with contextlib.suppress(Invalid):
        assert datetime.fromisoformat(moment(since) or "").tzinfo is not None


@pytest.mark.parametrize("name", ["a b", "a/b", "a?x=1", "a#b", "../flows", "ü", "%2e"])
@pytest.mark.parametrize("verb", ["reach", "blast-radius"])
def test_any_name_may_be_asked_for(monkeypatch, verb, name):
    monkeypatch.setenv("AEGISFLUX_ENRICH_URL", "http://127.0.0.1:1")
    done = ran("graph", verb, name)
    assert (done.returncode, "Traceback" in done.stderr) == (4, False), done


ROW = {
    "id": 7,
    "host_id": "web-1",
    "labels": {"role": "web"},
    "taken_at": None,
    "path": 'a,"b"\x1b[2J\u202e\x9b',
}
FORMS = {
    "json": json.loads,
    "jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
    "yaml": lambda text: YAML(typ="safe").load(text),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_for_programs_say_all_of_a_row_in_ascii(capsys, form):
    show([ROW, ROW], form, ("host_id",))
    text = capsys.readouterr().out
    assert text.isascii()
    assert all(line.isprintable() for line in text.splitlines())
    assert FORMS[form](text) == [ROW, ROW]


def test_csv_has_columns_and_quotes(capsys):
    columns = ("host_id", "labels", "taken_at", "path")
    show([ROW], "csv", columns)
    show([ROW], "csv", columns, headed=False)
    head, first, second = csv.reader(io.StringIO(capsys.readouterr().out))
    assert tuple(head) == columns
    assert first == second == ["web-1", '{"role": "web"}', "", 'a,"b"\\x1b[2J\\u202e\\u009b']


def test_names_are_for_the_next_command(capsys):
    show([ROW, {"host_id": "db-1"}, {"client": "web"}], "name", ("client",))
    assert capsys.readouterr().out.splitlines() == ["7", "db-1", "web"]


@pytest.mark.parametrize(
    ("form", "said"), [("table", "x blocked"), ("wide", "x blocked"), ("csv", "blocked"), ("json", "blocked")]
)
def test_verdicts_are_marked_for_people_alone(form, said):
    assert pictured([{"verdict": "blocked"}], form, dict) == [{"verdict": said}]
