"""Hosts that send: batches of 100 events, encoded once, in which only sequences and times change.

    python -m bench.lib.pipeline_source DATA_DIR PORT_BASE RATE SECONDS HOSTS

Prints one JSON line: events sent, in how many seconds.
"""

import asyncio
import json
import random
import struct
import sys
import time
from collections.abc import Iterator
from typing import Final

from aegisflux.bootstrap import existing
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.event import Ancestor, Auth, Event, EventBatch, Exec, Exit, FlowSeen, Listen
from aegisflux.settings import load
from aegisflux.wire import subjects
from aegisflux.wire.events import encode_batch

EVENTS: Final = 100
BASE: Final = 1 << 40  # so that every sequence and time takes nine bytes
SENT: Final = (1 << 61) + EVENTS
IN_FLIGHT: Final = 48
ANCESTORS: Final = (Ancestor(1, 1, "systemd"), Ancestor(812, 4_000_000_000, "bash"))


class Template:
    """One encoded batch and the places of its sequences and times."""

    def __init__(self, host: str, draw: random.Random) -> None:
        marks = [(BASE + (1 << 60) + i, (1 << 61) + i) for i in range(EVENTS)]
        events = tuple(_event(draw, seq, at) for seq, at in marks)
        batch = EventBatch(host_id=host, boot_id="bench", sent_ns=SENT, events=events)
        self.data = bytearray(encode_batch(batch))
        self._seqs = [self.data.index(struct.pack(">Q", seq)) for seq, _ in marks]
        self._times = [self.data.index(struct.pack(">Q", at)) for at in (*(at for _, at in marks), SENT)]

    def filled(self, first: int, now_ns: int) -> bytes:
        """The batch with sequences from `first` and these times."""
        pack, data = struct.pack_into, self.data
        for at, number in zip(self._seqs, range(first, first + EVENTS), strict=True):
            pack(">Q", data, at, number)
        for at in self._times:
            pack(">Q", data, at, now_ns)
        return bytes(data)


def _event(draw: random.Random, seq: int, at: int) -> Event:
    """60 % flow, 25 % exec, 15 % other."""
    kind = draw.random()
    pid = draw.randrange(300, 30_000)
    if kind < 0.6:
        return FlowSeen(
            seq=seq,
            time_ns=at,
            direction=draw.choice(("egress", "ingress")),
            proto=6,
            local=f"10.0.0.{draw.randrange(250)}",
            peer=f"10.{draw.randrange(4)}.{draw.randrange(8)}.{draw.randrange(250)}",
            port=draw.choice((443, 5432, 8080, 53)),
            first_ns=1_790_000_000_000_000_000,
            last_ns=1_790_000_000_100_000_000 + seq % 1000,
            packets_out=draw.randrange(1, 900),
            packets_in=draw.randrange(900),
            bytes_out=draw.randrange(10**6),
            bytes_in=draw.randrange(10**6),
            connections=1,
            verdict="allowed",
            reason="allow",
            service_id=draw.randrange(100, 140),
            cgroup="/system.slice/web.service",
            pid=pid,
            start_ns=5_000_000_000,
        )
    if kind < 0.85:
        return Exec(
            seq=seq,
            time_ns=at,
            pid=pid,
            start_ns=6_000_000_000,
            uid=1000,
            path="/usr/bin/python3.11",
            comm="python3",
            args=("python3", "-m", "worker", "--queue", f"q{draw.randrange(100)}"),
            cgroup="/system.slice/web.service",
            ancestors=ANCESTORS,
        )
    if kind < 0.95:
        return Exit(
            seq=seq,
            time_ns=at,
            pid=pid,
            start_ns=6_000_000_000,
            code=draw.randrange(3),
            comm="python3",
            path="/usr/bin/python3.11",
        )
    if kind < 0.97:
        return Listen(
            seq=seq, time_ns=at, proto=6, address="0.0.0.0", port=8080, cgroup="/system.slice/web.service"
        )
    return Auth(
        seq=seq,
        time_ns=at,
        source="sshd",
        success=False,
        user="root",
        address="203.0.113.7",
        service="sshd",
        message="Failed password for root from 203.0.113.7 port 4711 ssh2",
    )


async def send(data_dir: str, port_base: int, rate: float, seconds: float, hosts: int) -> int:
    """Send at the rate; how many events were stored in the stream."""
    place = existing(load(None, {}, data_dir=data_dir, port_base=port_base))
    bus = place.bus(place.accounts.control_creds)
    draw = random.Random(5)
    templates = [Template(f"bench-{n}", draw) for n in range(hosts)]
    next_seq = [BASE + time.time_ns() // 1000] * hosts
    slots, sent = asyncio.Semaphore(IN_FLIGHT), 0

    async def publish(host: str, payload: bytes, msg_id: str) -> None:
        nonlocal sent
        try:
            while True:
                try:
                    await bus.publish(subjects.telemetry(host), payload, msg_id=msg_id)
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
            sent += EVENTS
        finally:
            slots.release()

    bus.open()
    await bus.ready(10)
    print("sending", flush=True)
    began, tasks = time.monotonic(), set()
    for due, n in _schedule(rate, seconds, hosts):
        pause = began + due - time.monotonic()
        if pause > 0.001:
            await asyncio.sleep(pause)
        await slots.acquire()
        payload = templates[n].filled(next_seq[n], time.time_ns())
        task = asyncio.create_task(publish(f"bench-{n}", payload, f"bench-{n}:{next_seq[n]}"))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        next_seq[n] += EVENTS
    await asyncio.gather(*tasks)
    took = time.monotonic() - began
    await bus.close()
    print(
        json.dumps(
            {"sent": sent, "seconds": round(took, 2), "bytes_per_event": len(templates[0].data) / EVENTS}
        )
    )
    return sent


def _schedule(rate: float, seconds: float, hosts: int) -> Iterator[tuple[float, int]]:
    for number in range(int(rate * seconds / EVENTS)):
        yield number * EVENTS / rate, number % hosts


if __name__ == "__main__":
    import uvloop

    folder, base, rate, seconds, hosts = sys.argv[1:]
    uvloop.run(send(folder, int(base), float(rate), float(seconds), int(hosts)))
