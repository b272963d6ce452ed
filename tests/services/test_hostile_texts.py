"""No text that a host, a client, a package or a server chose reaches a terminal raw, whatever prints it.

Every command of the command line is run with answers in which each text is hostile; one that is new and has
no answer in `tests.support.hostile` fails. What prints beside those commands is found in the source.
"""

import ast
import csv
import io
import json
import logging
import sys
import threading
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tests.support.hostile import ASKED, COMMANDS, EVIL, KINDS, MARKUP, PLAIN

from aegisflux import agent_bootstrap, cli
from aegisflux.agent import cli as agent_cli
from aegisflux.agent import control, doctor, rescue
from aegisflux.cli import client, nouns, output
from aegisflux.domain.errors import Refused, Unavailable
from aegisflux.runtime import logs, terminal

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")
FORMS = ("table", "wide", "json", "jsonl", "yaml", "csv", "name")


def is_safe(text):
    """Whether a terminal only shows it, and every line of it is ours."""
    text.encode("utf-8")
    shown = text.replace("\n", "")
    return shown.isprintable() and not any(
        c in text for c in "\u3164\ufe0f"
    ) and not any(line.startswith("forged") for line in text.splitlines())  # fmt: skip


def is_parsed(text, form):
    """Whether programs can read it: whole, and without half characters."""
    if form == "json":
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    elif form == "jsonl":
        json.dumps([json.loads(line) for line in text.splitlines()], ensure_ascii=False).encode()
    elif form == "yaml":
        json.dumps(YAML(typ="safe", pure=True).load(text), ensure_ascii=False, default=str).encode()
    elif form == "csv":
        rows = list(csv.reader(io.StringIO(text)))
        assert len({len(row) for row in rows}) <= 1
        assert not any(cell.startswith("=") for row in rows for cell in row)
    return True


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("evil", [*KINDS.values(), MARKUP], ids=[*KINDS, "markup"])
def test_a_row_in_every_form(capsys, form, evil):
    row = {"id": f"a{evil}b", "list": [evil], "map": {evil: evil}, "nack": {"reason": evil}}
    output.show([row, row | {"id": PLAIN}], form, ("id", "list", "map", "nack"))
    said = capsys.readouterr().out
    assert is_safe(said), said
    assert is_parsed(said, form)
    if form not in ("json", "jsonl", "yaml"):
        assert PLAIN in said
    if evil == MARKUP:
        assert MARKUP in said


@pytest.mark.parametrize("evil", [*KINDS.values(), MARKUP], ids=[*KINDS, "markup"])
@pytest.mark.parametrize(
    "printer", [output.say, output.line, lambda text: output.screen([text]), agent_cli._say]
)
def test_what_prints_a_line(capsys, printer, evil):
    printer(f"a{evil}b {PLAIN}")
    said = capsys.readouterr()
    assert is_safe(said.out + said.err)
    assert (said.out + said.err).count("\n") == 1
    assert PLAIN in said.out + said.err


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "\uff1d"])
def test_a_spreadsheet_computes_nothing_of_what_a_host_said(capsys, start):
    output.show([{"id": f"{start}cmd|' /C calc'!A0"}, {"id": "-"}, {"id": -5}], "csv", ("id",))
    cells = [row[0] for row in csv.reader(io.StringIO(capsys.readouterr().out))]
    assert cells[1].startswith("'")
    assert cells[2:] == ["-", "-5"]


ELSEWHERE = {
    "agent denied", "agent doctor", "agent status", "agent why", "agent panic", "agent resume",  # below
    "agent enroll", "agent reset-clock",  # by agent._say
    "agent run", "enrich", "ingest", "orchestrator", "segmenter", "up",  # services: their logs are below
    "audit accept", "audit verify", "bus watch", "env", "token replace",  # below, and values of our own
}  # fmt: skip


def commands(app, path=()):
    """Every command, as it is typed."""
    for name in app:
        if not name.startswith("-"):
            below = app[name]
            if any(not one.startswith("-") for one in below):
                yield from commands(below, (*path, name))
            else:
                yield " ".join((*path, name))


def test_every_command_is_in_the_table():
    known = {" ".join(words.split()[: len(one.split())]) for words in COMMANDS for one in [words]}
    found = set(commands(cli.app))
    covered = {one for one in found if any(words == one or words.startswith(one + " ") for words in known)}
    assert found - covered == ELSEWHERE


