"""Whoever holds the rows of tokens holds up no request: when a token was used last is written beside them."""

import asyncio

import pytest

from aegisflux.domain.errors import Unavailable
from aegisflux.runtime import uses
from aegisflux.runtime.access import Bearers
from aegisflux.runtime.uses import Uses

ROW = {"name": "n", "role": "viewer", "host_id": None, "expires_at": None, "revoked_at": None}


class Store:
    """Knows each token; `gate` closed: its rows are held by another transaction. `away`: it raises this."""

    def __init__(self, away=None):
        self.gate, self.away, self.touched, self.at_once = asyncio.Event(), away, [], 0

    async def row(self, query, digest):
        return {**ROW, "id": digest.hex()}

    async def run(self, query, number, now):
        assert query == "touch_token"
        self.at_once += 1
        assert self.at_once == 1
        await self.gate.wait()
        self.at_once -= 1
        if self.away:
            raise self.away
        self.touched.append((number, now))


class Believer:
    async def doubt(self, row):
        return ""


class Clock:
    def now(self):
        return 7.0


async def finished(found):
    if found._task is not None:
        await found._task


@pytest.mark.parametrize("away", [None, Unavailable("held for 10 s")])
async def test_a_request_waits_for_no_row_of_a_token(away):
    store = Store(away)
    bearers = Bearers(store, Clock(), Believer())
    async with asyncio.timeout(1):
        for n in range(50):
            assert (await bearers.principal(f"afx_{n}")).name == "n"
    assert store.touched == []
    store.gate.set()
    await finished(bearers._uses)
    assert len(store.touched) == (0 if away else 50)


async def test_a_token_that_is_used_again_is_written_once_with_its_last_use():
    store = Store()
    found = Uses(store)
    for now in range(9):
        found.note("a", now)
        found.note("b", now)
    store.gate.set()
    await finished(found)
    assert store.touched == [("a", 8), ("b", 8)]


async def test_what_waits_to_be_written_has_an_end():
    store = Store()
    found = Uses(store)
    for n in range(3 * uses.MOST):
        found.note(str(n), 0)
    assert len(found._due) == uses.MOST
    store.gate.set()
    await finished(found)
