"""Contents by digest: from the cache, else from the control plane in chunks; verified either way."""

import asyncio
import random
from typing import Final, NamedTuple

import msgspec

from aegisflux.agent.parts import Parts
from aegisflux.agent.troubles import Troubles
from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import BROKEN, Busy, Invalid, Refused, Unavailable, Unheard
from aegisflux.domain.manifest import (
    MAX_CONTENT_BYTES,
    ActiveRef,
    CandidateRef,
    ContentChunk,
    ContentRequest,
    HostContent,
)
from aegisflux.domain.tables import TABLES_FORMAT
from aegisflux.domain.trust import Nacked, Trusted, accept_body, check_signature, now_of
from aegisflux.wire import envelope, subjects
from aegisflux.wire.content import unpacked

CHUNK_SECONDS: Final = 3.0
LARGE_BYTES: Final = 512 << 10


class Patience(NamedTuple):
    """How often one chunk is asked for, after pauses of so many seconds, and what is said in the end."""

    tries: int
    pause: tuple[float, float]
    says: str


# Who is busy, or hears no more of this host for a moment, is well: both pass.
PATIENCE: Final[dict[type, Patience]] = {
    Busy: Patience(30, (0.5, 1.5), "is busy"),
    Unheard: Patience(80, (0.05, 0.2), "is away"),
    Unavailable: Patience(4, (0.0, 0.0), "does not answer"),
}
REFUSALS: Final = {
    "unsupported_format": f"the control plane does not compile tables of format {TABLES_FORMAT}",
    "not_signed": "the control plane does not sign it: its row in the database is not as it was posted",
    "not_named": "the control plane does not find it in the manifest of this host",
}


class Contents:
    """What the host's manifest names, as the control plane signed it."""

    def __init__(self, parts: Parts, troubles: Troubles) -> None:
        self._parts, self._troubles = parts, troubles

    async def get(self, trusted: Trusted, service_id: int, ref: ActiveRef | CandidateRef) -> HostContent:
        """The verified content; raises Nacked, or Unavailable when nobody has it now.

        A cached copy that no longer holds (damaged, or its key was rotated out) is fetched again.
        """
        parts = self._parts
        cached = await parts.blocking(parts.store.content, ref.digest)
        if cached is not None:
            try:
                return await parts.blocking(self._verified, trusted, service_id, ref, cached)
            except Nacked as error:
                parts.log(f"cached content {ref.digest}: {error}; fetching it again")
        sealed = await self._fetch(ref.digest)
        content = await parts.blocking(self._verified, trusted, service_id, ref, sealed)
        await self._keep(ref.digest, sealed)
        return content

    async def _keep(self, digest: str, sealed: bytes) -> None:
        """For the next start. Without it a host that boots while the control plane is away has nothing."""
        try:
            await self._parts.blocking(self._parts.store.keep_content, digest, sealed)
        except Unavailable as error:
            self._troubles.not_written(f"content {digest}", error)
        else:
            self._troubles.end(f"content {digest}")

    async def keep_again(self, digests: frozenset[str]) -> None:
        """Fetch and keep those that the disk did not take; raises Unavailable when nobody has them now."""
        for digest in digests:
            if f"content {digest}" in self._troubles:
                await self._keep(digest, await self._fetch(digest))

    def _verified(
        self, trusted: Trusted, service_id: int, ref: ActiveRef | CandidateRef, sealed: bytes
    ) -> HostContent:
        parts, wall = self._parts, self._parts.wall()
        signed = envelope.opened(envelope.decode_envelope(sealed, MAX_CONTENT_BYTES), envelope.CONTENT)
        check_signature(trusted, signed, now_of(trusted, wall), parts.verify)
        try:
            body = unpacked(signed.payload)
        except Invalid as error:
            raise Nacked("bad_schema", str(error)) from None
        del signed  # large, as all of this is: what was checked is not needed beside what it says
        content = accept_body(body, ref, HostContent)
        if content.service_id != service_id:
            raise Nacked("bad_schema", f"expected service {service_id}, got content of {content.service_id}")
        return content

    async def _fetch(self, digest: str) -> bytes:
        got = bytearray()
        while True:
            chunk = await self._chunk(digest, len(got))
            if chunk.error:
                why = REFUSALS.get(chunk.error.partition(":")[0], "the control plane does not give it")
                raise Unavailable(f"content {digest}: {why}")
            if not 0 < chunk.total <= MAX_CONTENT_BYTES:
                raise Nacked("over_limit", f"content of {chunk.total} bytes, at most {MAX_CONTENT_BYTES}")
            if not got and chunk.total > LARGE_BYTES:
                await self._parts.blocking(self._parts.trim)
            got += chunk.data
            if len(got) == chunk.total:
                return bytes(got)
            if not chunk.data or len(got) > chunk.total:
                raise Unavailable(f"content {digest}: expected {chunk.total} bytes, got {len(got)}")

    async def _chunk(self, digest: str, offset: int) -> ContentChunk:
        ask = msgspec.msgpack.encode(ContentRequest(digest, TABLES_FORMAT, offset))
        bus, subject = self._parts.bus, subjects.content(self._parts.host_id)
        left = {kind: patience.tries for kind, patience in PATIENCE.items()}
        while True:
            try:
                answer = await bus.request(subject, ask, timeout=CHUNK_SECONDS)
                return msgspec.msgpack.decode(answer, type=ContentChunk)
            except Refused as error:  # its text came over the bus, signed by nobody
                raise Unavailable(f"content {digest}: the control plane refuses the request") from error
            except BROKEN as error:
                raise Unavailable(f"content {digest}: not a chunk: {in_words(error, ContentChunk)}") from None
            except Unavailable as error:
                if not bus.connected:
                    raise
                kind = next(kind for kind in type(error).__mro__ if kind in PATIENCE)
                left[kind] -= 1
                if not left[kind]:
                    raise Unavailable(f"content {digest}: the control plane {PATIENCE[kind].says}") from error
                await asyncio.sleep(random.uniform(*PATIENCE[kind].pause))
