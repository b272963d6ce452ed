"""Each command that opens the store or the bus by itself, and each service, against each thing that keeps it
out: one line says what, and the exit status is never 0, nor the 1 that means findings."""

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.engines import free_port

from aegisflux import bootstrap, cli, maintenance
from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.runtime.supervise import Process
from aegisflux.settings import load

pytestmark = [pytest.mark.engines]
REFUSED, UNAVAILABLE = 3, 4
SERVICES = ("orchestrator", "ingest", "enrich", "segmenter")


@contextmanager
def answering(answer):
    """A TCP server that gives each client this one answer; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.recv(64)
                    client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A URL of a real PostgreSQL, whose password is `right`."""
    import asyncio

    folder = tmp_path_factory.mktemp("store")
    engine = PostgresEngine(folder / "postgres", log=folder / "postgres.log")
    (folder / "run").mkdir()
    with asyncio.Runner() as runner:
        process = Process(engine.child(), folder / "run")
        runner.run(process.start())
        yield engine.dsn
        runner.run(process.stop())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The data folder of a control plane that was started once."""
    for name in [name for name in os.environ if name.startswith("AEGISFLUX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AEGISFLUX_DATA_DIR", str(tmp_path))
    bootstrap.Place(load(None, {}, data_dir=str(tmp_path)))
    return tmp_path


def wrong_password(dsn):
    user, _, rest = dsn.partition("@")
    return f"{user.rpartition(':')[0]}:wrong@{rest}"


# What is wrong with the database: the URL by that of a good one and the port of a server that refuses TLS;
# the status, and what the line says.
DATABASES = {
    "a wrong password": (lambda dsn, _: wrong_password(dsn), REFUSED, "password authentication failed"),
    "no such user": (lambda dsn, _: dsn.replace("//", "//x", 1), REFUSED, "xaegisflux_owner"),
    "no such database": (lambda dsn, _: dsn.replace("/aegisflux?", "/nothing?"), REFUSED, "nothing"),
    "no server": (
        lambda *_: "postgresql://a:b@127.0.0.1:1/c",
        UNAVAILABLE,
        "PostgreSQL is not running there",
    ),
    "no TLS": (lambda _, port: f"postgresql://a:b@127.0.0.1:{port}/c?sslmode=require", UNAVAILABLE, "SSL"),
    "no URL": (lambda *_: "somewhere", REFUSED, "the store: "),
    "another scheme": (lambda *_: "mysql://a:b@127.0.0.1:1/c", REFUSED, "the store: "),
    "a broken URL": (lambda *_: "postgresql://a:b@[::1/c", REFUSED, "the store: "),
    "a port that is none": (lambda *_: "postgresql://a:b@127.0.0.1:x/c", REFUSED, "the store: "),
    "no such file": (lambda *_: "file:/nowhere/url", UNAVAILABLE, "database_url: /nowhere/url: No such file"),
}
OPENING = {"verify": ("audit", "verify"), "accept": ("audit", "accept", "--yes")}


def ended(words, capsys):
    """The status and the lines on stderr of a command in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(*words)
    found = capsys.readouterr()
    assert not found.out
    return end.value.code, found.err.strip().splitlines()


@pytest.mark.parametrize("trouble", DATABASES)
@pytest.mark.parametrize("command", OPENING)
def test_a_command_says_in_one_line_why_the_store_cannot_be_used(
    database, place, command, trouble, monkeypatch, capsys
):
    url, status, said = DATABASES[trouble]
    with answering(b"N") as port:
        monkeypatch.setenv("AEGISFLUX_DATABASE_URL", url(database, port))
        code, lines = ended(OPENING[command], capsys)
    assert (code, len(lines)) == (status, 1), lines
    assert said in lines[0]
    assert "wrong" not in lines[0].replace("wrong version", "")


def test_a_store_without_its_tables_is_no_finding(database, place, monkeypatch, capsys):
    monkeypatch.setenv("AEGISFLUX_DATABASE_URL", database)
    monkeypatch.setattr(maintenance.PostgresStore, "open", _open_without_tables)
    code, lines = ended(("audit", "verify"), capsys)
    assert (code, len(lines)) == (UNAVAILABLE, 1), lines
    assert "cannot be read" in lines[0]


