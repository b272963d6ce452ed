"""What a hostile host or client tries, each as a small function.

    python -m bench.lib.attacks NAME SITE SECONDS

An attack gets its host (`Neighbour`: credentials, key, connection) and works until `until` (monotonic time);
it gives how often it tried. Add one with `@attack`; bench/neighbour.py runs all of them, one after the other,
in a process of their own while another host works.
"""

import asyncio
import gzip
import itertools
import math
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop
import zstandard
from bench.lib import attacks_http
from bench.lib.bare import flood, published
from tests.support.neighbours import Neighbour, raw, read_site, speaking

from aegisflux.domain.event import EventBatch, FlowSeen
from aegisflux.domain.manifest import ContentRequest, Nack
from aegisflux.wire import envelope, subjects
from aegisflux.wire.events import encode_batch

Attack = Callable[[Neighbour, float], Awaitable[int]]
ATTACKS: Final[dict[str, Attack]] = {}
NO_CONTENT: Final = msgspec.msgpack.encode(ContentRequest("sha256:" + "1" * 64, 1, 0))
BATCH_BYTES: Final = 512 << 10
INGEST: Final = 5  # its port after the first
UNFIT: Final = ("tls_garbage", "token_reads")  # they need an address with TLS, a token that reads


def attack(made: Attack) -> Attack:
    """Name an attack after its function."""
    ATTACKS[made.__name__.replace("_", "-")] = made  # type: ignore[attr-defined]
    return made


async def publish_for(
    host: Neighbour,
    until: float,
    subject: str,
    payloads: list[bytes],
    rate: float = math.inf,
    reply: str = "",
) -> int:
    """Publish these again and again, at most `rate` a second, without waiting for an answer."""
    nc, began, sent = await raw(host), time.monotonic(), 0
    for payload in itertools.cycle(payloads):
        if time.monotonic() >= until:
            return sent
        await nc.publish(subject, payload, reply=reply)
        sent += 1
        ahead = sent / rate - (time.monotonic() - began)
        if ahead > 0.005:
            await asyncio.sleep(ahead)
        elif sent % 16 == 0:
            await nc.flush(10)
    return sent


@attack
async def acks_out_of_range(host: Neighbour, until: float) -> int:
    """800 acks a second of version 2^64 - 1."""
    payloads = [host.ack(1, n, version=(1 << 64) - 1) for n in range(64)]
    return await publish_for(host, until, subjects.acks(host.host), payloads, 800)


@attack
async def acks_in_range(host: Neighbour, until: float) -> int:
    """Acks that are as the schema says, as fast as they go."""
    payloads = [host.ack(n, n % 256) for n in range(512)]
    return await publish_for(host, until, subjects.acks(host.host), payloads)


@attack
async def content_requests(host: Neighbour, until: float) -> int:
    """7,200 requests a second for a content that no manifest names."""
    reply = subjects.inbox(host.host) + ".x"
    return await publish_for(host, until, subjects.content(host.host), [NO_CONTENT], 7200, reply)


def _asked(host: Neighbour, subject: str, payload: bytes, headers: bytes = b"") -> bytes:
    """A request as the protocol writes it."""
    return published(subject, subjects.inbox(host.host) + ".x", payload, headers)


@attack
async def content_full_rate(host: Neighbour, until: float) -> int:
    """Content requests as fast as two connections write them."""
    many = _asked(host, subjects.content(host.host), NO_CONTENT) * 50
    return await flood(host.site, until, lambda: many, 50)


@attack
async def credentials_flood(host: Neighbour, until: float) -> int:
    """Requests for credentials as fast as two connections write them: each is a look-up and a signature."""
    many = _asked(host, subjects.credentials(host.host), b"") * 50
    return await flood(host.site, until, lambda: many, 50)


@attack
async def content_header_bombs(host: Neighbour, until: float) -> int:
    """Requests with 1 MB of headers, 140,000 of them."""
    bomb = b"NATS/1.0\r\n" + b"".join(b"%x:\r\n" % n for n in range(140_000)) + b"\r\n"
    one = _asked(host, subjects.content(host.host), NO_CONTENT, bomb)
    return await flood(host.site, until, lambda: one, rate=20)


