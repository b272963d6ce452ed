"""Readiness: a line for each thing that we need."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from msgspec import Struct

from aegisflux.domain.errors import AegisError, Unavailable

CHECK_SECONDS = 2.0
Check = Callable[[], Awaitable[str]]


class Degraded(Unavailable):
    """Something is wrong that an operator has to look at. The service stays ready: it does what it still can,
    and who writes its database must not be able to have it taken for dead.
    """


class Dependency(Struct, frozen=True):
    """Whether something that we need can be used, and what it says; empty for a caller without a token."""

    name: str
    ok: bool
    detail: str


class Readiness(Struct, frozen=True):
    """The answer of /readyz."""

    ready: bool
    dependencies: tuple[Dependency, ...]


async def readiness(checks: Mapping[str, Check]) -> Readiness:
    """Ask all at once; each has two seconds."""
    found = await asyncio.gather(*(_asked(name, check) for name, check in checks.items()))
    return Readiness(all(ready for _, ready in found), tuple(line for line, _ in found))


def bare(found: Readiness) -> Readiness:
    """The same for a caller who is not known: which line is not well, without what it says."""
    return Readiness(found.ready, tuple(Dependency(one.name, one.ok, "") for one in found.dependencies))


async def _asked(name: str, check: Check) -> tuple[Dependency, bool]:
    """The line of a check, and whether the service is ready as far as it goes."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return Dependency(name, True, await check()), True
    except TimeoutError:
        return Dependency(name, False, f"no answer within {CHECK_SECONDS:g} s"), False
    except AegisError as error:
        return Dependency(name, False, str(error)), isinstance(error, Degraded)