async def _open_without_tables(self):
    import asyncpg

    self._runner = await asyncpg.create_pool(
        self._dsn, min_size=1, max_size=1, server_settings={"search_path": "x"}
    )


def of_bus(place, **changed):
    """What `bus watch` needs, but for what is changed."""
    good = bootstrap.environment(load(None, {}, data_dir=str(place)))
    given = {name: good[name] for name in ("NATS_URL", "NATS_CREDS", "NATS_CA")}
    return given | {"NATS_URL": "nats://127.0.0.1:1"} | changed


BUSES = {
    "no server": ({}, UNAVAILABLE, "127.0.0.1:1"),
    "no URL": ({"NATS_URL": "nats://127.0.0.1:x"}, REFUSED, "NATS_URL"),
    "no such CA": ({"NATS_CA": "/nowhere/ca"}, UNAVAILABLE, "NATS_CA: /nowhere/ca: No such file"),
    "no certificate": ({"NATS_CA": "/dev/null"}, REFUSED, "certificates in PEM"),
    "no text": ({"NATS_CA": sys.executable}, REFUSED, "NATS_CA"),
    "no such credentials": ({"NATS_CREDS": "/nowhere/creds"}, UNAVAILABLE, "NATS_CREDS: /nowhere/creds"),
    "no credentials": ({"NATS_CREDS": "/dev/null"}, REFUSED, "credentials file"),
}


@pytest.mark.parametrize("trouble", BUSES)
def test_bus_watch_says_in_one_line_why_the_bus_cannot_be_used(place, trouble, monkeypatch, capsys):
    changed, status, said = BUSES[trouble]
    monkeypatch.setattr(bootstrap, "WATCH_SECONDS", 1)
    for name, value in of_bus(place, **changed).items():
        monkeypatch.setenv(name, value)
    code, lines = ended(("bus", "watch"), capsys)
    assert code == status, lines
    assert said in lines[-1]
    assert not any("Traceback" in one for one in lines)


def test_a_mistake_of_ours_is_no_finding(monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "environment", lambda _given: {}["gone"])
    code, lines = ended(("env",), capsys)
    assert code == 2
    assert lines[-1].startswith("error: KeyError: 'gone'; this is a mistake in AegisFlux")


def started(name, place, **more):
    """A service that cannot start: its status and what it wrote."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AEGISFLUX_")}
    environment |= {"AEGISFLUX_DATA_DIR": str(place), "AEGISFLUX_PORT_BASE": str(free_port())} | more
    done = subprocess.run(
        [sys.executable, "-m", "aegisflux", name], env=environment, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stderr + done.stdout


@pytest.mark.parametrize("name", ["orchestrator", "enrich", "segmenter"])
def test_a_service_that_the_database_does_not_let_in_ends_with_a_status(database, place, name):
    code, said = started(name, place, AEGISFLUX_DATABASE_URL=wrong_password(database))
    assert code == REFUSED, said
    assert "password authentication failed" in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["orchestrator", "ingest", "enrich"])
def test_a_service_that_cannot_read_its_ca_ends_with_a_status(database, place, name):
    urls = {
        "AEGISFLUX_DATABASE_URL": database,
        "AEGISFLUX_NATS_URLS": "nats://127.0.0.1:1",
        "AEGISFLUX_NATS_CA": "/dev/null",
    }
    code, said = started(name, place, **urls)
    assert (code, "certificates in PEM" in said, "Traceback" in said) == (REFUSED, True, False), said


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_whose_port_is_taken_ends_with_a_status(database, place, name):
    offset = {"orchestrator": 0, "ingest": 5, "enrich": 2, "segmenter": 6}[name]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        base = taken.getsockname()[1] - offset
        code, said = started(name, place, AEGISFLUX_PORT_BASE=str(base), AEGISFLUX_DATABASE_URL=database)
    assert (code, "Address already in use" in said, "Traceback" in said) == (UNAVAILABLE, True, False), said
    assert Path(place / "secrets").is_dir()
