"""`aegisflux policy` and plans: what they print, in both forms, and their exit status; without a control
plane, or with one that answers from a table."""

import json
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from aegisflux.cli import main, policy
from aegisflux.cli.plans import replay_told
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace

PLACES = Inventory(
    {"web": ServicePlace(1, ("w1",)), "db": ServicePlace(2, ("d1",))},
    {"w1": HostPlace({}, ("10.0.0.1",)), "d1": HostPlace({}, ("10.0.0.2",))},
)
GOOD = """\
policy: 1
rules:
  - {from: web, to: db, ports: [tcp/5432]}
tests:
  - {from: web, to: db, port: tcp/5432, expect: allowed}
"""
WIDE = GOOD.replace("tcp/5432]", "tcp]")
FAILS = GOOD.replace("expect: allowed", "expect: blocked")
WRONG = GOOD.replace("to: db, ports", "to: dbb, ports")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "places.json").write_bytes(msgspec.json.encode(PLACES))

    def made(text):
        (tmp_path / "policy.yaml").write_text(text)
        return tmp_path / "policy.yaml", tmp_path / "places.json"

    return made


@pytest.mark.parametrize(
    ("command", "text", "status", "out", "err"),
    [
        (policy.validate, GOOD, 0, "KIND", "1 rules, 2 services, 2 entries"),
        (policy.validate, WIDE, 1, "too_broad  rules[0]  tcp is every port", "1 rules"),
        (
            policy.validate,
            WRONG,
            2,
            "",
            "line 3: rules[0].to: no service, group or kind of end is named 'dbb'",
        ),
        (policy.validate, "policy: [", 2, "", "line 1: expected YAML"),
        (policy.run_tests, GOOD, 0, "NUMBER", "1 of 1 tests hold"),
        (
            policy.run_tests,
            FAILS,
            1,
            "10.0.0.1  10.0.0.2  tcp    5432  blocked   allowed",
            "0 of 1 tests hold",
        ),
        (policy.run_tests, WRONG, 2, "", "dbb"),
    ],
)
def test_what_is_said_and_the_status(files, capsys, command, text, status, out, err):
    file, places = files(text)
    with pytest.raises(SystemExit) as ended:
        command(file, inventory=places)
    said = capsys.readouterr()
    assert (ended.value.code, out in said.out, err in said.err) == (status, True, True), said


def test_programs_get_json(files, capsys):
    file, places = files(FAILS)
    with pytest.raises(SystemExit):
        policy.run_tests(file, inventory=places, output="json")
    (broken,) = json.loads(capsys.readouterr().out)
    assert (broken["expected"], broken["got"], broken["port"]) == ("blocked", "allowed", 5432)


pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")
ELSEWHERE = {"id": "0" * 16, "kind": "plan", "step": "", "share": 1.0, "error": "", "result": ""}
MISTYPED = "line 3: rules[0].to: no service, group or kind of end is named 'dbb'"
LINE = {
    "at": "db", "direction": "ingress", "client": "batch", "server": "db", "what": "tcp/1", "records": 3,
    "connections": 5, "since": 2, "hosts": ["d1"], "programs": ["/bin/x"], "reason": "no_match",
    "rule": "batch -> db tcp/1",
}  # fmt: skip
SERVICE = {
    "service": "db", "snapshot": {"version": 2, "mode": "enforce"}, "replaces": 1, "changes": [],
    "more_changes": 4, "canary": ["d1"], "hosts": ["d1", "d2"],
}  # fmt: skip
PLAN = {
    "services": [SERVICE], "unchanged": ["web"], "broken_tests": [], "lint": [],
    "replay": {"records": 9, "judged": 8, "blocked": 3, "unplaced": 0, "lines": [LINE], "cut": 0},
    "canary": [["d1"]], "waves": [["d2"]], "guardrails": [], "held": [], "approval": ["it allows more"],
}  # fmt: skip
KEPT = {
    "id": 5, "digest": "sha256:1", "approved_by": None, "stale": [], "plan": PLAN,
    "asked": {"since": "2026-11-20T06:30:00Z", "until": "2026-11-27T06:30:00Z", "period_seconds": 3600},
}  # fmt: skip


def plane(kept=KEPT, **operation):
    """What a control plane answers."""
    begun = ELSEWHERE | {"state": "done", "result": "/segment/plans/5"} | operation
    return {
        "POST /segment/plan": (202, begun),
        "GET /segment/plans/5": (200, kept),
        "GET /segment/inventory": (200, msgspec.to_builtins(PLACES)),
        "GET /segment/in-force": (200, {}),
        "POST /api/v1/rollouts": (409, {"detail": "service db is on its way in rollout 4"}),
    }