@attack
async def content_large_bodies(host: Neighbour, until: float) -> int:
    """Requests of 1 MB for both things that hosts ask for, as fast as they go."""
    served = (subjects.content(host.host), subjects.credentials(host.host))
    bodies = itertools.cycle([_asked(host, subject, bytes((1 << 20) - 4096)) for subject in served])
    return await flood(host.site, until, lambda: next(bodies))


@attack
async def content_until_large(host: Neighbour, until: float) -> int:
    """Small requests, and a large one whenever the small ones have earned trust."""
    small = _asked(host, subjects.content(host.host), NO_CONTENT) * 200
    large = _asked(host, subjects.content(host.host), bytes((1 << 20) - 4096)) * 8
    turns = itertools.cycle([small] * 4 + [large])
    return await flood(host.site, until, lambda: next(turns), 168)


@attack
async def heartbeats_large(host: Neighbour, until: float) -> int:
    """Heartbeats of 500 KB of version, of 50,000 addresses, of an interval of NaN."""
    payloads = [
        host.beat(agent_version="9" * 500_000),
        host.beat(addresses=[f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(50_000)]),
        host.beat(interval=math.nan),
        host.beat(addresses=["0.0.0.0", "224.0.0.1", "255.255.255.255", "10.9.0.1"]),
    ]
    return await publish_for(host, until, subjects.heartbeat(host.host), payloads, 200)


@attack
async def inventories(host: Neighbour, until: float) -> int:
    """Inventories of many packages, another one each time."""

    def made(n: int) -> bytes:
        packages = [{"type": "deb", "name": f"p{i}", "version": str(n)} for i in range(20_000)]
        body = {"host_id": host.host, "taken_ns": n, "digest": str(n), "system": {}, "packages": packages}
        return zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(body))

    return await publish_for(host, until, subjects.inventory(host.host), [made(n) for n in range(4)], 50)


async def _telemetry(host: Neighbour, until: float, payloads: list[bytes], lines: int = 3) -> int:
    """Over several connections at once."""

    async def one() -> int:
        async with speaking(host.site) as line:
            return await publish_for(line, until, subjects.telemetry(host.host), payloads)

    return sum(await asyncio.gather(*(one() for _ in range(lines))))


@attack
async def telemetry_of_a_megabyte(host: Neighbour, until: float) -> int:
    """1 MB messages over three connections."""
    return await _telemetry(host, until, [bytes((1 << 20) - 1024)])


@attack
async def telemetry_well_formed(host: Neighbour, until: float) -> int:
    """Honest batches of almost 512 KiB, as after an outage, over three connections."""
    payloads = []
    for _ in range(16):
        batch = msgspec.msgpack.decode(host.batch(900))
        for event in batch["events"]:
            event["args"] = ["x" * 480]
        payloads.append(msgspec.msgpack.encode(batch))
    assert all(len(payload) < BATCH_BYTES for payload in payloads)
    return await _telemetry(host, until, payloads)


@attack
async def telemetry_of_bad_events(host: Neighbour, until: float) -> int:
    """Batches of a thousand events, of which each is refused with a letter of its own."""
    batch = msgspec.msgpack.decode(host.batch(1000))
    for event in batch["events"]:
        event["uid"] = "root"
    return await _telemetry(host, until, [msgspec.msgpack.encode(batch)])


@attack
async def nacks_in_range(host: Neighbour, until: float) -> int:
    """Nacks with long texts of 250 services and of the whole manifest, as fast as they go."""
    said = [Nack(host.host, "stale_serial", "d" * 900, n + 1, n % 250 or None, 1) for n in range(512)]
    payloads = [host.signed(envelope.ANSWER, msgspec.to_builtins(one)) for one in said]
    return await publish_for(host, until, subjects.acks(host.host), payloads)


@attack
async def heartbeats_moving_addresses(host: Neighbour, until: float) -> int:
    """Heartbeats of other addresses and other services each time, as fast as they go."""
    payloads = [
        host.beat(
            addresses=[f"10.{n}.{n * 7 % 256}.{k}" for k in range(1, 60)],
            services=[{"service_id": n * 100 + k, "state": "in_force"} for k in range(100)],
        )
        for n in range(256)
    ]
    return await publish_for(host, until, subjects.heartbeat(host.host), payloads)


@attack
async def telemetry_sparse_seq(host: Neighbour, until: float) -> int:
    """Small events, of which every third sequence number is there."""
    host.seq = time.time_ns() // 1000
    return await _telemetry(host, until, [_sparse(host) for _ in range(128)], lines=2)


