"""A control plane in miniature: the real bus with its real accounts, and signed manifests and contents."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
from nacl.signing import SigningKey
from tests.support.engines import NatsLab, running_nats

from aegisflux.adapters.bus.nats import NatsBus
from aegisflux.agent.identity import IDENTITY, KEY, Identity
from aegisflux.agent.state import FileStore
from aegisflux.domain.manifest import (
    CHUNK_BYTES,
    ActiveRef,
    Content,
    ContentChunk,
    ContentRequest,
    HostManifest,
    KeySet,
    PublicKey,
    ServiceState,
)
from aegisflux.ports.bus import Message
from aegisflux.wire import envelope, subjects
from aegisflux.wire.canonical import packed

FOREVER: Final = 2**40
HOUR: Final = 3600


class Signer:
    """One root key and one snapshot key."""

    def __init__(self) -> None:
        self._root, self._key = SigningKey.generate(), SigningKey.generate()
        self.root = bytes(self._root.verify_key)
        keys = KeySet(1, (PublicKey("k1", bytes(self._key.verify_key), 0, FOREVER),))
        self.keys = envelope.seal(
            envelope.KEY_SET,
            msgspec.msgpack.encode(keys),
            "root",
            lambda data: self._root.sign(data).signature,
        )

    def sealed(self, kind: str, payload: bytes) -> envelope.Envelope:
        """Signed by the snapshot key."""
        return envelope.seal(kind, payload, "k1", lambda data: self._key.sign(data).signature)

    def manifest(self, host: str, serial: int, services: tuple[ServiceState, ...]) -> bytes:
        """A host's desired state as it lies on its subject."""
        now = int(time.time())
        made = HostManifest(host, serial, now, now + HOUR, services)
        return envelope.encode(
            envelope.ManifestMessage(self.keys, self.sealed(envelope.MANIFEST, msgspec.msgpack.encode(made)))
        )


class Miniature:
    """One host's control plane: `put` says what is to be in force."""

    def __init__(self, lab: NatsLab, bus: NatsBus, host: str) -> None:
        self.lab, self.bus, self.host = lab, bus, host
        self.signer = Signer()
        self._contents: dict[str, bytes] = {}
        self._serial = 0

    def enrolled(self, state: Path) -> None:
        """Write what enrolment would have written."""
        store, seed = FileStore(state), bytes(SigningKey.generate())
        credentials = self.lab.agent(self.host, seed)
        identity = Identity(
            self.host,
            credentials.jwt,
            (self.lab.engine.url,),
            self.lab.pki.ca_pem,
            self.signer.root,
            envelope.encode(self.signer.keys),
        )
        store.write(KEY, seed)
        store.write(IDENTITY, msgspec.msgpack.encode(identity))

    async def put(self, content: Content, name: str, selectors: tuple[str, ...]) -> None:
        """Announce this content as the host's only service."""
        sealed = envelope.encode(self.signer.sealed(envelope.CONTENT, packed(content)))
        self._contents[content.digest] = sealed
        self._serial += 1
        ref = ActiveRef(content.version, content.digest, int(time.time()) + HOUR)
        service = ServiceState(content.service_id, name, selectors, ref)
        message = self.signer.manifest(self.host, self._serial, (service,))
        await self.bus.publish(subjects.desired(self.host), message, msg_id=f"bench:{self._serial}")

    async def answer(self, message: Message) -> bytes:
        """One chunk of a content."""
        asked = msgspec.msgpack.decode(message.payload, type=ContentRequest)
        sealed = self._contents[asked.digest]
        chunk = ContentChunk(len(sealed), sealed[asked.offset : asked.offset + CHUNK_BYTES])
        return msgspec.msgpack.encode(chunk)


@asynccontextmanager
async def miniature(directory: Path, host: str) -> AsyncIterator[Miniature]:
    """A server with its streams, below a folder that the caller removes."""
    async with running_nats(directory) as lab, lab.control() as bus:
        await bus.ensure_streams()
        made = Miniature(lab, bus, host)
        serving = await bus.serve(subjects.content(host), made.answer)
        try:
            yield made
        finally:
            await serving.close()