class Answer(io.BytesIO):
    """An answer over HTTP."""


@pytest.fixture
def typed(monkeypatch, capsys, tmp_path):
    """Type a command line that is answered from a list; what it printed."""
    policy = 'policy: 1\nrules:\n  - {from: "nobody\\u202e", to: db, ports: [tcp/1]}\n'
    (tmp_path / "file").write_text(policy)
    (tmp_path / "json").write_text(json.dumps({"services": {}, "hosts": {}}))

    def run(words, answers, form=None):
        waiting = list(answers)

        def opened(_, __, timeout):
            answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            return Answer(json.dumps(answer).encode())

        monkeypatch.setattr(client.urllib.request.OpenerDirector, "open", opened)
        for name in ("AEGISFLUX_TOKEN", "AEGISFLUX_URL", "AEGISFLUX_ENRICH_URL"):
            monkeypatch.setenv(name, "http://x")
        monkeypatch.setenv("AEGISFLUX_SEGMENTER_URL", "http://x")
        monkeypatch.setenv("AEGISFLUX_INGEST_URL", "http://x")
        line = words.format(file=tmp_path / "file", json=tmp_path / "json").split()
        monkeypatch.setattr(sys, "argv", ["aegisflux", *line, *(["-o", form] if form else [])])
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code
        else:
            status = 0
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("words", COMMANDS)
def test_what_every_command_prints(typed, words):
    answer = COMMANDS[words]
    answers = answer if isinstance(answer, list) and words not in LISTS else [answer]
    for form in FORMS:
        status, out, err = typed(words, answers, form)
        if status == 2 and "Unknown option" in err:  # it prints in one form alone
            form = None
            status, out, err = typed(words, answers)
        assert "Traceback" not in err
        assert is_safe(out), (form, out)
        assert is_safe(err), (form, err)
        if status in (0, 1) and form is not None and words not in TALKERS:
            assert is_parsed(out, form)
        if form is None:
            break


LISTS = {words for words, answer in COMMANDS.items() if isinstance(answer, list) and words.split()[0] in (
    "hosts", "host", "inventory", "service", "snapshot", "token", "flows")} - {"token revoke t"}  # fmt: skip
TALKERS = {"rollout get 4 -w"}


@pytest.mark.parametrize("error", [Refused, Unavailable, OSError])
def test_an_error_that_a_server_or_a_file_wrote(monkeypatch, capsys, error):
    def failed(**_):
        raise error(f"a{EVIL}b")

    monkeypatch.setattr(cli, "app", failed)
    with pytest.raises(SystemExit):
        cli.main()
    assert is_safe(capsys.readouterr().err)
    with pytest.raises(SystemExit), agent_cli._exits():
        raise error(f"a{EVIL}b")
    assert is_safe(capsys.readouterr().err)


@pytest.mark.parametrize(
    "words",
    [
        ["snapshot", "promote", EVIL], [EVIL], ["hosts", "release", EVIL], ["events", "--host", EVIL],
        ["policy", "validate", EVIL], ["agent", "status", "--instance", EVIL], ["up", "--config", EVIL],
        ["service", "put", EVIL], ["token", "revoke", "../hosts/" + EVIL],
    ],
)  # fmt: skip
def test_an_argument_is_no_exception_and_no_control_character(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["aegisflux", *(word.replace("\0", "") for word in words)])
    monkeypatch.setenv("AEGISFLUX_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AEGISFLUX_ENRICH_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AEGISFLUX_TOKEN", "t")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code in (1, 2, 3, 4)
    assert is_safe(said.out + said.err), said
    assert "Traceback" not in said.err


