"""What a request changes, in words; and requests that only try."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec import Struct

from aegisflux.ports.store import Change, Store


class Effect(Struct, frozen=True, kw_only=True):
    """What a request changed, or with `dry_run` would change.

    action, object: as the audit log names them: host.release, host/web-1
    did:            what it does, and what follows from that
    """

    action: str
    object: str
    did: tuple[str, ...]
    dry_run: bool = False


class _Undone(Exception):
    """A change that was only tried is at its end."""


@asynccontextmanager
async def attempt(store: Store, dry_run: bool) -> AsyncIterator[Change]:
    """A change of the store; with `dry_run` it is rolled back at its end.

    A trial passes all that the change itself would pass, so that it is refused where that would be refused.
    What is changed elsewhere than in the store (the bus, files) is left out by the caller.
    """
    try:
        async with store.change() as db:
            yield db
            if dry_run:
                raise _Undone
    except _Undone:
        return
