"""Ingest as `aegisflux up` runs it: hosts over NATS, third parties over HTTP, operators at their shell."""

import asyncio
import json
import os
import signal
import socket
import time
import urllib.request
from contextlib import asynccontextmanager

import asyncpg
import msgspec
import pytest
from tests.support.engines import eventually
from tests.support.facts import execed, flow
from tests.support.up import AEGISFLUX, Up, running_up

from aegisflux.adapters.bus.nats import NatsBus
from aegisflux.bootstrap import existing
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.event import EventBatch
from aegisflux.settings import load
from aegisflux.wire import subjects
from aegisflux.wire.events import encode_batch

pytestmark = pytest.mark.engines
COUNT = """
with ids as (select seq from flows f join sources s on s.id = f.source where host_id = $1
             union all select seq from events e join sources s on s.id = e.source where host_id = $1)
select count(*) as rows, count(distinct seq) as ids, max(seq) as newest from ids
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    with running_up(tmp_path_factory.mktemp("ingest")) as up:
        yield up


@asynccontextmanager
async def bus_of(up: Up):
    """The bus of our services: what an agent's connection would store."""
    place = existing(load(None, {}, data_dir=str(up.data), port_base=up.port))
    bus: NatsBus = place.bus(place.accounts.control_creds)
    bus.open()
    try:
        await bus.ready(20)
        yield bus
    finally:
        await bus.close()


def batch(host, *events, boot="b"):
    return EventBatch(host_id=host, boot_id=boot, sent_ns=time.time_ns(), events=events)


async def counted(up: Up, host: str):
    """Rows, different ids and the newest id of a host in the store."""
    place = existing(load(None, {}, data_dir=str(up.data), port_base=up.port))
    connection = await asyncpg.connect(place.dsn)
    try:
        row = await connection.fetchrow(COUNT, host)
        return row["rows"], row["ids"], row["newest"]
    finally:
        await connection.close()


async def stored(up: Up, host: str, many: int):
    async def there():
        return (await counted(up, host))[:2] == (many, many)

    await eventually(there, 20)


def running(up: Up):
    """The process of ingest; None between two of them."""
    try:
        return up.pid("ingest")
    except FileNotFoundError:
        return None


async def letters(up: Up, host: str, many: int = 1):
    """The dead letters of a host, by the command line, once there are so many."""

    async def there():
        done = await asyncio.to_thread(up.run, AEGISFLUX, "dead", "list", "--limit", "1000", "-o", "json")
        assert done.returncode == 0, done.stderr
        found = [letter for letter in json.loads(done.stdout) if letter["host_id"] == host]
        return found if len(found) >= many else None

    return await eventually(there, 20)


async def test_a_foreign_host_and_an_oversized_message_become_letters_with_their_bytes(up):
    foreign = encode_batch(batch("db-1", execed(1)))
    async with bus_of(up) as bus:
        await bus.publish(subjects.telemetry("liar"), foreign, msg_id="liar")
        await bus.publish(subjects.telemetry("liar"), bytes((512 << 10) + 1), msg_id="liar2")
    found = await letters(up, "liar", 2)
    assert ["db-1" in found[0]["reason"], "batch_bytes" in found[1]["reason"]] == [True, True]
    raw = await asyncio.to_thread(up.run, AEGISFLUX, "dead", "show", str(found[0]["id"]))
    whole = json.loads(raw.stdout)
    assert (whole["letter"]["subject"], whole["decoded"]["host_id"]) == ("telemetry.liar", "db-1")
    assert (await counted(up, "db-1"))[0] == 0


async def test_one_bad_event_in_a_hundred_is_kept_and_can_be_put_in_again(up):
    raw = msgspec.to_builtins(batch("web-1", *(execed(n, time.time_ns()) for n in range(1, 101))))
    raw["events"][49]["uid"] = "root"
    async with bus_of(up) as bus:
        await bus.publish(subjects.telemetry("web-1"), msgspec.msgpack.encode(raw), msg_id="w1")
        await stored(up, "web-1", 99)
        (letter,) = await letters(up, "web-1")
        assert "uid" in letter["reason"]
        tried = await asyncio.to_thread(up.run, AEGISFLUX, "dead", "replay", str(letter["id"]), "--dry-run")
        assert json.loads(tried.stdout)["accepted"] == 0
        # As an agent of a later version would have sent it: the same event, well this time.
        raw["events"] = [raw["events"][49] | {"uid": 0}]
        headers = {"Aegisflux-Reason": "was bad", "Aegisflux-Subject": subjects.telemetry("web-1")}
        payload = msgspec.msgpack.encode(raw)
        number = await bus.publish(subjects.dead("telemetry"), payload, msg_id="mended", headers=headers)
    done = await asyncio.to_thread(up.run, AEGISFLUX, "dead", "replay", str(number))
    assert json.loads(done.stdout)["accepted"] == 1, done.stderr
    await stored(up, "web-1", 100)
    audit = up.call("GET", "/api/v1/audit?limit=5").json["items"]
    assert (audit[0]["action"], audit[0]["object"]) == ("dead.replay", f"dead/{number}")