@pytest.mark.parametrize("form", ["table", "json", "jsonl"])
@pytest.mark.parametrize("words", ["status", "denied", "why s tcp 10.0.0.1 1", "doctor", "panic", "resume"])
def test_what_the_agent_prints(monkeypatch, capsys, words, form):
    monkeypatch.setattr(agent_cli, "_asked", lambda _, question, timeout=10.0: iter([ASKED[question["do"]]]))
    monkeypatch.setattr(doctor, "examine", lambda *_: [doctor.Finding(EVIL, False, EVIL, True)])
    done = rescue.Outcome((EVIL,), () if form == "table" else (EVIL,), ((EVIL, EVIL),), (EVIL,), (EVIL,))
    monkeypatch.setattr(rescue, "panic", lambda *_: done)
    monkeypatch.setattr(
        rescue, "resume", lambda *_: rescue.Resumed((EVIL,), (EVIL,), ((EVIL, EVIL),), (EVIL,))
    )
    meant = rescue.Meant((), ((Path("/x"), EVIL),), (EVIL,))
    monkeypatch.setattr(agent_cli, "_meant", lambda *_: meant)
    monkeypatch.setattr(agent_cli, "_folders", lambda *_: [])
    monkeypatch.setattr(agent_bootstrap, "make_kernel", lambda *_: None)
    monkeypatch.setattr(agent_bootstrap, "marked_pins", lambda *_: ())
    line = ["agent", *words.split(), *([] if words in ("panic", "resume") else ["-o", form])]
    monkeypatch.setattr(sys, "argv", ["aegisflux", *line])
    with pytest.raises(SystemExit):
        cli.main()
        sys.exit(0)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert is_safe(said.out + said.err), said
    if form != "table" and said.out:
        assert is_parsed(said.out, form)


def test_the_agents_log(capsys):
    agent_cli._log(EVIL)
    said = capsys.readouterr().err
    assert is_safe(said)
    assert is_parsed(said, "jsonl")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("evil", [*KINDS.values(), MARKUP], ids=[*KINDS, "markup"])
def test_logs_of_services(capsys, monkeypatch, form, evil):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logs.configure("info", form)
    log = logs.get("x")
    log.info(evil, reason=evil, parts=[evil], by={evil: evil}, big=1 << 70, at=Path(f"/{evil}"))
    try:
        raise ValueError(evil)
    except ValueError:
        log.exception("failed")
    logging.getLogger("asyncio").warning("a%sb", evil)
    said = capsys.readouterr().err
    assert is_safe(said), said
    if form == "json":
        assert is_parsed("\n".join(said.splitlines()[:2]), "jsonl")


def test_what_nobody_caught(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    terminal.guard()
    try:
        raise KeyError(EVIL)
    except KeyError as error:
        sys.excepthook(type(error), error, error.__traceback__)
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))
    said = capsys.readouterr().err
    assert is_safe(said), said
    assert said.count("Traceback") == 2


@pytest.mark.parametrize(
    "payload", [json.dumps({"a": EVIL}).encode(), b"\x1b[31m\xff\n", b'{"a": "\xc2\x9b"}']
)
def test_what_came_over_the_bus(capsys, payload):
    for text in nouns.announced(payload):
        output.line(text)
    assert is_safe(capsys.readouterr().out)


def test_a_terminal_gets_no_bytes_and_no_document_as_they_are(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(Refused):
        output.raw(b"\x1b")
    evil = EVIL.replace("\n", "")
    output.document(f"# {evil}\n- x\n")
    assert is_safe(capsys.readouterr().out)


def test_the_socket_of_the_agent_answers_whatever_a_name_holds():
    answer = json.loads(control.line_of({"cgroups": [EVIL], EVIL: 1}))
    assert "\udcff" not in answer["cgroups"][0]
    assert "\\xff" in answer["cgroups"][0]


PRINTERS = {
    "cli/__init__.py": {"_fail", "main"},  # main closes a broken pipe
    "cli/output.py": {"say", "_write", "show", "line", "screen", "raw", "_yaml", "_csv"},
    "agent/cli.py": {"_fail", "_log", "_say", "_print"},
    "runtime/logs.py": {"configure"},
    "runtime/terminal.py": {"_crashed", "_unraisable", "guard"},
}
READERS, STREAMS = {"isatty"}, {"sys.stdout", "sys.stderr"}


def test_nothing_prints_beside_the_printers():
    root = Path(cli.__file__).parent.parent
    found = {}
    for file in root.rglob("*.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and _prints(function):
                found.setdefault(str(file.relative_to(root)), set()).add(function.name)
    assert found == PRINTERS


def _prints(function):
    """Whether it calls print or takes a standard stream for more than to ask what it is."""
    asked = [
        node.value for node in ast.walk(function) if isinstance(node, ast.Attribute) and node.attr in READERS
    ]
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == "print":
            return True
        if isinstance(node, ast.Attribute) and ast.unparse(node) in STREAMS and node not in asked:
            return True
    return False
