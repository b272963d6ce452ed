"""Headers as the programs read them: options, extension headers, fragments, and what is malformed."""

import struct
from collections.abc import Iterator

import pytest

from aegisflux.domain.net import Cidr
from aegisflux.domain.snapshot import Entry, Ruleset
from aegisflux.wire.layout import REASONS
from tests.bpf.bench_kernel import SLOT, Bench
from tests.bpf.frames import OUR_V4, OUR_V6

pytestmark = pytest.mark.bpf
PEER6 = bytes.fromhex("20010db8000000000000000000000001")
GROUP6 = bytes.fromhex("ff020000000000000000000000000016")
PEER4 = bytes([10, 0, 0, 1])
RULES = Ruleset(
    1,
    1,
    (
        Entry(Cidr(4, 0x0A000000, 8), "tcp", 443),
        Entry(Cidr(6, 0x20010DB8 << 96, 32), "tcp", 443),
    ),
    (),
    (),
    (),
    "enforce",
    "open",
    "cut",
)
TCP_443 = struct.pack("!HHIIBBHHH", 40_000, 443, 0, 0, 0x50, 2, 1024, 0, 0)
TCP_444 = struct.pack("!HHIIBBHHH", 40_000, 444, 0, 0, 0x50, 2, 1024, 0, 0)
HOP, ROUTING, FRAGMENT, OPTIONS, AUTH, TCP, ICMP6 = 0, 43, 44, 60, 51, 6, 58


def v6(first: int, body: bytes, length: int | None = None, hops: int = 64, peer: bytes = PEER6) -> bytes:
    size = len(body) if length is None else length
    head = struct.pack("!IHBB16s16s", 6 << 28, size, first, hops, OUR_V6, peer)
    return bytes(12) + b"\x86\xdd" + head + body


def mld(hops: int, peer: bytes) -> bytes:
    """A report of groups, behind the router alert that RFC 3810 asks for."""
    return v6(HOP, extension(ICMP6) + struct.pack("!BBHI", 143, 0, 0, 0), hops=hops, peer=peer)


def v4(body: bytes, options: bytes = b"", total: int | None = None, first: int | None = None) -> bytes:
    words = 5 + len(options) // 4
    size = words * 4 + len(body) if total is None else total
    lead = 0x40 | words if first is None else first
    head = struct.pack("!BBHHHBBH4s4s", lead, 0, size, 1, 0, 64, TCP, 0, OUR_V4, PEER4)
    return bytes(12) + b"\x08\x00" + head + options + body


def extension(following: int, extra: int = 0) -> bytes:
    return bytes([following, extra, 1, 4 + 8 * extra, *bytes(4 + 8 * extra)])


def chain(count: int, body: bytes) -> bytes:
    return v6(OPTIONS, b"".join(extension(OPTIONS if i < count - 1 else TCP) for i in range(count)) + body)


def fragment(offset_and_more: int) -> bytes:
    return v6(FRAGMENT, struct.pack("!BBHI", TCP, 0, offset_and_more, 7) + TCP_443)


CASES = {
    "v6 plain": (v6(TCP, TCP_443), "allow"),
    "v6 plain, other port": (v6(TCP, TCP_444), "no_match"),
    "one option header": (chain(1, TCP_443), "allow"),
    "one option header, other port": (chain(1, TCP_444), "no_match"),
    "a long option header": (v6(HOP, extension(TCP, 3) + TCP_443), "allow"),
    "a routing header": (v6(ROUTING, extension(TCP) + TCP_443), "allow"),
    "an authentication header": (v6(AUTH, bytes([TCP, 4, *bytes(22)]) + TCP_443), "allow"),
    "headers up to the bound": (chain(8, TCP_443), "allow"),
    "headers beyond the bound": (chain(9, TCP_443), "malformed"),
    "a header cut short": (v6(OPTIONS, bytes([TCP, 9, 1, 4, 0, 0, 0, 0])), "malformed"),
    "a first fragment": (fragment(1), "allow"),
    "a later fragment": (fragment(8 << 3 | 1), "malformed"),
    "a last fragment": (fragment(8 << 3), "malformed"),
    "v6 longer than it is": (v6(TCP, TCP_443, 100), "malformed"),
    "v6 shorter than its TCP": (v6(TCP, TCP_443, 12), "malformed"),
    "MLD behind a router alert": (mld(1, GROUP6), "failsafe"),
    "MLD that a router would forward": (mld(64, GROUP6), "no_match"),
    "MLD to a host": (mld(1, PEER6), "no_match"),
    "v4 plain": (v4(TCP_443), "allow"),
    "v4 with options": (v4(TCP_443, bytes(8)), "allow"),
    "v4 with options, other port": (v4(TCP_444, bytes(8)), "no_match"),
    "v4 header too short": (v4(TCP_443, first=0x44), "malformed"),
    "v4 header longer than it is": (v4(TCP_443[:8], first=0x4F), "malformed"),
    "v4 longer than it is": (v4(TCP_443, total=90), "malformed"),
    "v4 shorter than its header": (v4(TCP_443, total=19), "malformed"),
    "no such version": (v4(TCP_443, first=0x55), "malformed"),
    "TCP cut short": (v4(TCP_443[:12]), "malformed"),
    "TCP with a header beyond its end": (v4(TCP_443[:12] + b"\xf0" + TCP_443[13:]), "malformed"),
}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        bench.use(RULES)
        yield bench


@pytest.mark.parametrize("name", CASES)
def test_a_packet_is_read_as_it_is(bench: Bench, name: str) -> None:
    packet, reason = CASES[name]
    before = bench.rows()
    passed, _ = bench.datapath.test_run("aegis_test_egress", packet, (SLOT, 1))
    grown = [REASONS[i] for i in REASONS if bench.rows()[i] > before[i]]
    assert (grown, bool(passed)) == ([reason], reason in ("allow", "failsafe"))
