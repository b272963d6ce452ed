"""What putting a snapshot in force costs: 100,000 entries from received bytes, against `nft -f`."""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

from bench.lib.entries import RANDOM, RANDOM_V6, Entries, entries
from bench.lib.report import Report
from msgspec import Struct
from nacl.signing import SigningKey
from tests.bpf.bench_kernel import SLOT, Bench
from tests.support.kernel import HOUR_NS
from tests.support.netns import Host, Lab

from aegisflux.agent.identity import verify
from aegisflux.domain.manifest import MAX_CONTENT_BYTES, ActiveRef, KeySet, PublicKey
from aegisflux.domain.net import cidr_text
from aegisflux.domain.snapshot import from_builtins
from aegisflux.domain.trust import Trusted, accept_content, check_signature
from aegisflux.ports.datapath import Generation
from aegisflux.wire import envelope
from aegisflux.wire.canonical import content_of, packed
from aegisflux.wire.content import unpacked

COUNT: Final = 100_000
FOREVER: Final = 2**53


class Received(Struct, frozen=True):
    """The bytes as an agent gets them, and what it knows before."""

    sealed: bytes
    trusted: Trusted
    ref: ActiveRef


def measure(report: Report) -> None:
    """Rounds of both, one after the other; about half a minute, or a few seconds when quick."""
    made = entries(COUNT, RANDOM)
    received, six = _received(made), _received(entries(COUNT, RANDOM_V6))
    report.say(f"content of {COUNT} entries: {len(received.sealed)} bytes, of IPv6 {len(six.sealed)}")
    rounds = 3 if report.quick else 9
    ours, theirs, ours_v6 = Times(), Times(), Times()
    with Lab("af") as lab, Bench() as bench, tempfile.TemporaryDirectory() as folder:
        host, file = lab.host("nft"), Path(folder, "set.nft")
        file.write_text(_nft(made))
        for number in range(rounds):
            report.say(f"apply, round {number + 1} of {rounds}")
            _apply(bench, received, ours)
            _load_nft(host, file, theirs)
            _apply(bench, six, ours_v6)
    whole, nft = ours.median("whole"), theirs.median("whole")
    parts = ", ".join(
        f"{name} {1000 * ours.median(name):.0f}" for name in ("verify and read", "load", "flip")
    )
    report.add("apply_ratio_nft", whole / nft, f"{1000 * whole:.0f} ms ({parts}) / {1000 * nft:.0f} ms")
    report.add("apply_100k_ms", 1000 * whole, "from received bytes to judging by them")
    report.add("apply_100k_v6_ms", 1000 * ours_v6.median("whole"), "the same of IPv6 entries")
    report.add("nft_100k_ms", 1000 * nft, "nft -f into an interval set of an empty namespace, without ports")


class Times:
    """Seconds by step."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}

    def note(self, name: str, began: float) -> float:
        """Add what passed since; the time now."""
        now = time.perf_counter()
        self._found.setdefault(name, []).append(now - began)
        return now

    def median(self, name: str) -> float:
        return median(self._found[name])


def _received(made: Entries) -> Received:
    content = content_of(from_builtins(made.body()))
    key = SigningKey.generate()
    sealed = envelope.encode(
        envelope.seal(envelope.CONTENT, packed(content), "k1", lambda data: key.sign(data).signature)
    )
    keys = KeySet(1, (PublicKey("k1", bytes(key.verify_key), 0, FOREVER),))
    ref = ActiveRef(content.version, content.digest, FOREVER)
    return Received(sealed, Trusted("bench", b"", keys), ref)


def _apply(bench: Bench, received: Received, times: Times) -> None:
    """What the agent does with the bytes of a content (agent.contents, agent.applier), to the flip."""
    began, wall = time.perf_counter(), time.time()
    signed = envelope.opened(envelope.decode_envelope(received.sealed, MAX_CONTENT_BYTES), envelope.CONTENT)
    check_signature(received.trusted, signed, int(wall), verify)
    c = accept_content(received.trusted, signed, unpacked(signed.payload), received.ref, wall, verify)
    at = times.note("verify and read", began)
    generation = Generation(
        c.service_id, c.version, c.digest, c.tables, c.tables_digest, c.mode, c.on_expiry, c.established,
        bench.datapath.boot_ns() + HOUR_NS,
    )  # fmt: skip
    loaded = bench.datapath.load(SLOT, "active", generation)
    if loaded.tables_digest != c.tables_digest:
        raise RuntimeError("the kernel holds other tables")
    at = times.note("load", at)
    bench.datapath.flip(loaded)
    times.note("flip", at)
    times.note("whole", began)
    bench.datapath.forget(SLOT)


def _nft(made: Entries) -> str:
    elements = ",\n".join(cidr_text(*e.cidr) for e in made.every())
    head = "add table inet bench\nadd set inet bench peers { type ipv4_addr; flags interval; }\n"
    return f"{head}add element inet bench peers {{\n{elements}\n}}\n"


def _load_nft(host: Host, file: Path, times: Times) -> None:
    host.run(["nft", "flush", "ruleset"])
    began = time.perf_counter()
    done = host.run(["nft", "-f", str(file)], timeout=120)
    times.note("whole", began)
    if done.returncode:
        raise RuntimeError(f"nft: {done.stderr[:200]}")
