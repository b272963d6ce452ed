"""Events under load while each process of the control plane is killed: every id once, by count."""

import asyncio
import os
import random
import signal
import time

import asyncpg
import pytest
from tests.support.engines import free_base
from tests.support.facts import execed, flow
from tests.support.up import Up

from aegisflux.bootstrap import existing
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.event import EventBatch
from aegisflux.settings import load
from aegisflux.wire import subjects
from aegisflux.wire.events import encode_batch

pytestmark = [pytest.mark.engines, pytest.mark.slow]
VICTIMS = ("ingest", "enrich", "nats", "postgres")
SEED = int(os.environ.get("AEGISFLUX_KILL_SEED", "20261124"))
KILLS = int(os.environ.get("AEGISFLUX_PIPELINE_KILLS", "4"))
HOSTS, EVENTS = 4, 50
COUNT = """
select (select count(*) from flows) + (select count(*) from events) as rows,
       (select count(*) from (select source, seq from flows union select source, seq from events) u) as ids,
       (select coalesce(sum(flows), 0) from flow_minutes) as rolled, (select count(*) from flows) as flows
"""


class Hosts:
    """A few hosts that send until they are told to stop, each batch until it is stored in the stream."""

    def __init__(self, bus) -> None:
        self.bus, self.sent, self.going = bus, 0, True

    async def send(self, number: int) -> None:
        seq, host = 1, f"host-{number}"
        while self.going:
            now = time.time_ns()
            events = tuple(flow(seq + n, now) if n % 2 else execed(seq + n, now) for n in range(EVENTS))
            payload = encode_batch(EventBatch(host_id=host, boot_id="b", sent_ns=now, events=events))
            await self._insist(host, payload, f"{host}:{seq}")
            if number == 0 and seq % 7 == 1:
                await self._insist(host, payload, f"{host}:{seq}:again")
            seq += EVENTS
            self.sent += EVENTS

    async def _insist(self, host: str, payload: bytes, msg_id: str) -> None:
        while True:
            try:
                await self.bus.publish(subjects.telemetry(host), payload, msg_id=msg_id)
                return
            except Unavailable:
                await asyncio.sleep(0.05)


@pytest.mark.nightly
async def test_kills_lose_and_double_nothing(tmp_path):
    up = Up(tmp_path / "data", free_base())
    up.start()
    try:
        await asyncio.to_thread(up.until, lambda: up.log.read_text().count("enrich: ready") > 0)
        place = existing(load(None, {}, data_dir=str(up.data), port_base=up.port))
        bus = place.bus(place.accounts.control_creds)
        bus.open()
        await bus.ready(20)
        hosts, draw = Hosts(bus), random.Random(SEED)
        sending = [asyncio.create_task(hosts.send(n)) for n in range(HOSTS)]
        victims = [VICTIMS[n % len(VICTIMS)] for n in range(KILLS)]
        draw.shuffle(victims)
        print(f"seed {SEED}, kills {victims}")
        for victim in victims:
            await asyncio.sleep(0.3 + draw.random())
            os.kill(await asyncio.to_thread(up.pid, victim), signal.SIGKILL)
        await asyncio.sleep(1)
        hosts.going = False
        await asyncio.wait_for(asyncio.gather(*sending), 60)
        found = await counted(place.dsn, hosts.sent)
        await bus.close()
        assert found["rows"] == found["ids"] == hosts.sent
        assert found["rolled"] == found["flows"]
    finally:
        up.stop()


async def counted(dsn: str, wanted: int, seconds: float = 90):
    """The counts, once all has arrived and nothing moves any more."""
    deadline, before = time.monotonic() + seconds, None
    while True:
        try:
            connection = await asyncpg.connect(dsn)
            found = await connection.fetchrow(COUNT)
            await connection.close()
        except (OSError, asyncpg.PostgresError):
            found = None
        if found is not None and found["rows"] >= wanted and found == before:
            return found
        assert time.monotonic() < deadline, f"{found} of {wanted}"
        before = found
        await asyncio.sleep(0.5)
