"""A control plane in a few lines, for agents under test: it signs what it likes, also what it must not."""

import time
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from aegisflux.adapters.bus.memory import Broker, MemoryBus
from aegisflux.adapters.datapath.simulated import SimulatedDatapath
from aegisflux.agent.cgroups import FixedCgroups
from aegisflux.agent.parts import AgentSettings, Parts, inline
from aegisflux.agent.runner import Runner
from aegisflux.agent.state import MemoryStore
from aegisflux.domain import snapshot
from aegisflux.domain.manifest import (
    CHUNK_BYTES,
    ActiveRef,
    Answer,
    Confirm,
    Content,
    ContentChunk,
    ContentRequest,
    Heartbeat,
    HostManifest,
    KeySet,
    PublicKey,
    ServiceState,
)
from aegisflux.domain.trust import Trusted
from aegisflux.wire import canonical, envelope, subjects

WALL = 1_700_000_000
FOREVER = WALL * 2


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(public).verify(message, signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True


def signer(key: SigningKey):
    return lambda data: key.sign(data).signature


@dataclass
class Clocks:
    """The host's two clocks, moved by hand."""

    wall: float = float(WALL)
    boot_ns: int = 10**12

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.boot_ns += int(seconds * 10**9)


def body(version: int, service_id: int = 101, **fields) -> dict:
    return {"version": version, "service_id": service_id, "ttl_seconds": 600, **fields}


def edges(*texts: str) -> list[dict]:
    """`10.0.0.0/8 tcp/443` as edges."""
    found = []
    for text in texts:
        cidr, _, rest = text.partition(" ")
        proto, _, port = rest.partition("/")
        found.append({"dst_cidr": cidr, "proto": proto, "port": int(port)})
    return found


@dataclass
class Plane:
    """Root, one snapshot key, and the contents that were made; `host` is whom manifests are for."""

    host: str = "web1"
    root: SigningKey = field(default_factory=SigningKey.generate)
    key: SigningKey = field(default_factory=SigningKey.generate)
    wall: object = time.time
    key_id: str = "k1"
    keys_version: int = 1
    serial: int = 0
    sealed: dict[str, bytes] = field(default_factory=dict)
    known: dict[str, Content] = field(default_factory=dict)

    def key_set(self, **changes) -> KeySet:
        own = PublicKey(self.key_id, bytes(self.key.verify_key), 0, FOREVER)
        return KeySet(changes.get("version", self.keys_version), changes.get("keys", (own,)))

    def trusted(self, **changes) -> Trusted:
        first = {"host_id": self.host, "root": bytes(self.root.verify_key), "keys": self.key_set(), **changes}
        return Trusted(**first)

    def seal(self, kind: str, value, key: SigningKey | None = None, key_id: str | None = None):
        payload = value if isinstance(value, bytes) else msgspec.msgpack.encode(value)
        return envelope.seal(kind, payload, key_id or self.key_id, signer(key or self.key))

    def content(self, fields: dict, key: SigningKey | None = None) -> Content:
        """Compile and sign a snapshot; it can be fetched from now on."""
        made = canonical.content_of(snapshot.from_builtins(fields))
        self.sealed[made.digest] = envelope.encode(self.seal(envelope.CONTENT, canonical.packed(made), key))
        self.known[made.digest] = made
        return made

    def service(self, content: Content | None, **changes) -> ServiceState:
        """Desired state of the service of a content."""
        values = {"service_id": 101, "name": "web", "selectors": ("cgroup:web",), **changes}
        lease = values.pop("lease", None)
        confirm = values.pop("confirm", 0)
        if content is not None:
            until = int(self.wall()) + content.ttl_seconds if lease is None else lease
            active = ActiveRef(content.version, content.digest, until, confirm)
            values = {"active": active, **values, "service_id": values.get("service_id", content.service_id)}
            values["service_id"] = content.service_id
        return ServiceState(**values)

    def manifest(self, *services: ServiceState, **changes) -> HostManifest:
        self.serial = changes.pop("serial", self.serial + 1)
        now = int(self.wall())
        values = {
            "host_id": self.host,
            "serial": self.serial,
            "issued_at": now,
            "not_after": now + 86_400,
            "services": services,
            **changes,
        }
        return HostManifest(**values)

    def message(self, manifest: HostManifest, *, key=None, key_id=None, keys=None, root=None) -> bytes:
        """The bytes on the host's desired-state subject."""
        key_set = envelope.seal(
            envelope.KEY_SET,
            msgspec.msgpack.encode(keys or self.key_set()),
            "root",
            signer(root or self.root),
        )
        signed = self.seal(envelope.MANIFEST, manifest, key, key_id)
        return envelope.encode(envelope.ManifestMessage(key_set, signed))

    def desired(self, *services: ServiceState, **changes) -> bytes:
        return self.message(self.manifest(*services, **changes))

    def confirm(self, content: Content, serial: int | None = None, **changes) -> bytes:
        values = {
            "host_id": self.host,
            "serial": self.serial if serial is None else serial,
            "service_id": content.service_id,
            "version": content.version,
            "digest": content.digest,
            **changes,
        }
        return envelope.encode(self.seal(envelope.CONFIRM, Confirm(**values)))

    async def serve(self, message) -> bytes:
        """Answer content requests."""
        ask = msgspec.msgpack.decode(message.payload, type=ContentRequest)
        data = self.sealed.get(ask.digest)
        if data is None:
            return msgspec.msgpack.encode(ContentChunk(0, b"", "no such content"))
        chunk = ContentChunk(len(data), data[ask.offset : ask.offset + CHUNK_BYTES])
        return msgspec.msgpack.encode(chunk)


class AgentLab:
    """One agent with a simulated kernel and clocks moved by hand; `answers` are what it told the plane."""

    def __init__(self, **settings) -> None:
        self.clocks = Clocks()
        self.plane = Plane(wall=lambda: self.clocks.wall)
        self.broker = Broker()
        self.bus = MemoryBus(self.broker)
        self.store = MemoryStore()
        self.kernel = SimulatedDatapath(lambda: self.clocks.boot_ns)
        self.cgroups = FixedCgroups({"web": 11, "db": 12})
        self.host_key = SigningKey.generate()
        self.boot_id = "boot-1"
        self.settings = AgentSettings(**settings)
        self.logs: list[str] = []
        self.probed: list[tuple[str, str]] = []
        self.probe_answers: dict[str, str] = {}
        self.runner = self.agent()

    def agent(self) -> Runner:
        """A new agent process on what this host remembers."""
        parts = Parts(
            host_id=self.plane.host,
            boot_id=self.boot_id,
            version="test",
            bus=self.bus,
            datapath=self.kernel,
            store=self.store,
            cgroups=self.cgroups,
            sign=signer(self.host_key),
            verify=verify,
            wall=lambda: self.clocks.wall,
            blocking=inline,
            prober=self.probe,
            trim=lambda: None,
            log=self.logs.append,
            settings=self.settings,
        )
        return Runner(parts, self.plane.trusted())

    async def probe(self, cgroup: str, target: str) -> str:
        self.probed.append((cgroup, target))
        return self.probe_answers.get(target, "")

    async def begin(self) -> "AgentLab":
        await self.bus.ensure_streams()
        await self.bus.serve(subjects.content(self.plane.host), self.plane.serve)
        await self.runner.start()
        return self

    async def restart(self, *, reboot: bool = False) -> None:
        """The process dies and a new one starts; a reboot empties the kernel."""
        self.kernel.close()
        if reboot:
            self.kernel = SimulatedDatapath(lambda: self.clocks.boot_ns)
            self.boot_id += "+"
            self.clocks.boot_ns = 10**9
        self.runner = self.agent()
        await self.runner.start()

    def one_edge(self, version: int = 1, **fields) -> Content:
        """A version of a snapshot that allows one address."""
        return self.plane.content(body(version, edges=edges("10.0.0.1/32 tcp/443"), **fields))

    async def desire(self, *services: ServiceState, **changes) -> None:
        """Give the agent a manifest and let it converge."""
        await self.give(self.plane.desired(*services, **changes))

    async def give(self, data: bytes) -> None:
        if await self.runner.receive(data):
            await self.runner.converge()

    def answers(self) -> list[Answer]:
        """Acks and nacks since the last call, their signatures checked."""
        found = []
        box = self.runner.reporter._outbox
        while box:
            _, payload = box.popleft()
            sealed = envelope.decode_envelope(payload, 1 << 20)
            signed = envelope.opened(sealed, envelope.ANSWER)
            assert verify(bytes(self.host_key.verify_key), signed.signed_bytes, signed.signatures[0][1])
            found.append(msgspec.msgpack.decode(signed.payload, type=Answer))
        return found

    def said(self) -> list[str]:
        """The same, in words."""
        return [described(answer) for answer in self.answers()]

    def heartbeat(self) -> Heartbeat:
        return self.runner.heartbeat()

    def held(self) -> list[str]:
        """What the kernel judges by, in words."""
        return [f"{h.role} {h.service_id} v{h.version}" for h in self.kernel.held()]


def described(answer: Answer) -> str:
    if type(answer).__name__ == "Ack":
        waits = " awaits confirm" if answer.awaits_confirm else ""
        return f"ack {answer.service_id} v{answer.version}{waits}"
    what = "" if answer.service_id is None else f" {answer.service_id} v{answer.version}"
    return f"nack {answer.reason}{what}"


def sha(data: bytes) -> str:
    return sha256(data).hexdigest()
