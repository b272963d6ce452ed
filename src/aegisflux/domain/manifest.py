"""What travels between the control plane and a host (contracts §2), as values.

Times are seconds since the epoch, UTC. None of these types says who signed it: that is
`wire.envelope`, and whether to believe it is `domain.trust`.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from aegisflux.domain.bounds import (
    BootId,
    Count,
    Epoch,
    EpochTime,
    Interval,
    Name,
    Nanoseconds,
    Serial,
    ServiceId,
    Small,
    Text,
    Version,
)
from aegisflux.domain.snapshot import Established, Expiry, Mode
from aegisflux.domain.tables import Tables

MAX_SERVICES: Final = 256
MAX_MANIFEST_BYTES: Final = 1024 * 1024
MAX_CONTENT_BYTES: Final = 64 * 1024 * 1024
CHUNK_BYTES: Final = 512 * 1024

HostId = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$(?!\n)")]
Counts = Annotated[dict[Name, Count], Meta(max_length=256)]
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$(?!\n)")]

NackReason = Literal[
    "bad_signature",
    "unknown_key",
    "wrong_audience",
    "bad_schema",
    "stale_serial",
    "equivocation",
    "expired",
    "over_limit",
    "unsupported_format",
    "map_full",
    "load_failed",
    "readback_mismatch",
    "preflight",
    "guardrail",
    "not_confirmed",
    "panicked",
    "disk_full",
    "not_durable",
]
HostState = Literal[
    "pending",
    "in_force",
    "observing",
    "matches nothing",
    "nacked",
    "reverted",
    "expired",
    "panicked",
    "silent",
]
KeyPurpose = Literal["snapshot"]


class PublicKey(Struct, frozen=True):
    """An Ed25519 key (32 raw bytes) that signs manifests, contents and confirmations while it is valid."""

    id: Name
    public: bytes
    not_before: Epoch
    not_after: Epoch
    purpose: KeyPurpose = "snapshot"


class KeySet(Struct, frozen=True):
    """Signed by the root key; `version` only rises."""

    version: Version
    keys: tuple[PublicKey, ...]


class ActiveRef(Struct, frozen=True):
    """The content that is to be in force; `confirm_seconds` 0 asks for no commit-confirm. `preflight`: refuse
    it where it would cut what is alive."""

    version: Version
    digest: Digest
    lease_until: Epoch
    confirm_seconds: Small = 0
    preflight: bool = False


class CandidateRef(Struct, frozen=True):
    """The content that is judged beside the active one and blocks nothing."""

    version: Version
    digest: Digest


class ServiceState(Struct, frozen=True):
    """Desired state of one service on one host."""

    service_id: ServiceId
    name: str
    selectors: tuple[str, ...]
    active: ActiveRef | None = None
    candidate: CandidateRef | None = None
    probes: tuple[str, ...] = ()


class HostManifest(Struct, frozen=True):
    """The whole desired state of one host. A service that is not in it is no longer governed."""

    host_id: HostId
    serial: Serial
    issued_at: Epoch
    not_after: Epoch
    services: tuple[ServiceState, ...]


class HostContent(Struct, frozen=True):
    """What a host reads of a `Content`: all but the text of the snapshot, which is three times the tables."""

    service_id: ServiceId
    version: Version
    digest: Digest
    rules_digest: Digest
    tables_format: Small
    tables_digest: Digest
    entries: Small
    ttl_seconds: Small
    mode: Mode
    on_expiry: Expiry
    established: Established
    tables: Tables


class Content(HostContent, frozen=True):
    """One (service, version): the canonical snapshot and its compiled tables. Names no host and no time.

    `snapshot` is canonical JSON and `digest` its SHA-256; the agent reads the fields beside it.
    """

    snapshot: bytes


class ContentRequest(Struct, frozen=True):
    """One chunk, from `offset`, of the signed content of a digest of the host's own manifest."""

    digest: Digest
    tables_format: Small
    offset: Annotated[int, Meta(ge=0, le=MAX_CONTENT_BYTES)]


class ContentChunk(Struct, frozen=True):
    """`total` bytes in all; `error` says why there is nothing."""

    total: Small
    data: bytes
    error: str = ""


class Confirm(Struct, frozen=True):
    """What a host reported in force may stay."""

    host_id: HostId
    serial: Serial
    service_id: ServiceId
    version: Version
    digest: Digest


class Ack(Struct, frozen=True, tag="ack"):
    """What the kernel holds, read back after the flip. `deadline` is wall time, seconds; `matches`: whether a
    cgroup of this host is selected, so that something is judged by it."""

    host_id: HostId
    serial: Serial
    service_id: ServiceId
    version: Version
    digest: Digest
    tables_digest: Name
    deadline: Epoch
    applied_at: EpochTime
    awaits_confirm: bool = False
    matches: bool = True


class Nack(Struct, frozen=True, tag="nack"):
    """Why a manifest, or one service of it, was not applied. The last good state stays in force.

    `serial` 0 and `service_id` None: the manifest itself could not be believed.
    """

    host_id: HostId
    reason: NackReason
    detail: Text
    serial: Serial = 0
    service_id: ServiceId | None = None
    version: Version | None = None
    digest: Name | None = None
    at: EpochTime = 0.0


Answer = Ack | Nack


class ServiceReport(Struct, frozen=True):
    """Observed state of one service on one host; `candidate` is the digest of what is judged beside it."""

    service_id: ServiceId
    state: HostState
    version: Version | None = None
    digest: Name | None = None
    tables_digest: Name | None = None
    deadline: Epoch | None = None
    cgroups: tuple[str, ...] = ()
    drift: bool = False
    verdicts: Counts = {}
    conflicts: tuple[str, ...] = ()
    candidate: Name | None = None


class Heartbeat(Struct, frozen=True):
    """What a host says of itself every few seconds. `addresses` are its own, of all its network namespaces,
    without loopback and link-local ones. `skipped_cgroups` are some of those whose names are no text, with
    these escaped; `loss` counts them.

    troubles: what stands in the agent's way, in words; `disk full: ...` is one
    started:  when the agent's process began, nanoseconds of the boot clock; 0 from an older agent
    """

    host_id: HostId
    boot_id: BootId
    agent_version: Annotated[str, Meta(max_length=128)]
    tables_formats: Annotated[tuple[Small, ...], Meta(max_length=16)]
    features: Annotated[tuple[Name, ...], Meta(max_length=64)]
    serial: Serial
    services: tuple[ServiceReport, ...]
    clock: EpochTime
    panicked: bool
    datapath: Name
    loss: Counts = {}
    interval: Interval = 5.0
    addresses: tuple[str, ...] = ()
    skipped_cgroups: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    troubles: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    started: Nanoseconds = 0
