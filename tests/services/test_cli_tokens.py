"""Tokens and labels of hosts on the command line: by id or name, and what is printed where."""

from contextlib import suppress

import pytest

from aegisflux import cli
from aegisflux.cli import client, hosts, tokens

LIVING = [
    {"id": "aa", "name": "bob", "role": "viewer", "revoked_at": None},
    {"id": "bb", "name": "aa", "role": "viewer", "revoked_at": None},  # its name is another one's id
    {"id": "cc", "name": "carl", "role": "viewer", "revoked_at": 5},
]
EFFECT = {"action": "token.revoke", "object": "token/aa", "did": ["ends token aa (bob)"], "dry_run": False}
MADE = {"id": "dd", "name": "dora", "role": "viewer", "token": "SECRET", "expires_at": None, "host_id": None}
HOST = {"host_id": "h1", "labels": {"role": "web", "env": "prod"}, "services": [101]}
AFTER = HOST | {"labels": {"role": "db"}, "services": [101, 102]}


@pytest.fixture
def typed(monkeypatch, capsys):
    """Type a command; its exit status, output, messages, and the requests that changed something."""

    def run(*words):
        asked = []

        def call(method, path, body=None, query=None, base=None):
            if method != "GET":
                asked.append((method, path, body, query or {}))
            return {
                ("GET", "/api/v1/tokens"): LIVING, ("POST", "/api/v1/tokens"): MADE,
                ("GET", "/api/v1/hosts/h1"): HOST, ("PUT", "/api/v1/hosts/h1/labels"): AFTER,
            }.get((method, path), EFFECT)  # fmt: skip

        for module in (client, tokens, hosts):
            monkeypatch.setattr(module, "call", call)
        status = 0
        with suppress(SystemExit):
            try:
                cli.main(*words)
            except SystemExit as ended:
                status = ended.code
        return status, *capsys.readouterr(), asked

    return run


@pytest.mark.parametrize(("given", "number"), [("aa", "aa"), ("bob", "aa"), ("bb", "bb")])
def test_a_token_is_revoked_by_its_id_or_its_name(typed, given, number):
    status, out, err, asked = typed("token", "revoke", given)
    assert (status, out, err) == (0, "ends token aa (bob)\n", "")
    assert asked == [("DELETE", f"/api/v1/tokens/{number}", None, {})]


@pytest.mark.parametrize(("given", "hint"), [("bop", "did you mean bob?"), ("carl", "aegisflux token list")])
def test_a_token_that_there_is_not_names_the_next_step(typed, given, hint):
    status, _, err, asked = typed("token", "revoke", given)
    assert (status, asked) == (3, [])
    assert "the id or the name of a token that is not revoked" in err
    assert hint in err


def test_a_new_token_is_the_only_line_of_stdout_and_its_id_is_said(typed):
    _, out, err, _ = typed("token", "create", "dora", "viewer")
    assert out == "SECRET\n"
    assert err == "token dd (dora, role viewer); to end it: aegisflux token revoke dd\n"
    _, out, _, _ = typed("token", "create", "dora", "viewer", "-o", "json")
    assert '"id": "dd"' in out
    assert '"token": "SECRET"' in out


def test_labels_of_a_host_are_set_and_what_changes_is_said(typed):
    status, _, err, asked = typed("hosts", "label", "h1", "--label", "role=db", "--dry-run")
    assert status == 0
    assert asked == [
        ("PUT", "/api/v1/hosts/h1/labels", {"labels": {"role": "db"}}, {"dry_run": "true"})
    ]  # fmt: skip
    for text in (
        "label env: prod becomes none", "label role: web becomes db",
        "service 102 reaches it by these labels", "dry run: nothing was changed",
    ):  # fmt: skip
        assert text in err
    assert typed("hosts", "label", "h1", "--clear")[3][0][2] == {"labels": {}}


@pytest.mark.parametrize("words", [(), ("--clear", "--label", "a=b")])
def test_labels_are_not_cleared_by_leaving_them_out(typed, words):
    status, _, err, asked = typed("hosts", "label", "h1", *words)
    assert (status, asked) == (2, [])
    assert "--label with each label that it is to have, or --clear" in err


def test_a_list_of_hosts_says_that_some_have_troubles(typed, monkeypatch, capsys):
    odd = [HOST | {"troubles": ["a full disk"]}, HOST | {"address_conflicts": ["10.0.0.1: h2"]}, HOST]
    monkeypatch.setattr(hosts, "call", lambda *_given: odd)
    hosts.list_hosts()
    assert "2 of these hosts have troubles: aegisflux hosts list -o wide" in capsys.readouterr().err
    hosts.list_hosts(output="wide")
    said = capsys.readouterr()
    assert "a full disk" in said.out
    assert "10.0.0.1: h2" in said.out
    assert said.err == ""
