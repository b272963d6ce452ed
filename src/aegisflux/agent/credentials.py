"""The agent's credentials on the bus end after some days: it asks for later ones before that.

Over the bus while they hold, and over HTTPS with the host's key when the bus refuses them: after a long time
off, or when the control plane was given other accounts.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace
from nacl.signing import SigningKey

from aegisflux.agent.identity import IDENTITY, Identity
from aegisflux.agent.parts import Blocking, Store
from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import BROKEN, AegisError, Refused, Unavailable
from aegisflux.wire import natsjwt, subjects
from aegisflux.wire.token import Renewed

FIRST_SECONDS, LOOK_SECONDS = 5.0, 60.0
FIRST_RETRY, LAST_RETRY = 30.0, 3600.0
REFUSALS: Final = ("authorization", "authentication")  # what a server says of credentials that it refuses


class UserBus(Protocol):
    """The agent's connection, as far as its credentials go."""

    @property
    def connected(self) -> bool:
        """See `Bus.connected`."""
        ...

    @property
    def last_error(self) -> str:
        """Why the last connection failed, in words."""
        ...

    def use(self, user_jwt: str) -> None:
        """Show this JWT at the next connect."""
        ...

    async def request(self, subject: str, payload: bytes, timeout: float = 5.0) -> bytes:
        """See `Bus.request`."""
        ...


class Credentials:
    """The user JWT of this host, renewed when half of its time is over. `url`: where the control plane
    answers over HTTPS, instead of the URL of the enrolment."""

    def __init__(
        self,
        identity: Identity,
        seed: bytes,
        url: str,
        bus: UserBus,
        store: Store,
        blocking: Blocking,
        log: Callable[[str], None],
    ) -> None:
        self._identity, self._seed, self._url = identity, seed, url or identity.url
        self._bus, self._store, self._blocking, self._log = bus, store, blocking, log
        self._user = natsjwt.public_nkey("user", bytes(SigningKey(seed).verify_key))
        self._said = ""
        self._not_before = 0.0
        self._unwritten = False

    async def run(
        self, wall: Callable[[], float], sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        """For as long as the agent lives. It comes again later each time, and never before it was told to;
        hosts that were told the same come one after the other."""
        pause, wait = FIRST_RETRY, FIRST_SECONDS
        while True:
            await sleep(self._not_before + wait * (0.5 + random.random()))
            if await self.look(wall()):
                pause, wait = FIRST_RETRY, LOOK_SECONDS
            else:
                wait, pause = pause, min(pause * 2, LAST_RETRY)

    async def look(self, now: float) -> bool:
        """Renew what is due at `now`, in seconds since the epoch; False when that has to be tried again."""
        self._not_before = 0.0
        try:
            if (ask := self._due(now)) is not None:
                await self._take(await ask())
            if self._unwritten:
                await self._write()
        except AegisError as error:
            self._not_before = getattr(error, "retry_after", 0.0)
            self._say(f"credentials of the bus are not renewed: {error}")
            return False
        except Exception as error:  # noqa: BLE001 - a loop's edge: nobody would begin it again
            self._say(f"credentials of the bus are not renewed: {type(error).__name__}: {error}")
            return False
        self._said = ""
        return True

    def _due(self, now: float) -> Callable[[], Awaitable[Renewed]] | None:
        """How to ask for credentials now; None while there is no need."""
        if not self._bus.connected:
            error = self._bus.last_error.lower()
            refused = any(word in error for word in REFUSALS)
            return self._over_https if refused and self._url else None
        claims = natsjwt.claims(self._identity.user_jwt)
        issued, ends = claims.get("iat", 0), claims.get("exp", 0)
        return self._over_bus if now >= (issued + ends) / 2 else None

    async def _over_bus(self) -> Renewed:
        subject = subjects.credentials(self._identity.host_id)
        try:
            raw = await self._bus.request(subject, b"")
        except (Refused, Unavailable) as error:  # its text may have come over the bus, signed by nobody
            raise Unavailable("the control plane gives none over the bus now") from error
        return _decoded(raw)

    async def _over_https(self) -> Renewed:
        from aegisflux.agent.enroll import (
            renew,  # an HTTP client, which an agent that runs has no other use for
        )

        return _decoded(await self._blocking(renew, self._identity, self._url, self._seed))

    async def _take(self, found: Renewed) -> None:
        claims, host = natsjwt.claims(found.user_jwt), self._identity.host_id
        if (claims.get("name"), claims.get("sub")) != (host, self._user):
            raise Refused(f"expected credentials of {host} and its key, got those of another host or key")
        self._identity = replace(self._identity, user_jwt=found.user_jwt, nats_urls=found.nats_urls)
        self._bus.use(found.user_jwt)
        self._unwritten = True  # a full disk stops no renewal

    async def _write(self) -> None:
        await self._blocking(self._store.write, IDENTITY, msgspec.msgpack.encode(self._identity))
        self._unwritten = False
        self._log("credentials of the bus are renewed")

    def _say(self, text: str) -> None:
        if text != self._said:
            self._log(text)
        self._said = text


def _decoded(raw: bytes) -> Renewed:
    try:
        return msgspec.json.decode(raw, type=Renewed)
    except BROKEN as error:
        raise Refused(f"the answer is not one: {in_words(error, Renewed)}") from None
