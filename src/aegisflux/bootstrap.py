"""Settings -> adapters -> services of the control plane; beside `maintenance` the only module of it that
names an adapter.

A service is imported where it is run: each process has the modules of its own service alone.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from aegisflux.adapters.bus.accounts import LIMITS_SUBJECT, LiveAccounts, NatsAccounts
from aegisflux.adapters.bus.nats import NatsBus, NatsOptions
from aegisflux.adapters.engines import given_nats, roles
from aegisflux.adapters.engines.nats import NatsEngine
from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.adapters.secrets.file import FileSecrets
from aegisflux.adapters.secrets.pki import Pki
from aegisflux.adapters.store import dsns
from aegisflux.adapters.store.blockers import Blockers
from aegisflux.adapters.store.facts import PostgresFacts, shaped
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.domain.errors import Conflict, NotFound, Refused, Unavailable
from aegisflux.ports.bus import Message
from aegisflux.runtime import logs, metrics, serving
from aegisflux.runtime.access import new_token
from aegisflux.runtime.clock import WallClock
from aegisflux.runtime.configured import check_url, text_of
from aegisflux.runtime.listener import Bind, Listener, at_path
from aegisflux.runtime.register import Register, audit_key
from aegisflux.runtime.spare import Spare
from aegisflux.runtime.supervise import ALIVE_SECONDS, RESTARTS, Child, Observer, Supervisor
from aegisflux.runtime.tasks import Tasks
from aegisflux.settings import Settings, bracketed
from aegisflux.wire.natsjwt import Credentials
from aegisflux.wire.token import b64

if TYPE_CHECKING:
    from litestar import Litestar

    from aegisflux.services.enrich.app import Enrich
    from aegisflux.services.ingest.app import Ingest
    from aegisflux.services.orchestrator.app import Orchestrator
    from aegisflux.services.orchestrator.core import Core

ADMIN, VIEWER, VIEWER_CREDS, DATABASE_URL = "admin-token", "viewer-token", "viewer.creds", "database-url"
FILE = "file:"
WATCH_SECONDS = 10.0  # until `bus watch` gives up to connect
T = TypeVar("T")
log = logs.get("bootstrap")


class Place:
    """The data folder: secrets, CA, accounts, engines. Makes what is missing."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.data = settings.data
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.secrets = FileSecrets(self.data / "secrets")
        self.pki = Pki(self.secrets, time.time())
        self.accounts = NatsAccounts(self.secrets, int(time.time()))
        self.postgres = PostgresEngine(self.data / "postgres", log=self.data / "log" / "postgres.log")

    @property
    def names(self) -> list[str]:
        """The names that our certificates are for."""
        return list(
            dict.fromkeys(["localhost", "127.0.0.1", *self.settings.listen, self.settings.public_name])
        )

    @property
    def nats(self) -> NatsEngine:
        """Our own NATS; its accounts are read anew at each of its starts."""
        files = self.pki.server("nats", self.names, time.time())
        return NatsEngine(
            data_dir=self.data / "nats",
            host=self.settings.nats_host,
            port=self.settings.nats_port,
            certificate=files.certificate,
            key=files.key,
            accounts=lambda folder: NatsAccounts(self.secrets, int(time.time())).server_config(folder),
            log=self.data / "log" / "nats.log",
        )

    def nats_urls(self, host: str) -> tuple[str, ...]:
        """Where clients connect, seen from `host`."""
        return self.settings.nats_urls or (f"nats://{bracketed(host)}:{self.settings.nats_port}",)

    @property
    def nats_ca(self) -> Path:
        """The file of the CA that our NATS servers show."""
        return Path(self.settings.nats_ca) if self.settings.nats_ca else self.pki.ca_file

    @property
    def dsn(self) -> str:
        """Where the store is, for the owner of its tables; a secret."""
        return self.dsn_of(roles.OWNER)

    def dsn_of(self, role: str) -> str:
        """Where the store is, for one of `roles.ROLES`; a secret."""
        url, passwords = self._database_url, self.settings.database_passwords
        if not url:
            return self.postgres.dsn_of(role)
        if role == roles.OWNER or not passwords:
            return url
        check_url("database_url", url, "postgresql://user@host:port/database")
        secret = FileSecrets(Path(passwords)).read(role)
        if secret is None:
            raise Unavailable(f"database_passwords: expected a file {role} in {passwords}, there is none")
        return dsns.as_user(url, roles.PREFIX + role, secret.decode().strip())

    @property
    def _database_url(self) -> str:
        """The setting, or what the file has that it names."""
        given = self.settings.database_url
        if not given.startswith(FILE):
            return given
        return text_of("database_url", Path(given.removeprefix(FILE))).strip()

    def database_setting(self, role: str) -> str:
        """What a child is told of `database_url`: nothing that is a secret, since others see environments."""
        url = self._database_url
        if not url or (self.settings.database_url.startswith(FILE) and not self.settings.database_passwords):
            return self.settings.database_url
        if self.settings.database_passwords and role != "orchestrator":
            return dsns.anonymous(url)
        self.secrets.write(DATABASE_URL, url.encode())
        return f"{FILE}{self.secrets.path(DATABASE_URL)}"

    def token(self, name: str) -> str:
        """The text of a token that lies in a file of ours, made when missing. A secret."""
        return self.secrets.obtain(name, lambda: new_token().encode()).decode().strip()

    def bus(self, made: Callable[[int], Credentials], *, makes_streams: bool = True) -> NatsBus:
        """A bus of the user whose credentials `made` gives at a time, not opened."""
        return NatsBus(
            NatsOptions(
                urls=self.nats_urls(self.settings.nats_near),
                credentials=made(int(time.time())),
                fresh=lambda: made(int(time.time())).jwt,
                ca_pem=text_of("nats_ca", self.nats_ca),
                trouble=lambda words: log.warning("bus", detail=words),
                makes_streams=makes_streams,
                over_share=metrics.count_over_share,
            )
        )

    def private(self, name: str) -> Path:
        """The socket of a service that only the supervisor asks."""
        folder = self.data / "run"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{name}.sock"

    @property
    def has_roles(self) -> bool:
        """Whether each service has a role of its own in the database."""
        return not self.settings.database_url or bool(self.settings.database_passwords)

    def store(self, role: str) -> PostgresStore:
        """The store for a service, not opened. The orchestrator's brings the schema up to date, as its owner;
        so does each where there is one role for all.
        """
        key, dsn = audit_key(self.secrets), self.dsn_of(role)
        if not self.has_roles:
            return PostgresStore(dsn, key)
        return PostgresStore(dsn, key, self.dsn if role == "orchestrator" else None)


