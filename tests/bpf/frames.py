"""Packets for BPF_PROG_TEST_RUN, made from the flows that the oracle judges."""

import struct

from aegisflux.domain.flow import Flow
from aegisflux.domain.net import ICMP, ICMPV6, TCP, UDP
from aegisflux.wire.layout import CB_EXPIRED, CB_LOCAL

OUR_V4, OUR_V6 = bytes([10, 9, 9, 9]), bytes.fromhex("20010db8000900000000000000000009")
I_EGRESS, I_INGRESS = 1, 2


def frame(flow: Flow, inward: bool) -> bytes:
    """An Ethernet frame of this flow: from the peer where `inward`, else to it. Malformed: cut short."""
    initiates = (flow.direction == "ingress") == inward
    source, dest = (
        (flow.source_port or 40_000, flow.port or 0)
        if initiates
        else (flow.port or 0, flow.source_port or 40_000)
    )
    body = transport(flow, source, dest)[: 6 if flow.malformed else None]
    theirs = flow.peer.packed()
    ours = OUR_V4 if flow.peer.family == 4 else OUR_V6
    a, b = (theirs, ours) if inward else (ours, theirs)
    if flow.peer.family == 4:
        head = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, flow.hop_limit or 64, flow.proto, 0, a, b
        )
        return bytes(12) + b"\x08\x00" + head + body
    head = struct.pack("!IHBB16s16s", 6 << 28, len(body), flow.proto, flow.hop_limit or 64, a, b)
    return bytes(12) + b"\x86\xdd" + head + body


def transport(flow: Flow, source: int, dest: int) -> bytes:
    if flow.proto == TCP:
        return struct.pack("!HHIIBBHHH", source, dest, 0, 0, 0x50, 2, 1024, 0, 0)
    if flow.proto == UDP:
        return struct.pack("!HHHH", source, dest, 9, 0) + b"x"
    if flow.proto in (ICMP, ICMPV6):
        return struct.pack("!BBHI", flow.icmp_type or 0, 0, 0, 0)
    return bytes(12)


def cb_of(slot: int, flow: Flow, extra: int = 0) -> tuple[int, ...]:
    """skb->cb for the test entries."""
    initiator = I_INGRESS if flow.direction == "ingress" else I_EGRESS
    return slot, initiator | (CB_LOCAL if flow.local else 0) | extra, 0, 0, 0


__all__ = ["CB_EXPIRED", "cb_of", "frame"]
