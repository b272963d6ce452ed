"""An event with what was known about it at that time. Enrichment adds, and never overwrites.

A join that found nothing leaves its field at the default and is counted; nothing is guessed.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from aegisflux.domain.bounds import Count, Nanoseconds, ServiceId, Signed64
from aegisflux.domain.event import Ancestor, Event
from aegisflux.domain.manifest import HostId

AddressClass = Literal[
    "own", "loopback", "private", "link_local", "multicast", "broadcast", "shared", "documentation",
    "reserved", "public", "unspecified",
]  # fmt: skip


class PackageRef(Struct, frozen=True, gc=False, omit_defaults=True):
    """The package that a binary belongs to."""

    type: str
    name: str
    version: str
    source: str = ""


class OpenVulnerability(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A vulnerability of a package that is not fixed on this host. Empty until intelligence exists."""

    id: str
    package: str
    severity: str = ""
    kev: bool = False
    epss: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None


class Indicator(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A threat-intelligence indicator that an address or a path matched. Empty until intelligence exists."""

    value: str
    kind: str
    feed: str
    confidence: Annotated[int, Meta(ge=0, le=100)] = 0


class Context(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What enrichment adds to one event.

    service, peer_service: of the local end and of the peer, with their ids
    peer_host:             whose address the peer's is
    path:                  the binary of the event's process, where the event itself does not say
    ancestors:             of the event's process, nearest first, where the event itself does not say
    """

    service_id: ServiceId | None = None
    service: str = ""
    peer_class: AddressClass | None = None
    peer_host: str = ""
    peer_service_id: ServiceId | None = None
    peer_service: str = ""
    path: str = ""
    ancestors: tuple[Ancestor, ...] = ()
    package: PackageRef | None = None
    vulnerabilities: tuple[OpenVulnerability, ...] = ()
    indicators: tuple[Indicator, ...] = ()


class Enriched(Struct, frozen=True, gc=False):
    """One event and its context."""

    event: Event
    context: Context


class EnrichedBatch(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Events of one host and boot, in their order.

    labels:      of the host
    received_ns: when ingest had it, by ingest's clock
    offset_ns:   how far the host's clock is behind that, by the least delay seen lately
    lost:        as `EventBatch.lost`
    """

    host_id: HostId
    boot_id: str
    received_ns: Nanoseconds
    events: tuple[Enriched, ...]
    labels: dict[str, str] = {}
    offset_ns: Signed64 = 0
    lost: dict[str, Count] = {}