async def test_the_same_batch_twice_is_stored_once_and_the_future_is_clamped(up):
    now = time.time_ns()
    payload = encode_batch(batch("web-2", execed(1, now), flow(2, now + 3600 * 10**9)))
    async with bus_of(up) as bus:
        for n in range(2):
            await bus.publish(subjects.telemetry("web-2"), payload, msg_id=f"w2-{n}")
    await stored(up, "web-2", 2)
    place = existing(load(None, {}, data_dir=str(up.data), port_base=up.port))
    connection = await asyncpg.connect(place.dsn)
    try:
        late = await connection.fetchval("select max(time) <= now() + interval '5 s' from flows")
    finally:
        await connection.close()
    assert late


def source_token(up: Up, host: str) -> str:
    return up.run(AEGISFLUX, "token", "create", f"events-{host}", "source", "--host-id", host).stdout.strip()


@pytest.mark.parametrize(
    "rest", [b"Content-Length: 100\r\n\r\n[", b"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\nzz\r\n"]
)
def test_a_body_that_ends_early_is_the_callers_mistake(up, rest):
    head = "POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    token = source_token(up, "torn")
    with socket.create_connection(("127.0.0.1", up.port + 5), timeout=10) as caller:
        caller.sendall(f"{head}Authorization: Bearer {token}\r\n".encode() + rest)
        caller.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: caller.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400") or not answer


async def test_a_third_party_posts_as_its_host_and_again_without_effect(up):
    token = await asyncio.to_thread(source_token, up, "app-1")
    assert token.startswith("afx_")
    now = time.strftime("%b %d %H:%M:%S", time.gmtime())
    lines = "\n".join(f"{now} app sshd[{n}]: Invalid user u{n} from 203.0.113.{n}" for n in range(1, 6))

    def post():
        request = urllib.request.Request(
            f"http://127.0.0.1:{up.port + 5}/api/v1/events?format=sshd",
            data=(lines + "\nno line of sshd").encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "text/plain"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())

    first, second = [await asyncio.to_thread(post) for _ in range(2)]
    assert first == second
    assert (first[0], first[1]["accepted"], first[1]["refused"][0]["index"]) == (202, 5, 5)
    await stored(up, "app-1", 5)
    (letter,) = await letters(up, "app-1")
    assert letter["stream"] == "http"
    assert up.call("GET", "/seg/maps", token=token).status == 403


async def test_nothing_is_lost_while_raw_events_are_full(up):
    async with bus_of(up) as bus:
        info = json.loads(await bus.call("$JS.API.STREAM.INFO.EVENTS_RAW", b""))
        config = info["config"]

        async def bounded(size):
            body = json.dumps(config | {"max_bytes": size}).encode()
            assert "error" not in json.loads(await bus.call("$JS.API.STREAM.UPDATE.EVENTS_RAW", body))

        await bounded(64)
        try:
            for n in range(1, 6):
                payload = encode_batch(batch("web-3", execed(n, time.time_ns())))
                await bus.publish(subjects.telemetry("web-3"), payload, msg_id=f"w3-{n}")

            async def waits():
                return await bus.lag("TELEMETRY", "ingest") == 5

            await eventually(waits)
            assert (await counted(up, "web-3"))[0] == 0
        finally:
            await bounded(config["max_bytes"])
    await stored(up, "web-3", 5)


async def test_kills_of_ingest_under_load_lose_and_double_nothing(up):
    going, sent = True, 0

    async def send(bus):
        nonlocal sent
        while going:
            now = time.time_ns()
            events = tuple(execed(sent + n, now) if n % 2 else flow(sent + n, now) for n in range(1, 51))
            payload = encode_batch(batch("web-4", *events))
            try:
                await bus.publish(subjects.telemetry("web-4"), payload, msg_id=f"w4-{sent}")
            except Unavailable:
                continue
            sent += 50

    async with bus_of(up) as bus:
        sending = asyncio.create_task(send(bus))
        for _ in range(2):
            newest = sent
            await eventually(lambda newest=newest: sent > newest + 2000, 20)
            killed = up.pid("ingest")
            os.kill(killed, signal.SIGKILL)
            await eventually(lambda killed=killed: running(up) not in (None, killed), 20)
        going = False
        await sending
    await stored(up, "web-4", sent)
    assert (await counted(up, "web-4"))[2] == sent
