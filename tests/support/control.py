"""A real control plane for tests: NATS and PostgreSQL from their wheels, the orchestrator in this process,
fake agents.
"""

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec.structs import replace
from nacl.signing import SigningKey

from aegisflux.adapters.bus.accounts import LiveAccounts
from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.adapters.secrets.file import FileSecrets
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.domain.decided import ADOPT
from aegisflux.domain.manifest import (
    Ack,
    ContentChunk,
    ContentRequest,
    Heartbeat,
    HostManifest,
    Nack,
    ServiceReport,
)
from aegisflux.domain.roles import Principal
from aegisflux.runtime.clock import WallClock
from aegisflux.runtime.register import AUDIT
from aegisflux.runtime.supervise import Process
from aegisflux.services.orchestrator import agreed
from aegisflux.services.orchestrator.app import Orchestrator
from aegisflux.services.orchestrator.core import Core, Options, Who
from aegisflux.services.orchestrator.keys import Keys
from aegisflux.services.orchestrator.prepare import Workshop
from aegisflux.wire import envelope, subjects
from aegisflux.wire.natsjwt import Credentials
from aegisflux.wire.token import EnrollRequest, b64, proof_bytes
from tests.support.engines import NatsLab, opened, running_nats

NO_TABLES = "sha256:" + "0" * 64
WHO = Who(Principal("tester", "admin"), "test", "req-test")


@dataclass
class FakeAgent:
    """A scripted host: follows its manifest, fetches contents, acks what it is told to."""

    host: str
    key: SigningKey
    credentials: Credentials
    bus: object = None
    serial: int = 0
    answer: bool = True
    nack: str = ""
    manifests: list[HostManifest] = field(default_factory=list)
    confirms: list[object] = field(default_factory=list)
    in_force: dict = field(default_factory=dict)
    beside: dict = field(default_factory=dict)
    tables: dict = field(default_factory=dict)
    addresses: tuple = ()

    async def start(self, bus) -> None:
        """Watch, then look at what lies there already."""
        self.bus = bus
        await bus.watch(subjects.desired(self.host), self.on_manifest)
        await bus.watch(subjects.confirm(self.host), self.on_confirm)
        last = await bus.last(subjects.desired(self.host))
        if last is not None:
            await self.on_manifest(last)

    async def on_confirm(self, message) -> None:
        self.confirms.append(envelope.decode_envelope(message.payload, 1 << 20))

    async def on_manifest(self, message) -> None:
        sealed = envelope.decode_manifest_message(message.payload, 1 << 20)
        manifest = msgspec.msgpack.decode(sealed.manifest.payload, type=HostManifest)
        assert manifest.host_id == self.host
        if manifest.serial <= self.serial:
            return
        self.serial = manifest.serial
        self.manifests.append(manifest)
        self.beside = {s.service_id: s.candidate for s in manifest.services if s.candidate}
        governed = {service.service_id for service in manifest.services if service.active}
        self.in_force = {n: held for n, held in self.in_force.items() if n in governed}
        if self.answer:
            for service in manifest.services:
                if service.active:
                    await self.apply(manifest, service)

    async def apply(self, manifest, service) -> None:
        active = service.active
        if self.nack:
            said = Nack(
                self.host,
                self.nack,
                "scripted",
                manifest.serial,
                service.service_id,
                active.version,
                active.digest,
            )
        else:
            self.in_force[service.service_id] = active
            said = Ack(
                self.host, manifest.serial, service.service_id, active.version, active.digest,
                self.tables.get(active.digest, NO_TABLES),
                active.lease_until, time.time(), active.confirm_seconds > 0,
            )  # fmt: skip
        await self.send(said)

    async def send(self, said, key=None, subject=None) -> None:
        """Publish an answer, by default with our own key on our own subject."""
        kind = envelope.HEARTBEAT if isinstance(said, Heartbeat) else envelope.ANSWER
        key = key or self.key
        sealed = envelope.seal(
            kind, msgspec.msgpack.encode(said), self.host, lambda data: key.sign(data).signature
        )
        default = subjects.heartbeat(self.host) if isinstance(said, Heartbeat) else subjects.acks(self.host)
        await self.bus.publish(
            subject or default, envelope.encode(sealed), msg_id=f"{self.host}-{time.time_ns()}"
        )

    async def beat(self, cgroups=(), state="in_force", services=None, **changes) -> None:
        """One heartbeat."""
        reports = tuple(
            ServiceReport(
                number, state, a.version, a.digest, self.tables.get(a.digest, NO_TABLES), a.lease_until,
                tuple(cgroups), candidate=self.beside[number].digest if number in self.beside else None,
            )
            for number, a in self.in_force.items()
        ) + tuple(
            ServiceReport(number, "pending", cgroups=tuple(cgroups), candidate=c.digest)
            for number, c in self.beside.items()
            if number not in self.in_force
        )  # fmt: skip
        beat = Heartbeat(
            self.host, "boot", "0", (1,), (), self.serial, services if services is not None else reports,
            time.time(), False, "simulated", addresses=self.addresses,
        )  # fmt: skip
        await self.send(replace(beat, **changes))

    async def fetch(self, digest: str) -> bytes:
        """The signed bytes of a content, chunk by chunk."""
        data = b""
        while True:
            request = msgspec.msgpack.encode(ContentRequest(digest, 1, len(data)))
            answer = await self.bus.request(subjects.content(self.host), request)
            chunk = msgspec.msgpack.decode(answer, type=ContentChunk)
            if chunk.error:
                raise LookupError(chunk.error)
            data += chunk.data
            if len(data) >= chunk.total:
                return data


