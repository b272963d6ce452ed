"""The command line names what is wrong: the argument, the variable, what was expected and what came."""

import pytest

from aegisflux import cli
from aegisflux.cli import client, nouns, services

SERVICES = [{"id": 7, "name": "quickstart"}, {"id": 101, "name": "web"}]
NOBODY = "the number or the name of a service"
VERBS = (
    ("snapshot", "promote"), ("snapshot", "rollback"), ("snapshot", "withdraw"), ("snapshot", "show"),
    ("snapshot", "status"), ("snapshot", "why", "tcp", "10.0.0.1", "22"), ("service", "health", "--well"),
    ("service", "delete"),
)  # fmt: skip


def run(capsys, *words: str) -> tuple[int, str]:
    try:
        cli.main(*words)
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    return status, " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.fixture
def asked(monkeypatch):
    """What is asked of the API, which knows two services."""
    found = []

    def call(method, path, body=None, query=None, base=None):
        if path == "/api/v1/services" and method == "GET":
            return SERVICES
        found.append((path, body))
        return {
            "warnings": [],
            "dry_run": False,
            "hosts": [],
            "desired": [],
            "observed": [],
            "differs": False,
            "did": [],
        }

    monkeypatch.setattr(client, "call", call)
    monkeypatch.setattr(nouns, "call", call)
    monkeypatch.setattr(services, "call", call)
    return found


@pytest.mark.parametrize("verb", VERBS, ids="-".join)
def test_a_service_may_be_named_wherever_its_number_is_taken(verb, asked, capsys):
    noun, name, *more = verb
    for text in ("quickstart", "7"):
        assert run(capsys, noun, name, text, *more)[0] == 0
    by_name, by_number = asked
    assert by_name == by_number
    assert "7" in str(by_name)


@pytest.mark.parametrize("verb", VERBS, ids="-".join)
@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("quickstrat", 3, f'SERVICE_ID: expected {NOBODY}; did you mean quickstart?, got "quickstrat"'),
        ("WEB", 3, "did you mean web?"),
        ("xyzzy", 3, 'aegisflux service list shows them, got "xyzzy"'),
        ("101.6", 2, f'SERVICE_ID: expected {client.INTEGER}, or the name of a service, got "101.6"'),
    ],
)  # fmt: skip
def test_a_service_that_there_is_not_is_said(verb, text, status, message, asked, capsys):
    noun, name, *more = verb
    found = run(capsys, noun, name, text, *more)
    assert found[0] == status
    assert message in found[1]
    assert asked == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("segment", "export", "x"), f"NUMBER: expected {client.INTEGER}, got 'x'"),
        (("segment", "diff", "x"), "NUMBER: expected an integer"),
        (("rollout", "begin", "1.5"), "PLAN: expected an integer"),
        (("snapshot", "promote", "1", "--version", "x"), "Invalid value for --version: expected an integer"),
        (("snapshot", "why", "1", "tcp", "10.0.0.1", "ssh"), "PORT: expected an integer"),
        (("agent", "why", "1", "tcp", "10.0.0.1", "ssh"), "PORT: "),
        (("segment", "plan"), 'segment plan: expected --proposal and its number, or --policy and a file'),
        (("segment", "plan", "--proposal", "1", "--policy", "x"), "--policy and a file, got \"both\""),
    ],
)  # fmt: skip
def test_an_argument_is_named(words, message, capsys):
    status, said = run(capsys, *words)
    assert (status, message in said) == (2, True), said


@pytest.mark.parametrize("name", client.URLS)
@pytest.mark.parametrize(
    "url",
    [
        "localhost:9300",
        "http://",
        "http:",
        "ftp://x",
        "//x:1",
        "x",
        "http://x:y",
        "http://[::1",
        "http://x:0",
    ],
)
def test_a_variable_that_is_no_url_is_named(name, url, monkeypatch):
    for other in client.URLS:
        monkeypatch.setenv(other, "http://127.0.0.1:1")
    monkeypatch.setenv(name, url)
    monkeypatch.setenv("AEGISFLUX_TOKEN", "x")
    ask = {
        "AEGISFLUX_URL": lambda: client.call("GET", "/x"),
        "AEGISFLUX_ENRICH_URL": lambda: client.facts("/x"),
        "AEGISFLUX_SEGMENTER_URL": lambda: client.segmenter("GET", "/x"),
        "AEGISFLUX_INGEST_URL": lambda: client.ingest("GET", "/x"),
    }[name]
    with pytest.raises(client.Refused) as refused:
        ask()
    assert str(refused.value) == f'{name}: expected http://host:port, got "{url}"'
