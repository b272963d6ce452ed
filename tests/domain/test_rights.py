"""Which rows of tokens are believed: by a MAC, and as the audit log says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aegisflux.domain import audit, rights
from aegisflux.domain.audit import GENESIS, Entry, Line, hash_of
from aegisflux.domain.rights import Broken, Mark, Rights, Token
from aegisflux.domain.roles import Principal, may_approve

KEY, OTHER = b"k" * 32, b"o" * 32
TOKEN = Token(
    id="0a",
    name="bob",
    role="operator",
    hash=b"h" * 32,
    created_at=1,
    created_by="admin",
    expires_at=9,
    host_id=None,
)
CHANGED = {
    "id": "0b", "name": "eve", "role": "admin", "hash": b"x" * 32, "created_at": 2, "created_by": "eve",
    "expires_at": None, "host_id": "web-1",
}  # fmt: skip


def issue(token, action=rights.ISSUE):
    return Entry("admin", action, f"token/{token.id}", after=rights.said(token))


def revoke(token):
    return Entry("admin", rights.REVOKE, f"token/{token.id}", before=token.hash.hex())


def told(*entries):
    tokens = Rights()
    for entry in entries:
        tokens.take(entry)
    return tokens


def test_every_field_of_a_row_is_meant():
    assert set(CHANGED) == set(Token.__struct_fields__)


@pytest.mark.parametrize("name", CHANGED)
def test_no_field_can_be_changed(name):
    mac, changed = rights.mac_of(KEY, TOKEN), replace(TOKEN, **{name: CHANGED[name]})
    assert rights.is_sealed(KEY, TOKEN, mac)
    assert not rights.is_sealed(KEY, changed, mac)
    assert told(issue(TOKEN)).doubt(TOKEN) == ""
    assert told(issue(TOKEN)).doubt(changed)


@pytest.mark.parametrize(
    "mac", [None, b"", b"x", rights.mac_of(OTHER, TOKEN), rights.mac_of(KEY, TOKEN)[:31]]
)
def test_a_mac_is_ours_and_whole(mac):
    assert not rights.is_sealed(KEY, TOKEN, mac)


DOUBTED = {
    "no line": (),
    "a line about another": (issue(replace(TOKEN, id="0b")),),
    "a line of another kind": (Entry("admin", "token.other", "token/0a", after=rights.said(TOKEN)),),
    "revoked": (issue(TOKEN), revoke(TOKEN)),
    "revoked and issued again": (issue(TOKEN), revoke(TOKEN), issue(TOKEN)),
    "revoked and sealed": (issue(TOKEN), revoke(TOKEN), issue(TOKEN, rights.SEAL)),
    "revoked under another id": (issue(TOKEN), revoke(replace(TOKEN, id="0b"))),
    "revoked by an old line": (issue(TOKEN), Entry("admin", rights.REVOKE, "token/0a")),
    "an old line": (Entry("admin", rights.ISSUE, "token/0a", after="bob operator"),),
}


@pytest.mark.parametrize("why", DOUBTED)
def test_what_the_log_does_not_say_is_doubted(why):
    assert told(*DOUBTED[why]).doubt(TOKEN)


OLD = {
    "as its line says": ("bob operator", True),
    "another role": ("bob viewer", False),
    "another name": ("eve operator", False),
    "of a host": ("bob operator web-1", False),
    "no line": (None, False),
}


@pytest.mark.parametrize("how", OLD)
def test_a_row_of_before_is_adopted_as_its_line_says_and_once(how):
    text, adopted = OLD[how]
    tokens = told(*[Entry("admin", rights.ISSUE, "token/0a", after=text)] if text else [])
    assert tokens.adopts(TOKEN) is adopted
    tokens.take(Entry("system", rights.SEAL, rights.ALL))
    assert not tokens.adopts(TOKEN)


ids = st.sampled_from(["0a", "0b", "0c"])


@given(st.lists(st.tuples(ids, st.sampled_from(["issue", "revoke"])), max_size=12))
def test_over_any_history_only_what_was_issued_and_never_revoked_is_believed(steps):
    tokens, issued, revoked = Rights(), set(), set()
    for number, step in steps:
        token = replace(TOKEN, id=number, hash=number.encode())
        tokens.take(issue(token) if step == "issue" else revoke(token))
        (issued if step == "issue" else revoked).add(number)
        for one in ("0a", "0b", "0c"):
            row = replace(TOKEN, id=one, hash=one.encode())
            assert (tokens.doubt(row) == "") is (one in issued - revoked)


def log(*entries):
    lines, previous = [], GENESIS
    for seq, entry in enumerate(entries, 1):
        previous = hash_of(previous, seq, seq, entry)
        lines.append(Line(seq, seq, entry, previous))
    return lines


LINES = log(issue(TOKEN), *(Entry("x", "x", f"x/{n}") for n in range(5)), revoke(TOKEN))
BREAKS = {
    "a gap": lambda: LINES[:2] + LINES[3:],
    "twice": lambda: [*LINES[:2], LINES[1]],
    "an edit": lambda: [LINES[0], replace(LINES[1], entry=Entry("eve", "x", "x/0"))],
    "another log": lambda: [LINES[0], *log(Entry("x", "x", "x"), revoke(TOKEN))[1:]],
    "from the middle": lambda: LINES[3:],
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_log_is_followed_line_by_line(how):
    mark = Mark()
    assert mark.follow(LINES)
    assert (mark.seq, mark.hash) == (7, LINES[-1].hash)
    with pytest.raises(Broken):
        Mark().follow(BREAKS[how]())


@given(st.integers(0, 7))
def test_a_log_can_be_followed_in_any_parts(at):
    whole, parts = Mark(), Mark()
    whole.follow(LINES)
    parts.follow(LINES[:at])
    parts.copy().follow(LINES[at:])
    assert parts.seq == at, "a copy is another one"
    parts.follow(LINES[at:])
    assert (parts.seq, parts.hash, parts.rights) == (whole.seq, whole.hash, whole.rights)


def test_lines_are_as_their_rows():
    (line, *_) = LINES
    row = {"seq": 1, "at": 1, "hash": line.hash} | {
        name: getattr(line.entry, name) for name in line.entry.__struct_fields__
    }
    assert audit.line_of(row) == line


BOB, NEW_BOB, ANN = (
    Principal("bob", "approver", id="1"),
    Principal("bob", "approver", id="2"),
    Principal("ann", "approver", id="3"),
)
APPROVALS = [
    (BOB, "token/1", "bob", False),
    (NEW_BOB, "token/1", "bob", True),  # the name was given again
    (ANN, "token/1", "bob", True),
    (BOB, None, "bob", False),  # of before tokens were told apart: by name
    (NEW_BOB, None, "bob", False),
    (ANN, None, "bob", True),
    (replace(BOB, role="operator"), "token/3", "ann", False),
    (replace(BOB, role="admin"), "token/1", "bob", True),
    (BOB, "system", "system", True),
]


@pytest.mark.parametrize(("who", "author", "name", "may"), APPROVALS)
def test_an_author_is_a_token_and_not_a_name(who, author, name, may):
    assert may_approve(who, author, name) is may


def test_a_principal_without_a_token_is_who_its_name_says():
    assert Principal("system", "admin").key == "system"
    assert BOB.key != NEW_BOB.key