@dataclass
class Plane:
    """Everything that runs."""

    lab: NatsLab
    postgres: Process
    dsn: str
    store: PostgresStore
    orchestrator: Orchestrator
    stack: AsyncExitStack
    bus: object

    async def enroll(self, host: str, labels: dict | None = None) -> FakeAgent:
        """Enrol a host as an agent does; its bus is not opened."""
        token = await self.orchestrator.hosts.token(labels or {}, None, 600, WHO)
        key = SigningKey.generate()
        answer = await self.orchestrator.hosts.enroll(request_of(token.token, host, key), WHO)
        return FakeAgent(host, key, Credentials(answer.user_jwt, bytes(key)))

    async def agent(self, host: str, labels: dict | None = None, **settings) -> FakeAgent:
        """An enrolled fake agent that follows its manifests."""
        agent = await self.enroll(host, labels)
        for name, value in settings.items():
            setattr(agent, name, value)
        bus = await self.stack.enter_async_context(opened(self.lab.bus(agent.credentials)))
        await agent.start(bus)
        return agent


async def disagreements(plane: Plane) -> list[str]:
    """Where the store is not as its audit log says, of what gives a right."""
    _, _, found = await agreed.disagreements(plane.store, plane.orchestrator.access.register)
    return found


async def told(plane: Plane, name: str, text: str) -> None:
    """Have the audit log say this of an object, as of one of an earlier version."""
    async with plane.store.change() as db:
        await db.audit(Who().did(ADOPT, name, after=text))


def request_of(token: str, host: str, key: SigningKey) -> EnrollRequest:
    """What an agent posts."""
    proof = key.sign(proof_bytes(token, host)).signature
    return EnrollRequest(token, host, b64(bytes(key.verify_key)), b64(proof))


def core_of(lab: NatsLab, store, bus, system, **options) -> Core:
    """The core over a lab."""
    secrets = FileSecrets(lab.directory / "secrets")
    given = {"confirm_seconds": 30, "renew_every": 0.2} | options
    return Core(
        store=store,
        bus=bus,
        accounts=LiveAccounts.over(system, lab.accounts),
        clock=WallClock(),
        keys=Keys(secrets),
        workshop=Workshop(1),
        options=Options(
            enroll_url="http://127.0.0.1:8081",
            nats_urls=(lab.engine.url,),
            ca_pem=lab.pki.ca_pem,
            ca_sha256=lab.pki.ca_sha256,
            **given,
        ),
    )


@asynccontextmanager
async def running_plane(directory: Path, **options):
    """Engines and orchestrator, started and stopped."""
    async with AsyncExitStack() as stack:
        directory.mkdir(parents=True, exist_ok=True)
        lab = await stack.enter_async_context(running_nats(directory))
        engine = PostgresEngine(directory / "postgres", log=directory / "postgres.log")
        process = Process(engine.child(), directory / "run")
        await process.start()
        stack.push_async_callback(process.stop)
        audit_key = FileSecrets(directory / "secrets").obtain(AUDIT, lambda: b"k" * 32)
        store = PostgresStore(engine.dsn, audit_key)
        await store.open()
        stack.push_async_callback(store.close)
        bus = await stack.enter_async_context(opened(lab.bus(lab.accounts.control_creds(int(time.time())))))
        system = await stack.enter_async_context(lab.system())
        orchestrator = Orchestrator(core_of(lab, store, bus, system, **options))
        await orchestrator.start()
        stack.push_async_callback(orchestrator.close)
        agents = await stack.enter_async_context(AsyncExitStack())
        yield Plane(lab, process, engine.dsn, store, orchestrator, agents, bus)


def body(service_id: int, version: int, **more) -> bytes:
    """A small snapshot as JSON."""
    edges = [{"dst_cidr": "10.1.0.0/16", "proto": "tcp", "port": 443}]
    return msgspec.json.encode(
        {"version": version, "service_id": service_id, "ttl_seconds": 600, "edges": edges} | more
    )


async def settled(seconds: float = 0.0) -> None:
    """Let callbacks run."""
    await asyncio.sleep(seconds)


__all__ = [
    "WHO",
    "FakeAgent",
    "Plane",
    "body",
    "core_of",
    "disagreements",
    "request_of",
    "running_plane",
    "settled",
    "told",
]