@contextmanager
def answering(answers):
    """An HTTP server that knows these answers."""

    class Answers(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = answers.get(f"{self.command} {self.path}", (404, {"detail": "not here"}))
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def typed(monkeypatch, capsys):
    """Type a command line; its exit status, and what it said and printed."""

    def run(words, answers):
        monkeypatch.setattr(sys, "argv", ["aegisflux", *map(str, words)])
        monkeypatch.setenv("AEGISFLUX_TOKEN", "t")
        with answering(answers) as url:
            monkeypatch.setenv("AEGISFLUX_SEGMENTER_URL", url)
            monkeypatch.setenv("AEGISFLUX_URL", url)
            try:
                main()
                status = 0
            except SystemExit as ended:
                status = ended.code or 0
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def with_plan(**values):
    return KEPT | {"plan": PLAN | values}


@pytest.mark.parametrize(
    ("words", "text", "answers", "status", "err"),
    [
        (("policy", "apply"), WRONG, plane(state="failed", error=MISTYPED, result=""), 2, "named 'dbb'"),
        (("policy", "apply"), "policy: [", plane(), 2, "line 1: expected YAML"),
        (("policy", "apply", "--gate", "x"), GOOD, plane(), 2, "--gate: expected name=number"),
        (("policy", "apply"), GOOD, plane(with_plan(services=[])), 0, "the same as what is in force"),
        (("policy", "apply", "--dry-run"), GOOD, plane(), 1, "nothing was begun: aegisflux rollout begin 5"),
        (
            ("policy", "apply"),
            GOOD,
            plane(),
            1,
            "aegisflux segment show --plan 5, then aegisflux segment app",
        ),
        (("policy", "apply"), GOOD, plane(with_plan(held=["x"])), 1, "see above what holds it"),
        (("policy", "apply"), GOOD, plane(with_plan(approval=[])), 2, "409 service db is on its way"),
        (
            ("policy", "apply"),
            GOOD,
            plane() | {"POST /segment/plan": (403, {"detail": "viewer"})},
            3,
            "viewer",
        ),
        (("policy", "apply"), GOOD, plane() | {"POST /segment/plan": (503, {"detail": "store"})}, 4, "store"),
        (("policy", "diff"), GOOD, plane(), 1, "changes"),
        (("policy", "diff"), "policy: 1", plane(), 0, "the same as what is in force"),
        (("policy", "diff"), WRONG, plane(), 2, MISTYPED),
        (("policy", "validate"), GOOD, plane(), 0, "1 rules, 2 services"),
        (("policy", "validate"), WRONG, plane(), 2, MISTYPED),
        (("policy", "test"), FAILS, plane(), 1, "0 of 1 tests hold"),
        (("policy", "test"), GOOD + "mode: observe", plane(), 0, "its mode is observe"),
        (("segment", "plan", "--policy"), WRONG, plane(state="failed", error=MISTYPED), 2, MISTYPED),
    ],
)
def test_zero_is_the_same_one_is_different_two_is_an_error(files, typed, words, text, answers, status, err):
    file, _ = files(text)
    ended, _, said = typed((*words, file), answers)
    assert (ended, err in said) == (status, True), said


READERS = (
    ("policy", "validate"), ("policy", "test"), ("policy", "diff"), ("policy", "apply"),
    ("segment", "plan", "--policy"), ("segment", "export", "3", "--into"),
)  # fmt: skip
KEPT_PROPOSAL = {
    "asked": {"ttl_seconds": 86400, "mode": "enforce"},
    "proposal": {
        "groups": [], "rules": [], "coverage": 1, "unseen": 0, "review": [], "left_out": {}, "stability": {},
        "segmentedness": 0, "blast_radius": {},
    },
}  # fmt: skip


@pytest.mark.parametrize("words", READERS)
@pytest.mark.parametrize(
    ("body", "err"),
    [
        (Path(sys.executable).read_bytes()[:4096], "expected a policy as UTF-8 text, got"),
        (b"#" * (1 << 20) + b"\nx", "over the limit policy_bytes: at most 1048576, got 1048578"),
        (b"policy: 1\nrules: {", "line 2: expected YAML"),
    ],
)
def test_what_is_no_policy_file_is_refused_wherever_one_is_read(tmp_path, typed, words, body, err):
    (tmp_path / "policy.yaml").write_bytes(body)
    answers = plane() | {"GET /segment/proposals/3": (200, KEPT_PROPOSAL)}
    if words[:2] == ("segment", "plan"):
        answers["POST /segment/plan"] = (400, {"detail": "line 2: expected YAML"})
    status, _, said = typed((*words, tmp_path / "policy.yaml"), answers)
    assert (status, err in said, "Traceback" in said) == (2, True, False), said


def test_a_proposal_that_says_something_else_is_told_and_re_points_nothing(files, typed):
    file, _ = files(
        "policy: 1\ngroups:\n  role-1: {hosts: [h1, h2, h3]}\nrules:\n"
        "  - {name: role-1-to-db, from: role-1, to: db, ports: [tcp/5432]}\n"
        "  - {name: web-to-db, from: web, to: db, ports: [tcp/5432]}\n"
    )
    ways = (("role-1", "db", 5432), ("role-1", "db", 8443), ("web", "db", 5432), ("web", "db", 8443))
    seen = {"proto": 6, "kind": "", "held": "", "clients": 3, "servers": 1, "days": 7, "connections": 9}
    rules = [{"client": c, "server": s, "port": port} | seen for c, s, port in ways]
    members = ["h2", "h3", "h9"]
    proposal = KEPT_PROPOSAL["proposal"] | {
        "groups": [{"name": "role-1", "members": members}],
        "rules": rules,
    }
    answers = {"GET /segment/proposals/3": (200, KEPT_PROPOSAL | {"proposal": proposal})}
    before = file.read_text()
    status, _, said = typed(("segment", "export", "3", "--into", file), answers)
    assert status == 1, said
    assert "1 new rules: role-1-2-to-db" in said
    assert "differs: group role-1: in the file it is hosts h1, h2, h3" in said
    assert "differs: web-to-db: proposal also allows tcp/8443" in said
    assert [line for line in before.splitlines() if line not in file.read_text().splitlines()] == []
    assert "from: role-1-2" in file.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("policy", "validate", ""),
            "expected the path of a policy file, got the directory '.' (which an empty path",
        ),
        (("policy", "test", "/"), "expected the path of a policy file, got the directory '/'"),
        (
            ("segment", "export", "3", "--into", "/"),
            "expected the path of a policy file, got the directory '/'",
        ),
        (
            ("panic", "--dry-run"),
            "expected exactly one of --fleet, --service NUMBER and --host NAME, got none of",
        ),
        (("panic", "--fleet", "--host", "a"), "--host NAME, got --fleet and --host"),
    ],
)
def test_what_is_asked_of_nothing_or_too_much_names_what_to_give(typed, words, said):
    status, _, err = typed(words, plane() | {"GET /segment/proposals/3": (200, KEPT_PROPOSAL)})
    assert (status, said in err, "Errno" in err) == (2, True, False), err