def _sparse(host: Neighbour) -> bytes:
    batch = msgspec.msgpack.decode(host.batch(500, "sparse"))
    for n, event in enumerate(batch["events"]):
        event["seq"] += 2 * n
    host.seq += 1000
    return msgspec.msgpack.encode(batch)


@attack
async def telemetry_new_boots(host: Neighbour, until: float) -> int:
    """Batches of one event, each of another boot."""
    began = time.time_ns()
    payloads = [host.batch(1, f"boot-{began}-{n}") for n in range(4096)]
    return await _telemetry(host, until, payloads, lines=2)


@attack
async def telemetry_many_peers(host: Neighbour, until: float) -> int:
    """Flows, each to another peer and port."""
    host.seq = time.time_ns() // 1000
    return await _telemetry(host, until, [_flows(host, n * 500) for n in range(200)], lines=2)


def _flows(host: Neighbour, first: int) -> bytes:
    now = time.time_ns()
    found = tuple(
        FlowSeen(
            seq=host.seq + n, time_ns=now, direction="egress", proto=6, local="10.9.9.9", port=1 + n % 60_000,
            peer=f"172.{16 + (first + n >> 16 & 15)}.{first + n >> 8 & 255}.{first + n & 255}", first_ns=now,
            last_ns=now, packets_out=1, packets_in=1, connections=1, verdict="allowed",
        )
        for n in range(500)
    )  # fmt: skip
    host.seq += 500
    return encode_batch(EventBatch(host_id=host.host, boot_id="peers", sent_ns=now, events=found))


@attack
async def direct_gets(host: Neighbour, until: float) -> int:
    """Looks at the own manifest, as fast as they go, whose answers nobody waits for."""
    where = subjects.direct_get("DESIRED", subjects.desired(host.host))
    return await publish_for(host, until, where, [b""], reply=subjects.inbox(host.host) + ".x")


@attack
async def together(host: Neighbour, until: float) -> int:
    """Several at once, over a connection each: as many as a host may have."""
    names = ("nacks-in-range", "heartbeats-moving-addresses", "direct-gets")

    async def one(name: str) -> int:
        async with speaking(host.site) as line:
            return await ATTACKS[name](line, until)

    return sum(await asyncio.gather(*map(one, names)))


@attack
async def bodies_of_empty_members(host: Neighbour, until: float) -> int:
    """Posts of 200,000 empty members of gzip, and frames of zstd."""
    empty = {"gzip": gzip.compress(b"") * 200_000, "zstd": zstandard.ZstdCompressor().compress(b"") * 400_000}
    tries = 0
    for encoding in itertools.cycle(empty):
        if time.monotonic() >= until:
            return tries
        tries += 1
        await asyncio.gather(*(asyncio.to_thread(_post, host, encoding, empty[encoding]) for _ in range(4)))
    return tries


def _post(host: Neighbour, encoding: str, body: bytes) -> Any:
    headers = {
        "Authorization": f"Bearer {host.site.source_token}",
        "Content-Encoding": encoding,
        "Content-Type": "application/x-ndjson",
    }
    url = f"http://127.0.0.1:{host.site.port + 5}/api/v1/events"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60).status
    except (urllib.error.HTTPError, OSError) as error:
        return error


def _over_http(name: str) -> Attack:
    """One of bench/lib/attacks_http.py, most of which need no token: on the orchestrator, or on ingest."""

    async def tried(host: Neighbour, until: float) -> int:
        attacks_http.raise_files()
        port = host.site.port + (INGEST if name == "token_bodies" else 0)
        made = attacks_http.Attack("127.0.0.1", port, until, host.site.source_token)
        await attacks_http.ATTACKS[name](made)
        return made.made

    return tried


ATTACKS.update(
    (f"http-{name.replace('_', '-')}", _over_http(name)) for name in attacks_http.ATTACKS if name not in UNFIT
)


async def run(name: str, site: Path, seconds: float) -> int:
    """One attack over the host's own connection; it says a line when it begins."""
    async with speaking(read_site(site)) as host:
        print("connected", flush=True)
        return await ATTACKS[name](host, time.monotonic() + seconds)


if __name__ == "__main__":
    print(uvloop.run(run(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))))
