"""What is told to anybody who watches `actions.seg.maps`."""

from typing import Final

import msgspec
from msgspec import Struct

from aegisflux.services.orchestrator.prepare import Prepared
from aegisflux.wire.canonical import unpacked

MAX_SNAPSHOT_BYTES: Final = 256 * 1024
MAX_HOSTS: Final = 100


class SnapshotAnnouncement(Struct, frozen=True, omit_defaults=True):
    """An accepted snapshot. The snapshot itself up to 256 kB, else `snapshot_bytes`; the first 100 target
    hosts.
    """

    service_id: int
    version: int
    digest: str
    timestamp: int
    action: str
    target_hosts: tuple[str, ...]
    target_count: int
    snapshot_bytes: int
    snapshot: msgspec.Raw = msgspec.Raw(b"null")


def announcement(prepared: Prepared, action: str, hosts: tuple[str, ...], now: int) -> tuple[str, bytes]:
    """The deterministic message id and the JSON of an announcement."""
    body = unpacked(prepared.snapshot)
    said = SnapshotAnnouncement(
        service_id=prepared.service_id,
        version=prepared.version,
        digest=prepared.digest,
        timestamp=now,
        action=action,
        target_hosts=hosts[:MAX_HOSTS],
        target_count=len(hosts),
        snapshot_bytes=len(body),
        snapshot=msgspec.Raw(body if len(body) <= MAX_SNAPSHOT_BYTES else b"null"),
    )
    return f"maps:{prepared.service_id}:{prepared.version}", msgspec.json.encode(said)
