"""Answers `agent.content.<host>`: a chunk of a signed content, only of digests that the host's manifest
names.
"""

from collections import OrderedDict

import msgspec

from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import BROKEN, Invalid, Refused
from aegisflux.domain.manifest import CHUNK_BYTES, ContentChunk, ContentRequest
from aegisflux.domain.tables import TABLES_FORMAT
from aegisflux.ports.bus import Message
from aegisflux.runtime import metrics
from aegisflux.services.orchestrator.core import Core
from aegisflux.services.orchestrator.posted import is_as_posted, name_of
from aegisflux.wire import envelope, subjects
from aegisflux.wire.envelope import Envelope, Signature

CACHE_BYTES = 128 << 20


class Contents:
    """The responder, with a bounded cache of encoded contents."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._held = 0

    async def answer(self, message: Message) -> bytes:
        """A chunk, or a chunk that says why there is none."""
        host = subjects.host_of(message.subject)
        try:
            request = msgspec.msgpack.decode(message.payload, type=ContentRequest)
        except BROKEN as error:
            raise Invalid("content request", "a ContentRequest", in_words(error, ContentRequest)) from None
        return msgspec.msgpack.encode(await self._chunk(host, request))

    def forget(self) -> None:
        """Contents were signed anew."""
        self._cache.clear()
        self._held = 0

    async def _chunk(self, host: str, request: ContentRequest) -> ContentChunk:
        if request.tables_format != TABLES_FORMAT:
            return ContentChunk(
                0, b"", f"unsupported_format: this control plane compiles format {TABLES_FORMAT}"
            )
        if not await self._allowed(host, request.digest):
            return ContentChunk(0, b"", f"not_named: the manifest of {host} does not name {request.digest}")
        try:
            data = self._cache.get(request.digest) or await self._load(request.digest)
        except Refused as error:
            return ContentChunk(0, b"", f"not_signed: {error}")
        if data is None or not 0 <= request.offset <= len(data):
            return ContentChunk(0, b"", "no such content or offset")
        metrics.content_chunks.inc()
        return ContentChunk(len(data), data[request.offset : request.offset + CHUNK_BYTES])

    async def _allowed(self, host: str, digest: str) -> bool:
        if digest in self._core.digests.get(host, ()):
            return True
        row = await self._core.store.row("digests_of_host", host)
        self._core.digests[host] = frozenset(row["digests"]) if row else frozenset()
        return digest in self._core.digests[host]

    async def _load(self, digest: str) -> bytes | None:
        row = await self._core.store.row("sealed", digest)
        if row is None:
            return None
        if row["key_id"] == self._core.keys.signing:
            signature = Signature(row["key_id"], row["signature"])
            data = envelope.encode(Envelope(envelope.CONTENT, row["payload"], (signature,)))
        else:  # posted before a rotation, and perhaps with a key that is gone
            if not is_as_posted(self._core.register, row):
                raise Refused(f"{name_of(row)}: it is not as it was posted, and is not signed anew")
            data = envelope.encode(self._core.keys.seal(envelope.CONTENT, row["payload"]))
        if digest not in self._cache:
            self._cache[digest] = data
            self._held += len(data)
        while self._held > CACHE_BYTES and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._held -= len(dropped)
        return data