def existing(settings: Settings) -> Place:
    """The data folder of a control plane that was started before; raises NotFound, and makes nothing."""
    if not (settings.data / "secrets").is_dir():
        raise NotFound(
            f"{settings.data} holds no control plane: give --data-dir, or start one by aegisflux up"
        )
    return Place(settings)


def supervisor(settings: Settings, observe: Observer) -> Supervisor:
    """Our engines, where none are given, and the orchestrator."""
    place = Place(settings)
    place.token(ADMIN)
    place.token(VIEWER)
    children: list[Child] = []
    if not settings.nats_urls:
        children.append(place.nats.child())
    if not settings.database_url:
        children.append(place.postgres.child())
    children.append(_service_child("orchestrator", settings.api_port, settings, place))
    children.append(_service_child("ingest", settings.ingest_port, settings, place))
    children.append(_service_child("enrich", settings.enrich_port, settings, place))
    children.append(_service_child("segmenter", settings.segmenter_port, settings, place))
    return Supervisor(children, place.data / "run", observe)


def _service_child(name: str, port: int, settings: Settings, place: Place) -> Child:
    private = place.private(name)

    async def ready() -> bool:
        return await _status(private, "/readyz", 4) == 200

    async def alive() -> bool:
        return await _status(private, "/healthz", ALIVE_SECONDS) == 200

    mine = {key: text for key, text in os.environ.items() if not key.startswith("AEGISFLUX_")}
    return Child(
        name=name,
        argv=(sys.executable, "-m", "aegisflux", name),
        ready=ready,
        alive=alive,
        env=mine
        | settings.environment()
        | {"AEGISFLUX_DATABASE_URL": place.database_setting(name)}
        | {"AEGISFLUX_DATA_DIR": str(place.data)},
        log=place.data / "log" / f"{name}.log",
        port=port,
        stop_seconds=15,
        ready_seconds=60,
    )


