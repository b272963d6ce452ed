"""What is known of the fleet when an event comes: what enrichment joins with."""

from collections.abc import Mapping

from msgspec import Struct

from aegisflux.domain.enriched import Indicator, OpenVulnerability, PackageRef
from aegisflux.domain.inventory import PackageInventory


class KnownHost(Struct, frozen=True):
    """An enrolled host: its labels and its own addresses."""

    host_id: str
    labels: Mapping[str, str]
    addresses: tuple[str, ...]


class KnownService(Struct, frozen=True):
    """A service of the registry."""

    service_id: int
    name: str
    selectors: tuple[str, ...]
    host_labels: Mapping[str, str]


class KnownListener(Struct, frozen=True):
    """A socket that listens on a host, as events said last; `service_id` None: of no service."""

    host_id: str
    proto: int
    address: str
    port: int
    service_id: int | None
    cgroup: str


class KnownVulnerability(Struct, frozen=True):
    """A vulnerability of a package as a host has it, not fixed there."""

    host_id: str
    package: PackageRef
    vulnerability: OpenVulnerability


class Known(Struct, frozen=True):
    """What enrichment joins with, as one moment has it. No feed fills the last two yet."""

    hosts: tuple[KnownHost, ...]
    services: tuple[KnownService, ...]
    listeners: tuple[KnownListener, ...]
    inventories: tuple[PackageInventory, ...]
    vulnerabilities: tuple[KnownVulnerability, ...] = ()
    indicators: tuple[Indicator, ...] = ()
