"""A real NATS with our accounts and a real PostgreSQL, started once a module, below a temporary folder."""

import asyncio
import random
import socket
import time
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nacl.signing import SigningKey

from aegisflux.adapters.bus.accounts import NatsAccounts
from aegisflux.adapters.bus.nats import NatsBus, NatsOptions
from aegisflux.adapters.engines.nats import NatsEngine
from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.adapters.secrets.file import FileSecrets
from aegisflux.adapters.secrets.pki import Pki
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.runtime.supervise import Process
from aegisflux.wire import subjects
from aegisflux.wire.natsjwt import Credentials

OFFSETS = (0, 1, 2, 5)  # the API, NATS, enrich, ingest


def free_port() -> int:
    """A port that nobody held a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_base() -> int:
    """A base of ports that a control plane finds free, outside of those that clients are given."""
    draw = random.SystemRandom()
    while True:
        base = draw.randrange(10_000, 32_000, 10)
        try:
            with ExitStack() as stack:
                for offset in OFFSETS:
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        return base


async def eventually(check, seconds: float = 10.0):
    """The first true answer of `check` (may be async); fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = check()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not true within {seconds} s: {check}"
        await asyncio.sleep(0.02)


@dataclass
class NatsLab:
    """The server, its accounts, and users made on demand."""

    directory: Path
    accounts: NatsAccounts
    pki: Pki
    engine: NatsEngine
    process: Process
    troubles: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, directory: Path) -> "NatsLab":
        now = int(time.time())
        secrets = FileSecrets(directory / "secrets")
        pki = Pki(secrets, now)
        accounts = NatsAccounts(secrets, now)
        files = pki.server("nats", ["localhost", "127.0.0.1"], now)
        engine = NatsEngine(
            data_dir=directory / "nats",
            host="127.0.0.1",
            port=free_port(),
            certificate=files.certificate,
            key=files.key,
            accounts=accounts.server_config,
            log=directory / "nats.log",
        )
        (directory / "run").mkdir()
        return cls(directory, accounts, pki, engine, Process(engine.child(), directory / "run"))

    def bus(self, credentials: Credentials) -> NatsBus:
        """A bus of the user, not opened."""
        return NatsBus(
            NatsOptions(
                urls=[self.engine.url],
                credentials=credentials,
                ca_pem=self.pki.ca_pem,
                trouble=self.troubles.append,
            )
        )

    def agent(self, host: str, seed: bytes | None = None) -> Credentials:
        """Credentials of an agent, as enrolment makes them."""
        seed = seed or bytes(SigningKey.generate())
        public = bytes(SigningKey(seed).verify_key)
        self.admit(host, public)
        return Credentials(self.accounts.issue_agent(host, public, int(time.time())), seed)

    def admit(self, host: str, public: bytes) -> None:
        """Let the server find the account of a host in its folder, as one that was pushed there."""
        subjects.host_token(host)
        folder = self.engine.data_dir / "accounts"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        account = self.accounts.host_account(host, public)
        (folder / f"{account}.jwt").write_text(self.accounts.host_claim(host, public))

    @asynccontextmanager
    async def control(self):
        """The bus of our services, connected."""
        async with opened(self.bus(self.accounts.control_creds(int(time.time())))) as bus:
            yield bus

    @asynccontextmanager
    async def system(self):
        """The bus that pushes account claims, connected."""
        async with opened(self.bus(self.accounts.system_creds(int(time.time())))) as bus:
            yield bus


@asynccontextmanager
async def opened(bus: NatsBus):
    """The bus while it is open and connected."""
    bus.open()
    try:
        await bus.ready(10)
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def running_postgres(folder: Path, audit_key: bytes):
    """A server of ours with the tables of the store, made by its owner, and a role for each service."""
    engine = PostgresEngine(folder / "postgres", log=folder / "postgres.log")
    process = Process(engine.child(), folder / "run")
    (folder / "run").mkdir(exist_ok=True)
    await process.start()
    try:
        store = PostgresStore(engine.dsn_of("orchestrator"), audit_key, owner=engine.dsn)
        await store.open()
        await store.close()
        yield engine
    finally:
        await process.stop()


@asynccontextmanager
async def running_nats(directory: Path):
    """A lab whose server runs."""
    lab = NatsLab.make(directory)
    await lab.process.start()
    try:
        yield lab
    finally:
        await lab.process.stop()