async def _status(path: Path, page: str, seconds: float) -> int:
    """The status of a GET on a private socket, which no crowd at the ports can take away; 0 when nothing
    answers."""
    writer = None
    try:
        async with asyncio.timeout(seconds):
            with at_path(path) as name:
                reader, writer = await asyncio.open_unix_connection(name)
            writer.write(f"GET {page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            line = await reader.readline()
            return int(line.split()[1])
    except (OSError, TimeoutError, ValueError, IndexError):
        return 0
    finally:
        if writer is not None:
            writer.close()


async def run_orchestrator(settings: Settings) -> None:
    """The orchestrator until SIGTERM or SIGINT. It answers /healthz at once, and works
    when its engines do.
    """
    from aegisflux.services.orchestrator.api import application
    from aegisflux.services.orchestrator.app import Orchestrator

    place = Place(settings)
    metrics.read_restarts(place.data / "run" / RESTARTS)
    store = place.store("orchestrator")
    control, system = (
        place.bus(place.accounts.control_creds),
        place.bus(place.accounts.system_creds),
    )
    accounts = LiveAccounts.over(system, place.accounts, lambda: _enrolled(orchestrator.core))
    orchestrator = Orchestrator(_core(place, store, control, accounts))
    system.on_connect(accounts.push_all)
    system.on_connect(accounts.forget_released)
    if settings.nats_urls:
        system.on_connect(_compared(settings.nats_urls, system, orchestrator.core))

    locks = Tasks()
    blockers = Blockers(place.dsn_of("orchestrator"))

    async def start() -> None:
        control.open()
        system.open()
        locks.loop("locks", blockers.step)
        await _start(place, store, control, system, accounts, orchestrator)

    server = _server(place, application(orchestrator), "orchestrator", settings.api_port)
    await serving.lived(
        server,
        start,
        orchestrator.close,
        (locks.close, blockers.close, control.close, system.close, store.close),
    )


def _compared(urls: Sequence[str], system: NatsBus, core: "Core") -> serving.Step:
    """Say where NATS servers that others run keep less than we promise, after each connect."""

    async def look() -> None:
        found = await given_nats.tls_remarks(urls)
        found += given_nats.remarks(await system.call_all(LIMITS_SUBJECT))
        for text in found:
            log.warning("NATS of your own", detail=text)
        core.bus_remarks = tuple(found)
        log.info("NATS of your own was looked at", remarks=len(found))

    return look


async def _enrolled(core: "Core") -> list[tuple[str, bytes]]:
    """Who has an account on the bus, as the store knows it, but for keys that were released."""
    await core.register.follow()
    released = core.register.rights.released_host
    hosts = [(row["host_id"], row["public_key"]) for row in await core.store.rows("host_keys")]
    return [(host, public) for host, public in hosts if not released(b64(public))]


def _server(place: Place, app: "Litestar", name: str, port: int) -> Listener:
    """Plain HTTP on 127.0.0.1, TLS with the service's own certificate on every other address, and the private
    socket by which the supervisor sees that the event loop goes on."""
    binds = [Bind(path=place.private(name)), Bind(address="127.0.0.1", port=port)]
    if place.settings.outside:
        files = place.pki.server(name, place.names, time.time())
        tls = files.certificate, files.key
        binds += [Bind(address=address, port=port, tls=tls) for address in place.settings.outside]
    return serving.server(app, binds, place.settings.http.limits())


async def run_enrich(settings: Settings) -> None:
    """Enrich until SIGTERM or SIGINT. It answers /healthz at once, and works when its engines do."""
    from aegisflux.adapters.graph.ladybug import LadybugGraph
    from aegisflux.services.enrich.api import application
    from aegisflux.services.enrich.app import Enrich, Parts

    serving.collect_rarely()
    place = Place(settings)
    store, facts = place.store("enrich"), PostgresFacts(place.dsn_of("enrich"))
    bus = place.bus(place.accounts.control_creds)
    enrich = Enrich(
        Parts(
            bus=bus,
            facts=facts,
            graph=LadybugGraph(place.data / "graph" / "graph"),
            store=store,
            clock=WallClock(),
            believer=Register(store, place.secrets),
            keep_seconds=settings.retention.seconds(),
            timescale=settings.timescale,
        )
    )

    async def start() -> None:
        bus.open()
        await _start_enrich(store, bus, enrich)

    server = _server(place, application(enrich), "enrich", settings.enrich_port)
    await serving.lived(server, start, enrich.close, (bus.close, facts.close, store.close))


async def run_ingest(settings: Settings) -> None:
    """Ingest until SIGTERM or SIGINT. It answers /healthz at once, and works when its engines do."""
    from aegisflux.services.ingest.api import application
    from aegisflux.services.ingest.app import Ingest, Parts

    serving.collect_rarely()
    place = Place(settings)
    store = place.store("ingest")
    bus = place.bus(place.accounts.ingest_creds, makes_streams=False)
    believer = Register(store, place.secrets)
    spare = Spare(place.data)
    ingest = Ingest(Parts(bus=bus, store=store, clock=WallClock(), believer=believer, spare=spare))

    async def start() -> None:
        bus.open()
        await _start_ingest(store, bus, ingest)

    server = _server(place, application(ingest), "ingest", settings.ingest_port)
    await serving.lived(server, start, ingest.close, (bus.close, store.close))


async def run_segmenter(settings: Settings) -> None:
    """The segmenter until SIGTERM or SIGINT. It answers /healthz at once, and works when its store does."""
    from aegisflux.services.segmenter.api import application
    from aegisflux.services.segmenter.app import Parts, Segmenter

    place = Place(settings)
    store, facts = place.store("segmenter"), PostgresFacts(place.dsn_of("segmenter"))
    limits = settings.limits.limits()
    believer = Register(store, place.secrets)
    parts = Parts(store=store, facts=facts, clock=WallClock(), believer=believer, limits=limits)
    segmenter = Segmenter(parts)

    async def start() -> None:
        await serving.until("store", store.open)
        await serving.until("facts", facts.open)
        segmenter.started = True
        log.info("segmenter is ready")

    server = _server(place, application(segmenter), "segmenter", settings.segmenter_port)
    await serving.lived(server, start, segmenter.close, (facts.close, store.close))


async def _start_ingest(store: PostgresStore, bus: NatsBus, ingest: "Ingest") -> None:
    await serving.until("bus", lambda: bus.ready(30))
    await serving.until("ingest", ingest.start)
    log.info("ingest is ready")
    await serving.until("store", store.open)


async def _start_enrich(store: PostgresStore, bus: NatsBus, enrich: "Enrich") -> None:
    await serving.until("store", store.open)
    await serving.until("bus", lambda: bus.ready(30))
    await serving.until("enrich", enrich.start)
    log.info("enrich is ready")


def _core(place: Place, store: PostgresStore, bus: NatsBus, accounts: LiveAccounts) -> "Core":
    from aegisflux.services.orchestrator.core import Core, Options
    from aegisflux.services.orchestrator.keys import Keys
    from aegisflux.services.orchestrator.prepare import Workshop

    settings = place.settings
    renew = settings.leases.renew_every
    if settings.leases.max_seconds:
        renew = min(renew, settings.leases.max_seconds / 10)
    return Core(
        store=store,
        bus=bus,
        accounts=accounts,
        clock=WallClock(),
        keys=Keys(place.secrets),
        workshop=Workshop(settings.workers),
        options=Options(
            limits=settings.limits.limits(),
            max_lease=settings.leases.max_seconds,
            confirm_seconds=settings.confirm_seconds,
            renew_every=renew,
            compare_every=settings.compare_seconds,
            enroll_url=settings.enroll_url,
            nats_urls=place.nats_urls(settings.public_name),
            ca_pem=place.pki.ca_pem,
            ca_sha256=place.pki.ca_sha256,
        ),
    )


async def _start(
    place: Place,
    store: PostgresStore,
    control: NatsBus,
    system: NatsBus,
    accounts: LiveAccounts,
    orchestrator: "Orchestrator",
) -> None:
    """Wait for the engines as long as it takes, then start."""
    await serving.until("store", store.open)
    await _shaped(place)
    await serving.until("bus", lambda: control.ready(30))
    await serving.until("orchestrator", orchestrator.start)
    await orchestrator.access.seal()
    await orchestrator.access.keep("admin", "admin", place.token(ADMIN))
    await orchestrator.access.keep("viewer", "viewer", place.token(VIEWER))
    await orchestrator.access.report()
    await serving.until("bus", lambda: system.ready(30))
    await serving.until("accounts", accounts.push_all)
    await _forgotten(accounts)
    orchestrator.started = True
    log.info("orchestrator is ready", url=place.settings.url)


async def _forgotten(accounts: LiveAccounts) -> None:
    """Once the store says who is enrolled. A server that deletes nothing stops no start."""
    try:
        await accounts.forget_released()
    except (Refused, Unavailable) as error:
        log.warning("accounts of released hosts stay on the bus", error=str(error))


async def _shaped(place: Place) -> None:
    """Have TimescaleDB by the owner of the tables, where enrich does not own them."""
    settings = place.settings
    if not settings.database_url or not place.has_roles or settings.timescale == "off":
        return
    try:
        log.info("tables", kept=await shaped(place.dsn, settings.timescale, settings.retention.seconds()))
    except (Conflict, Unavailable) as error:
        log.warning("tables are kept as they are", error=str(error))


def environment(settings: Settings) -> dict[str, str]:
    """What `aegisflux env` exports: a viewer's token, NATS credentials and CA. Holds a secret."""
    place = existing(settings)
    creds = place.accounts.viewer_creds(int(time.time())).text.encode()
    place.secrets.write(VIEWER_CREDS, creds)
    return {
        "AEGISFLUX_DATA_DIR": str(place.data),
        "AEGISFLUX_URL": settings.url,
        "AEGISFLUX_ENRICH_URL": settings.enrich_url,
        "AEGISFLUX_INGEST_URL": settings.ingest_url,
        "AEGISFLUX_SEGMENTER_URL": settings.segmenter_url,
        "AEGISFLUX_TOKEN": place.token(VIEWER),
        "AEGISFLUX_ADMIN_TOKEN_FILE": str(place.secrets.path(ADMIN)),
        "NATS_URL": place.nats_urls(settings.nats_near)[0],
        "NATS_CREDS": str(place.secrets.path(VIEWER_CREDS)),
        "NATS_CA": str(place.nats_ca),
    }


def admin_token(settings: Settings) -> str | None:
    """The first admin's token, where this user may read it. A secret."""
    path = settings.data / "secrets" / ADMIN
    try:
        return path.read_text().strip()
    except OSError:
        return None


async def watch(
    environ: dict[str, str],
    subject: str,
    lines: Callable[[bytes], list[str]],
    tell: Callable[[str], None],
    count: int,
) -> None:
    """Hear a subject with the credentials that `aegisflux env` exports, and tell `count` lines of it (0: for
    ever, which is as long as they hold).
    """
    check_url("NATS_URL", environ["NATS_URL"], "nats://host:port")
    credentials = Credentials.parse(text_of("NATS_CREDS", Path(environ["NATS_CREDS"])))
    _check_held(credentials)
    done, heard = asyncio.Event(), 0

    def trouble(words: str) -> None:
        log.warning("bus", detail=words)
        if credentials.ended(time.time()):
            done.set()

    bus = NatsBus(
        NatsOptions(
            urls=[environ["NATS_URL"]],
            credentials=credentials,
            ca_pem=text_of("NATS_CA", Path(environ["NATS_CA"])),
            trouble=trouble,
        )
    )

    async def told(message: Message) -> None:
        nonlocal heard
        for line in lines(message.payload):
            if done.is_set():
                return
            tell(line)
            heard += 1
            if heard == count:
                done.set()

    bus.open()
    try:
        await bus.ready(WATCH_SECONDS)
        await bus.watch(subject, told)
        log.info("watching", subject=subject)
        await done.wait()
        if count == 0 or heard < count:
            _check_held(credentials)
    finally:
        await bus.close()


def _check_held(credentials: Credentials) -> None:
    if credentials.ended(time.time()):
        at = datetime.fromtimestamp(credentials.ends, UTC).isoformat()
        raise Refused(
            f"NATS_CREDS: expected credentials that hold, got some that ended at {at}; "
            'run eval "$(aegisflux env)" again'
        )
