"""A token that was revoked or has ended: what changes something is refused at once by every service, what
reads within `REMEMBER_SECONDS`, and never after the token's end."""

import pytest
from tests.support.engines import eventually

from aegisflux.runtime.access import REMEMBER_SECONDS, Bearers, hashed, may_change

NOW = 1_000_000.0
METHODS = {
    "GET": False, "HEAD": False, "POST": True, "PUT": True, "PATCH": True, "DELETE": True, "OPTIONS": True,
    "get": True, "MADE-UP": True,
}  # fmt: skip


class Clock:
    at = NOW

    def now(self):
        return self.at


class Tokens:
    """The table of tokens, and how often its row was read and its last use written."""

    def __init__(self, expires_at=None):
        self.found = {
            "id": "t1", "name": "op", "role": "operator", "host_id": None, "hash": hashed("secret"),
            "revoked_at": None, "expires_at": expires_at,
        }  # fmt: skip
        self.read = self.touched = 0

    async def row(self, _query, digest):
        self.read += 1
        return dict(self.found) if digest == self.found["hash"] else None

    async def run(self, _query, *_values):
        self.touched += 1

    async def doubt(self, _row):
        return ""


def lab(expires_at=None):
    tokens, clock = Tokens(expires_at), Clock()
    return tokens, clock, Bearers(tokens, clock, tokens)


@pytest.mark.parametrize(("method", "changes"), METHODS.items())
def test_a_method_that_is_not_known_to_read_may_change_something(method, changes):
    assert may_change({"method": method}) is changes


@pytest.mark.parametrize("change", ["revoked_at", "expires_at"])
@pytest.mark.parametrize("first", [True, False], ids=["after a write", "after a read"])
async def test_what_changes_something_asks_the_store_each_time(change, first):
    tokens, _, bearers = lab()
    assert (await bearers.principal("secret", fresh=first)).name == "op"
    tokens.found[change] = int(NOW)
    assert (await bearers.principal("secret", fresh=False)).name == "op", "a read may be answered from memory"
    assert await bearers.principal("secret", fresh=True) is None
    assert await bearers.principal("secret", fresh=False) is None, "what a write learned holds for reads"


@pytest.mark.parametrize("after", [0.0, 1.0, REMEMBER_SECONDS - 0.1], ids=str)
async def test_writes_make_no_read_remember_longer(after):
    tokens, clock, bearers = lab()
    await bearers.principal("secret")
    clock.at += after
    await bearers.principal("secret")
    tokens.found["revoked_at"] = int(clock.at)
    clock.at = NOW + REMEMBER_SECONDS
    assert await bearers.principal("secret", fresh=False) is None


@pytest.mark.parametrize("fresh", [True, False], ids=["write", "read"])
@pytest.mark.parametrize("left", [1, 3, 60], ids=str)
async def test_no_request_is_let_through_after_the_end_of_its_token(fresh, left):
    _, clock, bearers = lab(int(NOW) + left)
    assert await bearers.principal("secret", fresh=False)
    clock.at = NOW + left - 0.01
    assert await bearers.principal("secret", fresh=fresh)
    clock.at = NOW + left
    assert await bearers.principal("secret", fresh=fresh) is None


async def test_reads_and_last_use_cost_the_store_once_in_a_while():
    tokens, _, bearers = lab()
    for _ in range(10):
        await bearers.principal("secret", fresh=False)
    await eventually(lambda: tokens.touched == 1)  # written beside the requests
    assert tokens.read == 1
    for _ in range(10):
        await bearers.principal("secret")
    assert (tokens.read, tokens.touched) == (11, 1)
