"""Credentials of hosts on the bus: each ends after some days, and the host asks for one that ends later.

It asks over the bus while its credentials hold, and over HTTP with the key of its enrolment when they have
ended. What it gets is of no use without that key.
"""

import msgspec

from aegisflux.domain.errors import Forbidden, Invalid
from aegisflux.ports.bus import Message
from aegisflux.services.orchestrator.core import Core
from aegisflux.services.orchestrator.keys import verified
from aegisflux.wire import subjects
from aegisflux.wire.token import Renewed, RenewRequest, b64, from_b64, renewal_bytes

NOT_ENROLLED = "this host cannot be renewed: no host of this name is enrolled with the key of this proof"


class HostCredentials:
    """The responder on the bus, and what is behind RENEW_PATH."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def answer(self, message: Message) -> bytes:
        """A Renewed for the host that the subject proves."""
        host = subjects.host_of(message.subject)
        return msgspec.json.encode(self._made(host, await self._key(host)))

    async def renew(self, request: RenewRequest) -> Renewed:
        """A Renewed for the host that proves its key; raises Invalid or Forbidden, and Unavailable."""
        try:
            host = subjects.host_token(request.host_id)
        except Invalid:
            raise Forbidden(NOT_ENROLLED) from None
        public, proof = await self._key(host), from_b64(request.proof, "proof", 64)
        if not verified(public, renewal_bytes(host), proof):
            raise Forbidden(NOT_ENROLLED)
        await self._core.accounts.admit_agent(host, public)
        await self._core.hearing.add(host)
        return self._made(host, public)

    async def _key(self, host: str) -> bytes:
        row = await self._core.store.row("host", host)
        if row is None or row["released_at"] is not None or row["public_key"] is None:
            raise Forbidden(NOT_ENROLLED)
        public = bytes(row["public_key"])
        if self._core.register.rights.released_host(b64(public)):
            raise Forbidden(NOT_ENROLLED)  # an older store brought it back
        return public

    def _made(self, host: str, public: bytes) -> Renewed:
        core = self._core
        return Renewed(core.accounts.issue_agent(host, public, core.now()), core.options.nats_urls)
