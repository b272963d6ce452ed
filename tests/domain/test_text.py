"""Names that are bytes: what leaves the process is printable, and nothing of a name is lost inside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.text import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("web.service", "web.service"),
        ("grün", "grün"),
        (r"system-my\x2dapp.slice", r"system-my\x2dapp.slice"),
        (b"\xff", r"\xff"),
        (b"a\xc3\x28b", r"a\xc3(b"),
        ("\udcff", r"\xff"),
        ("\x1b[2Jx", r"\x1b[2Jx"),
        ("a\nb\r\t\0", r"a\x0ab\x0d\x09\x00"),
        ("\x7f", r"\x7f"),
        ("\x85\x9b", r"\u0085\u009b"),
        ("\u202eevil", r"\u202eevil"),
        ("\u2028", r"\u2028"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("", ""),
    ],
)
def test_what_a_terminal_must_not_get_is_escaped(name: str | bytes, shown: str) -> None:
    assert printable(name) == shown


@given(st.one_of(st.binary(), st.text(st.characters())))
def test_every_name_leaves_as_printable_utf8(name: str | bytes) -> None:
    shown = printable(name)
    assert shown.isprintable()
    shown.encode("utf-8")
    assert printable(shown) == shown
