"""Flows added up by minute: who talked to whom, on which port, with which verdict, and how much."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from aegisflux.domain.enriched import Enriched
from aegisflux.domain.event import FlowSeen

MOST: Final = (1 << 53) - 1  # so that sums of sums fit in 64 bits
MINUTE_NS: Final = 60 * 1_000_000_000
NO_SERVICE: Final = -1


class Key(NamedTuple):
    """What is added up together. `minute` is its beginning, in nanoseconds; services -1: none."""

    minute: int
    host_id: str
    service_id: int
    direction: str
    peer_host: str
    peer_service_id: int
    peer_class: str
    proto: int
    port: int
    verdict: str
    reason: str


class Sums:
    """What a key saw, each number at most `MOST`."""

    __slots__ = ("bytes_in", "bytes_out", "connections", "flows", "packets_in", "packets_out")

    def __init__(self) -> None:
        self.flows = self.connections = 0
        self.packets_out = self.packets_in = self.bytes_out = self.bytes_in = 0


def rolled_up(host_id: str, events: Iterable[Enriched], into: dict[Key, Sums]) -> None:
    """Add the flows among the events of a host to `into`."""
    for enriched in events:
        event = enriched.event
        if type(event) is not FlowSeen:
            continue
        context = enriched.context
        key = Key(
            event.last_ns - event.last_ns % MINUTE_NS,
            host_id,
            NO_SERVICE if context.service_id is None else context.service_id,
            event.direction,
            context.peer_host,
            NO_SERVICE if context.peer_service_id is None else context.peer_service_id,
            context.peer_class or "",
            event.proto,
            event.port,
            event.verdict,
            event.reason.replace("\0", "\\0"),
        )
        sums = into.get(key)
        if sums is None:
            sums = into[key] = Sums()
        sums.flows += 1
        sums.connections = min(MOST, sums.connections + event.connections)
        sums.packets_out = min(MOST, sums.packets_out + event.packets_out)
        sums.packets_in = min(MOST, sums.packets_in + event.packets_in)
        sums.bytes_out = min(MOST, sums.bytes_out + event.bytes_out)
        sums.bytes_in = min(MOST, sums.bytes_in + event.bytes_in)
