"""Hosts that share a control plane: each speaks with its own key over its own connection, well or badly."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from nacl.signing import SigningKey

from aegisflux.adapters.bus.nats import NatsBus, NatsOptions
from aegisflux.agent.enroll import enroll
from aegisflux.agent.identity import read_identity
from aegisflux.agent.state import MemoryStore
from aegisflux.domain.errors import Unheard
from aegisflux.domain.event import EventBatch, Exec
from aegisflux.domain.manifest import Ack, ContentChunk, ContentRequest, Heartbeat, HostManifest
from aegisflux.domain.trust import Nacked
from aegisflux.wire import envelope, subjects
from aegisflux.wire.events import encode_batch
from aegisflux.wire.natsjwt import Credentials
from tests.support.up import Up

NO_TABLES = "sha256:" + "0" * 64


class Site(msgspec.Struct, frozen=True):
    """What one host needs to speak; a process of an attack reads it from a file."""

    host: str
    user_jwt: str
    seed: bytes
    nats_urls: tuple[str, ...]
    ca_pem: str
    root: bytes
    keys: bytes
    port: int
    source_token: str = ""

    def write(self, path: Path) -> Path:
        """For another process."""
        path.write_bytes(msgspec.msgpack.encode(self))
        path.chmod(0o600)
        return path


def read_site(path: Path) -> Site:
    """As `Site.write` wrote it."""
    return msgspec.msgpack.decode(path.read_bytes(), type=Site)


def enrolled(up: Up, host: str, label: str = "neighbour") -> Site:
    """A host of this control plane."""
    asked = {"host_id": host, "labels": {"role": label}}
    answer = up.call("POST", "/api/v1/hosts/tokens", asked)
    assert answer.status == 201, answer.body
    store = MemoryStore()
    enroll(answer.json["token"], host, store)
    identity, seed = read_identity(store)
    return Site(
        host,
        identity.user_jwt,
        seed,
        identity.nats_urls,
        identity.ca_pem,
        identity.root,
        identity.keys,
        up.port,
    )


@dataclass
class Neighbour:
    """A host on the bus. `foreign` counts bytes on its subjects that the control plane did not sign."""

    site: Site
    bus: NatsBus
    serial: int = 0
    digest: str = ""
    version: int = 0
    foreign: int = 0
    seq: int = 0
    beats: int = 0
    troubles: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.site.host

    def signed(self, kind: str, value: Any) -> bytes:
        """A value, also one that is none of a schema, signed with the host's key."""
        key = SigningKey(self.site.seed)
        body = msgspec.msgpack.encode(value)
        return envelope.encode(envelope.seal(kind, body, self.host, lambda data: key.sign(data).signature))

    async def follow(self) -> None:
        """Hear what comes on the subjects of this host, and look at what lies there."""
        await self.bus.watch(subjects.desired(self.host), self._on_desired)
        if (last := await self.bus.last(subjects.desired(self.host))) is not None:
            await self._on_desired(last)
        await self.bus.watch(subjects.confirm(self.host), self._on_confirm)

    async def _on_desired(self, message) -> None:
        try:
            sealed = envelope.decode_manifest_message(message.payload, 1 << 20)
            manifest = msgspec.msgpack.decode(sealed.manifest.payload, type=HostManifest)
        except (Nacked, msgspec.DecodeError):
            self.foreign += len(message.payload)
            return
        self.serial = max(self.serial, manifest.serial)
        for service in manifest.services:
            if service.active:
                self.digest, self.version = service.active.digest, service.active.version

    async def _on_confirm(self, message) -> None:
        try:
            envelope.opened(envelope.decode_envelope(message.payload, 1 << 20), envelope.CONFIRM)
        except Nacked:
            self.foreign += len(message.payload)

    def ack(self, serial: int, service: int, **changes) -> bytes:
        """An ack; `changes` may hold what no ack may."""
        said = Ack(self.host, serial, service, 1, NO_TABLES, NO_TABLES, 2_000_000_000, time.time())
        return self.signed(envelope.ANSWER, msgspec.to_builtins(said) | changes)

    def beat(self, **changes) -> bytes:
        """A heartbeat."""
        self.beats += 1
        beat = Heartbeat(
            self.host, "boot", "0", (1,), (), self.serial, (), time.time(), False, "simulated",
            started=1,
        )  # fmt: skip
        return self.signed(envelope.HEARTBEAT, msgspec.to_builtins(beat) | changes)

    def batch(self, events: int = 20, boot: str = "boot-1") -> bytes:
        """Telemetry, whose sequences go on."""
        now, first = time.time_ns(), self.seq + 1
        self.seq += events
        found = tuple(
            Exec(seq=first + n, time_ns=now, pid=1000, start_ns=1, uid=0, path="/bin/true")
            for n in range(events)
        )
        return encode_batch(EventBatch(host_id=self.host, boot_id=boot, sent_ns=now, events=found))

    async def content(self, digest: str, timeout: float = 5.0) -> ContentChunk:
        """One chunk of a content, asked for as an agent asks."""
        ask, until = msgspec.msgpack.encode(ContentRequest(digest, 1, 0)), time.monotonic() + timeout
        while True:
            try:
                answer = await self.bus.request(subjects.content(self.host), ask, timeout)
                return msgspec.msgpack.decode(answer, type=ContentChunk)
            except Unheard:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.1)


@asynccontextmanager
async def speaking(site: Site):
    """The host's connection."""
    troubles: list[str] = []
    bus = NatsBus(
        NatsOptions(
            urls=site.nats_urls,
            credentials=Credentials(site.user_jwt, site.seed),
            ca_pem=site.ca_pem,
            trouble=troubles.append,
        )
    )
    bus.open()
    try:
        await bus.ready(30)
        yield Neighbour(site, bus, troubles=troubles)
    finally:
        await bus.close()


async def raw(neighbour: Neighbour):
    """The client library under the bus: it publishes without waiting."""
    return await neighbour.bus._client(time.monotonic() + 10)


def rss_mb(up: Up) -> dict[str, float]:
    """Resident memory of each service now, of NATS and of all of PostgreSQL's server process, in MB."""
    found = {}
    for path in (up.data / "run").glob("*.pid"):
        try:
            pid = json.loads(path.read_text())["pid"]
            status = Path(f"/proc/{pid}/status").read_text()
        except (OSError, ValueError):
            continue
        kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
        found[path.stem] = int(kilobytes[0]) / 1024 if kilobytes else 0.0
    return found


async def within(seconds: float, look, every: float = 0.02) -> float:
    """Seconds until `look` gives something true; TimeoutError after `seconds`."""
    began = time.monotonic()
    while not await look():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds:g} s")
        await asyncio.sleep(every)
    return time.monotonic() - began
