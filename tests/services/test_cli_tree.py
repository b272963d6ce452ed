"""Every command of `aegisflux` is one of the kinds below, and has what its kind owes: `-o` where it prints
for people, `--dry-run` where it takes something away or changes what is enforced. A new command has no kind,
and fails until its author decides.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.hostile import COMMANDS

sys.path.insert(0, str(Path(__file__).parents[2] / "script/lib"))
import commands

from aegisflux import cli, maintenance
from aegisflux.cli import client
from aegisflux.services.orchestrator.effects import Effect

TREE = {one.path: one for one in commands.tree(cli.app) if not one.group}
READING = {
    "snapshot list", "snapshot show", "snapshot status", "snapshot why", "token list", "keys list",
    "audit verify", "audit list", "flows observe", "flows summary", "inventory list", "inventory changes",
    "inventory hosts", "graph reach", "graph blast-radius", "segment list", "segment show",
    "segment recompute", "segment plans", "segment diff", "segment simulate", "policy validate",
    "policy test", "policy diff", "policy inventory", "rollout list", "rollout get", "events", "hosts list",
    "hosts show", "service list", "service changes", "dead list", "dead show", "agent status", "agent why",
    "agent denied", "agent doctor",
}  # fmt: skip
# Adds something that takes nothing from what there is, or is undone by a command of its own.
ADDING = {
    "snapshot post": "to the named hosts; snapshot rollback and withdraw undo it",
    "token create": "token revoke undoes it",
    "hosts token": "it ends by itself within an hour",
    "hosts suspect": "hosts trust undoes it",
    "hosts trust": "hosts suspect undoes it",
    "service health": "its counterpart undoes it",
    "segment propose": "computes, and keeps a proposal",
    "segment plan": "computes, and keeps a plan: it is itself the dry run of a rollout",
    "segment approve": "an approval begins nothing: rollout begin does, and has a dry run",
}
DESTRUCTIVE = {
    "snapshot promote 1", "snapshot rollback 1", "snapshot withdraw 1", "token revoke t",
    "token replace admin", "keys rotate", "audit accept", "segment export 3 --into {file}",
    "policy apply {file}", "rollout begin 1", "rollout promote 4", "rollout pause 4", "rollout resume 4",
    "rollout abort 4", "rollout rollback 4", "panic --fleet", "hosts label h --clear", "hosts release h",
    "service put web --id 1", "service approve 1 7", "service discard 1 7", "service delete 1",
    "dead replay 7",
}  # fmt: skip
# Prints no data of ours for people, or nothing that another form would help.
OTHER = {
    "up": "a service: its log has log_format", "orchestrator": "a service", "ingest": "a service",
    "enrich": "a service", "segmenter": "a service", "agent run": "a service",
    "env": "prints lines for a shell",
    "bus watch": "prints JSON, a line each",
    "agent enroll": "says one line on stderr; enrolling again needs --force",
    "agent panic": "ends enforcement whatever else fails: nothing is asked first; the exit status answers",
    "agent resume": "its counterpart",
    "agent reset-clock": "says one line on stderr",
}  # fmt: skip
FORMLESS = {"segment export": "prints the policy file itself"}


def path_of(words):
    """The command of a command line."""
    parts = words.split()
    return " ".join(parts[:2]) if " ".join(parts[:2]) in TREE else parts[0]


def test_every_command_has_one_kind():
    kinds = (READING, set(ADDING), {path_of(words) for words in DESTRUCTIVE}, set(OTHER))
    named = [path for kind in kinds for path in kind]
    assert sorted(named) == sorted(TREE), "decide of a new command which kind it is"


@pytest.mark.parametrize("path", sorted(set(TREE) - set(OTHER) - set(FORMLESS)))
def test_what_prints_for_people_prints_json_too(path):
    assert TREE[path].accepts("-o")


@pytest.mark.parametrize("words", sorted(DESTRUCTIVE))
def test_what_takes_something_away_can_be_tried(words):
    assert TREE[path_of(words)].accepts("--dry-run")


EFFECT = {"action": "host.release", "object": "host/h", "did": ["frees the name h"], "dry_run": True}
TOKEN = {"id": "t", "name": "n", "role": "viewer", "revoked_at": None}
ANSWERS = {
    "token revoke t": [[TOKEN], EFFECT],
    "hosts release h": EFFECT, "service delete 1": EFFECT, "service discard 1 7": EFFECT,
    "service put web --id 1": COMMANDS["service put x"],
    "hosts label h --clear": [{"labels": {"role": "web"}, "services": []}, {"labels": {}, "services": []}],
}  # fmt: skip
BEGUN_NOTHING = {"policy apply {file}": "nothing was begun"}
WRITES_NOTHING = {"segment export 3 --into {file}"}


@pytest.mark.parametrize("words", sorted(DESTRUCTIVE - WRITES_NOTHING))
def test_a_dry_run_asks_for_one_and_says_that_nothing_was_changed(words, monkeypatch, capsys, tmp_path):
    """Each request that is no GET, and no question for a plan, has `dry_run=true`."""
    (tmp_path / "file").write_text("policy: 1\nrules:\n  - {from: a, to: b, ports: [tcp/1]}\n")
    answers = ANSWERS.get(words, COMMANDS.get(words))
    answers = list(answers) if isinstance(answers, list) else [answers]
    answers = [one | {"dry_run": True} if isinstance(one, dict) and "did" in one else one for one in answers]
    asked = []

    def sent(_, request, timeout):
        asked.append((request.get_method(), request.full_url))
        return Body(answers.pop(0) if len(answers) > 1 else answers[0])

    async def replaced(settings, role, dry_run):
        asked.append(("POST", f"?dry_run={str(dry_run).lower()}"))
        return Effect(action="token.issue", object="token/1", did=(), dry_run=dry_run), tmp_path

    async def accepted(settings, dry_run):
        asked.append(("POST", f"?dry_run={str(dry_run).lower()}"))
        return maintenance.Accepted(1, [], [], [])

    monkeypatch.setattr(client.urllib.request.OpenerDirector, "open", sent)
    monkeypatch.setattr(maintenance, "replace_token", replaced)
    monkeypatch.setattr(maintenance, "accept_audit", accepted)
    for name in ("URL", "ENRICH_URL", "SEGMENTER_URL", "INGEST_URL", "TOKEN"):
        monkeypatch.setenv(f"AEGISFLUX_{name}", "http://x")
    with suppress(SystemExit):
        cli.main(*words.format(file=tmp_path / "file").split(), "--dry-run")
    said = capsys.readouterr().err
    assert BEGUN_NOTHING.get(words, "nothing was changed") in said, said
    changing = [url for method, url in asked if method != "GET" and "/segment/plan" not in url]
    assert all("dry_run=true" in url for url in changing), asked
    assert asked


class Body:
    """An answer over HTTP."""

    def __init__(self, value):
        self._value = value

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def read(self):
        return json.dumps(self._value).encode()
