"""Options of `flows`, `events` and `inventory`: wrong and empty values are refused, not an empty table."""

import pytest

from aegisflux.cli import facts
from aegisflux.domain.errors import Invalid, Misused
from aegisflux.domain.search import EVENT_FIELDS, parse_search


@pytest.fixture(autouse=True)
def plane(monkeypatch):
    """A control plane that has found nothing; names that are unknown are refused there."""
    empty = {"items": [], "next_cursor": None}

    def answer(path, _query=None):
        return [] if path.endswith("changes") else empty

    monkeypatch.setattr(facts, "facts", answer)


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        *((facts.events, name) for name in ("kind", "host", "service")),
        *((facts.observe, name) for name in ("from_", "to", "port", "proto", "verdict")),
        *((facts.packages, name) for name in ("host", "name", "type")),
        (facts.changes, "host"),
    ],
)
def test_an_empty_option_is_refused(command, option, value):
    with pytest.raises(Misused, match=f"--{option.strip('_')}: expected a value"):
        command(**{option: value})


@pytest.mark.parametrize(
    ("command", "options", "text"),
    [
        (facts.events, {"kind": "verdct"}, "exec or exit or listen or verdict"),
        (facts.events, {"kind": "exec,verdct"}, "verdct"),
        (facts.events, {"kind": "flow"}, "exec or exit"),
        (facts.packages, {"type": "debian"}, "deb or rpm"),
    ],
)
def test_a_wrong_option_is_refused_with_the_known_ones(command, options, text):
    with pytest.raises(Misused, match=text):
        command(**options)


def test_what_is_known_and_has_nothing_is_an_empty_table(capsys):
    facts.packages(host="web1", type="deb")
    facts.changes(host="web1")
    assert "HOST_ID" in capsys.readouterr().out


def test_the_api_refuses_a_kind_that_is_none():
    with pytest.raises(Invalid, match=r"filter\.kind: expected exec or"):
        parse_search("kind=verdct", EVENT_FIELDS)
