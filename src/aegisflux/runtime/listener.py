"""Sockets that accept connections of HTTP, so many of each address and in all, plain or under TLS."""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from uvicorn import Config
from uvicorn.server import ServerState

from aegisflux.domain.errors import Unavailable
from aegisflux.runtime import logs, metrics
from aegisflux.runtime.admission import MEBIBYTE, Limits, Pool, peer_of
from aegisflux.runtime.connections import PROVED_READ, Connection

ACCEPTS_AT_ONCE: Final = 32  # then others on the event loop have their turn
BACKLOG: Final = 4096
SWEEP_SECONDS: Final = 0.5
HANDSHAKE_SECONDS: Final = 5.0
PRIVATE_CONNECTIONS: Final = 16
END_SECONDS: Final = 2.0
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
LONGEST_PATH: Final = 100  # of a socket; the kernel takes 107 bytes
log = logs.get("http")


class Bind(Struct, frozen=True):
    """An address and a port, with TLS by a certificate and its key; or the path of a private socket, whose
    connections are bounded by nothing else: only our own user reaches it."""

    address: str = ""
    port: int = 0
    tls: tuple[Path, Path] | None = None
    path: Path | None = None


def raise_files() -> int:
    """Let this process open as many files as it may; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


class Listener:
    """`serve()` accepts on all binds until `end()`, in the event loop that calls it."""

    def __init__(self, app: Any, binds: Sequence[Bind], limits: Limits) -> None:
        self.limits = limits
        self.config = Config(
            app, interface="asgi3", http="httptools", ws="none", lifespan="off", log_config=None,
            access_log=False, proxy_headers=False, timeout_keep_alive=3600,
        )  # fmt: skip
        self.config.load()
        self.state = ServerState()
        self.buffer = memoryview(bytearray(PROVED_READ))
        self.anonymous: Pool[Connection] = Pool(limits.anonymous, limits.of_peer, limits.anonymous_memory)
        self.authenticated: Pool[Connection] = Pool(
            limits.authenticated, limits.of_token, limits.authenticated_memory
        )
        self._private: Pool[Connection] = Pool(PRIVATE_CONNECTIONS, PRIVATE_CONNECTIONS, MEBIBYTE)
        self._binds, self._sockets = binds, list[socket.socket]()
        self._all: set[Connection] = set()
        self._ended: asyncio.Event | None = None
        self._stop = False

    def now(self) -> float:
        """The event loop's clock."""
        return asyncio.get_running_loop().time()

    async def serve(self) -> None:
        """Accept until `end`, then let answers be sent for a moment. Raises Unavailable where an address
        cannot be had."""
        loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            for bind in self._binds:
                self._bind(loop, bind)
            while not self._stop:
                self._sweep()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SWEEP_SECONDS):
                        await self._ended.wait()
        finally:
            await self._finish(loop)

    def end(self) -> None:
        """Accept no more, and let `serve` return."""
        self._stop = True
        if self._ended is not None:
            self._ended.set()

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self._all.discard(connection)

    def _bind(self, loop: asyncio.AbstractEventLoop, bind: Bind) -> None:
        listening = _private(bind.path) if bind.path is not None else _public(bind)
        self._sockets.append(listening)
        context = _tls(bind.tls) if bind.tls else None
        private = bind.path is not None
        loop.add_reader(listening, self._accept, listening, context, private)

    def _accept(self, listening: socket.socket, context: ssl.SSLContext | None, private: bool) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                accepted, address = listening.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    return
                self._wait_for_files(listening, context, private)
                return
            accepted.setblocking(False)
            self._take(accepted, "private" if private else peer_of(str(address[0])), context, private)

    def _take(
        self, accepted: socket.socket, peer: str, context: ssl.SSLContext | None, private: bool
    ) -> None:
        pool = self._private if private else self.anonymous
        connection = Connection(self, peer, pool, private=private)
        gone = pool.admit(peer, connection)
        for one in gone:
            one.evict("connection_limit")
        self._all.add(connection)
        connection.opening = asyncio.get_running_loop().create_task(self._open(connection, accepted, context))

    async def _open(
        self, connection: Connection, accepted: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        loop = asyncio.get_running_loop()
        more: dict[str, Any] = {"ssl_handshake_timeout": HANDSHAKE_SECONDS} if context else {}
        try:
            with contextlib.suppress(OSError):
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(lambda: connection, accepted, ssl=context, **more)
        except (OSError, TimeoutError, asyncio.CancelledError):
            if context is not None:
                metrics.http_refused.labels("handshake").inc()
            connection.connection_lost(None)
            accepted.close()
        finally:
            connection.opening = None

    def _wait_for_files(
        self, listening: socket.socket, context: ssl.SSLContext | None, private: bool
    ) -> None:
        """No descriptor is free: listen again a moment later, when some may have been closed."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        metrics.http_refused.labels("files").inc()

        def again() -> None:
            if listening.fileno() >= 0 and not self._stop:
                loop.add_reader(listening, self._accept, listening, context, private)

        loop.call_later(0.1, again)

    def _sweep(self) -> None:
        now = self.now()
        self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        for connection in list(self._all):
            connection.sweep(now)
        metrics.http_connections.labels("anonymous").set(len(self.anonymous))
        metrics.http_connections.labels("authenticated").set(len(self.authenticated))

    async def _finish(self, loop: asyncio.AbstractEventLoop) -> None:
        for listening in self._sockets:
            loop.remove_reader(listening)
            listening.close()
        for bind in self._binds:
            if bind.path is not None:
                bind.path.unlink(missing_ok=True)
        if self.state.tasks:
            await asyncio.wait(list(self.state.tasks), timeout=END_SECONDS)
        for connection in list(self._all):
            connection.evict("")
        await asyncio.sleep(0)


def _public(bind: Bind) -> socket.socket:
    family = socket.AF_INET6 if ":" in bind.address else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Beside 127.0.0.1 the settings may say 0.0.0.0, on the same port.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind((bind.address, bind.port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise Unavailable(f"{bind.address} port {bind.port}: {error.strerror}") from error
    found.setblocking(False)
    return found


def _private(path: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        with at_path(path) as name:
            found.bind(name)
            os.chmod(name, 0o600)  # noqa: PTH101 - the name may go by a descriptor
        found.listen(PRIVATE_CONNECTIONS)
    except OSError as error:
        found.close()
        raise Unavailable(f"{path}: {error.strerror}") from error
    found.setblocking(False)
    return found


@contextlib.contextmanager
def at_path(path: Path) -> Any:
    """The name by which the kernel takes a socket, whose names have 107 bytes at most."""
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _tls(files: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(*files)
    context.set_alpn_protocols(["http/1.1"])
    return context