def test_a_kept_plan_is_shown_again_as_it_was_made(files, typed):
    file, _ = files(GOOD)
    made = typed(("segment", "plan", "--policy", file), plane())
    again = typed(("segment", "show", "--plan", 5), plane())
    assert again == made
    assert again[0] == 0
    for words in (
        "plan 5, digest sha256:1", "nothing changes for web", "3 of 8 recorded flows would have been blocked",
        "3x batch -> db tcp/1 (ingress of db) since 2026-11-20T08:30:00Z",
        "needs a second person: it allows more", "first on d1, then on the others in 1 waves",
        "next, by somebody else: aegisflux segment approve 5 --digest sha256:1",
    ):  # fmt: skip
        assert words in again[2]
    status, out, _ = typed(("segment", "show", "--plan", 5, "-o", "json"), plane())
    assert (status, json.loads(out)) == (0, KEPT)
    approved = typed(("segment", "show", "--plan", 5), plane(KEPT | {"approved_by": "ann"}))[2]
    assert ("approved by ann" in approved, "by somebody else" in approved) == (True, False)


@pytest.mark.parametrize(("words", "got"), [((), "neither"), (("3", "--plan", "5"), "both")])
def test_show_is_asked_for_a_proposal_or_for_a_plan(typed, words, got):
    status, _, said = typed(("segment", "show", *words), plane())
    assert (status, f"got {got}" in said) == (2, True)


@pytest.mark.parametrize(
    ("output", "shown"),
    [("table", "2026-11-20T08:30:00Z"), ("csv", "2026-11-20T08:30:00Z"), ("json", '"since": 2')],
)
def test_since_when_flows_are_blocked_is_a_time_for_people(typed, output, shown):
    status, out, _ = typed(("segment", "simulate", 5, "-o", output), plane())
    assert (status, shown in out) == (1, True), out


@pytest.mark.parametrize(("blocked", "said"), [(0, False), (3, True)])
def test_a_replay_says_which_failsafes_it_does_not_know(capsys, blocked, said):
    replay = {"judged": 9, "blocked": blocked, "unplaced": 0, "lines": []}
    replay_told({"plan": {"replay": replay}}, "table")
    told = capsys.readouterr()
    assert ("known to its agent alone" in told.out + told.err) is said
