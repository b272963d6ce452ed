"""An honest host and an operator at work: how long until what they say is stored, while others attack."""

import asyncio
import json
import math
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
from tests.support.neighbours import Neighbour, rss_mb, within
from tests.support.up import Up

from aegisflux.wire import subjects

PATIENCE: Final = 60.0
SERVICE: Final = 101
KINDS: Final = ("ack", "heartbeat", "content", "telemetry", "desired")
ENGINES: Final = ("nats", "postgres")
EVENTS_OF = """
select count(*) from events e join sources s on s.id = e.source where s.host_id = $1 and e.seq = $2
"""


@dataclass
class Times:
    """Milliseconds by what was waited for; one that never came counts as the longest patience."""

    found: dict[str, list[float]] = field(default_factory=dict)
    rss: dict[str, float] = field(default_factory=dict)
    lost: int = 0

    async def take(self, kind: str, work: Awaitable[Any]) -> None:
        """Wait for one thing."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                await work
            took = (time.monotonic() - began) * 1000
        except Exception:  # noqa: BLE001 - whatever it was: it did not arrive
            took = PATIENCE * 1000
            self.lost += 1
        self.found.setdefault(kind, []).append(took)

    def p99(self, *kinds: str) -> float:
        """The 99th percentile of the worst of these."""
        return max(percentile(self.found.get(kind, [math.inf]), 0.99) for kind in kinds)

    def largest(self) -> tuple[float, str]:
        """Most memory of any service, in MB, and its name."""
        return max(
            ((size, name) for name, size in self.rss.items() if name not in ENGINES), default=(0.0, "")
        )


def percentile(values: list[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


class Honest:
    """What a host does, each until PostgreSQL has it (contents and manifests: until they are here)."""

    def __init__(self, up: Up, host: Neighbour, store: asyncpg.Pool) -> None:
        self._up, self._host, self._store = up, host, store
        self._serial = int(time.time())
        self.batches: list[int] = []

    async def ack(self) -> None:
        """An ack, until the host's report has its serial."""
        self._serial += 1
        serial, host = self._serial, self._host
        name = f"{host.host}-ack-{serial}-{time.time_ns()}"
        await host.bus.publish(subjects.acks(host.host), host.ack(serial, SERVICE), msg_id=name)

        async def stored() -> bool:
            query = "select ack_serial from reports where host_id = $1 and service_id = $2"
            return bool((await self._store.fetchval(query, host.host, SERVICE) or 0) >= serial)

        await within(PATIENCE, stored)

    async def heartbeat(self) -> None:
        """A heartbeat, until the host was seen after it was sent."""
        host, sent = self._host, time.time()
        await host.bus.publish(subjects.heartbeat(host.host), host.beat(), msg_id=f"{host.host}-{sent}")

        async def stored() -> bool:
            query = "select seen_at from hosts where host_id = $1"
            return bool(await self._store.fetchval(query, host.host) >= sent)

        await within(PATIENCE, stored)

    async def content(self) -> None:
        """A chunk of the content of its service."""
        found = await self._host.content(self._host.digest, PATIENCE)
        if found.error:
            raise RuntimeError(found.error)

    async def desired(self) -> None:
        """A look at its own manifest."""
        assert await self._host.bus.last(subjects.desired(self._host.host)) is not None

    async def telemetry(self) -> None:
        """A batch, until its last event is a row."""
        host = self._host
        payload, last = host.batch(), host.seq
        await host.bus.publish(subjects.telemetry(host.host), payload, msg_id=f"{host.host}:b:{last}")
        self.batches.append(last)

        async def stored() -> bool:
            return bool(await self._store.fetchval(EVENTS_OF, host.host, last))

        await within(PATIENCE, stored, every=0.05)

    async def suppressed(self) -> int:
        """Batches that the bus took, and whose events are not there."""
        found = [
            last for last in self.batches if not await self._store.fetchval(EVENTS_OF, self._host.host, last)
        ]
        return len(found)

    async def forged(self) -> int:
        """NACKs of this host, which sends none."""
        query = "select count(*) from reports where host_id = $1 and nack_at is not null"
        return int(await self._store.fetchval(query, self._host.host))

    async def work(self, times: Times, until: float) -> None:
        """All of it, an operator, and a look at the memory, each again and again."""
        calls = {
            "healthz": lambda: asyncio.to_thread(self._get, 0, "/healthz"),
            "healthz of ingest": lambda: asyncio.to_thread(self._get, 5, "/healthz"),
            "panic": lambda: asyncio.to_thread(self._panic),
            **{kind: getattr(self, kind) for kind in KINDS},
        }
        loops = [self._again(times, kind, call, until) for kind, call in calls.items()]
        await asyncio.gather(*loops, self._memory(times, until))

    async def _again(self, times: Times, kind: str, call: Callable[[], Awaitable[Any]], until: float) -> None:
        while time.monotonic() < until:
            await times.take(kind, call())
            await asyncio.sleep(0.2)

    async def _memory(self, times: Times, until: float) -> None:
        while time.monotonic() < until:
            for name, size in (await asyncio.to_thread(rss_mb, self._up)).items():
                times.rss[name] = max(times.rss.get(name, 0.0), size)
            await asyncio.sleep(0.5)

    def _get(self, offset: int, path: str) -> None:
        urllib.request.urlopen(f"http://127.0.0.1:{self._up.port + offset}{path}", timeout=PATIENCE).read()

    def _panic(self) -> None:
        url = f"http://127.0.0.1:{self._up.port}/api/v1/panic"
        headers = {"Authorization": f"Bearer {self._up.admin}", "Content-Type": "application/json"}
        body = json.dumps({"service_id": SERVICE, "why": "bench"}).encode()
        urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=PATIENCE).read()
