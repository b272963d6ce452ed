"""What an agent believes. It does no I/O, knows no cryptography and reads no clock.

Rules, in this order; the first that fails is the Nack, and nothing changes. What fails one of the first three
is `NotOurs`, and nobody is answered:
  1. size        a message within its bound
  2. signature   of the root over the key set, of a key of that set (valid now) over the rest
  3. audience    made for this host
  4. schema      well-formed
  5. serial      above the highest accepted; equal only with the same bytes (converge again)
  6. expiry      not_after lies in the future
  7. limits      services, lease, entries, table bytes
What is wrong with one service of a manifest is a Nack of that service: it stays as it was, and the others are
believed.
A key set of a lower version is stale; the same version with other keys, or a known (service, version)
with another digest, is equivocation. Time is the largest of the wall clock and every time accepted.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from aegisflux.domain.bounds import Epoch, Serial, ServiceId
from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import BROKEN, Refused
from aegisflux.domain.manifest import (
    MAX_CONTENT_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_SERVICES,
    ActiveRef,
    CandidateRef,
    Confirm,
    Content,
    HostContent,
    HostId,
    HostManifest,
    KeySet,
    NackReason,
    PublicKey,
    ServiceState,
)
from aegisflux.domain.snapshot import MAX_ENTRIES, TTL_MAX
from aegisflux.domain.tables import MAX_BYTES, TABLES_FORMAT

C = TypeVar("C", bound=HostContent)
MAX_FUTURE_ISSUE: Final = 30 * 86_400
ROOT_KEY_ID: Final = "root"

Verify = Callable[[bytes, bytes, bytes], bool]
"""(public key, message, signature) -> whether it holds."""


class Nacked(Refused):
    """A message that is not believed or cannot be applied, by its named reason."""

    def __init__(self, reason: NackReason, detail: str, serial: int = 0) -> None:
        self.reason: NackReason = reason
        self.detail = detail
        self.serial = serial
        super().__init__(f"{reason}: {detail}")


class NotOurs(Nacked):
    """A message of which nothing proves that this fleet's control plane made it for this host. It is counted
    and dropped: who could make a host answer could make it sign. `detail` holds no text that came with it.
    """


class RefusedService(NamedTuple):
    """One service of a manifest that is not believed, and why; `service_id` None where it cannot be read."""

    service_id: int | None
    reason: NackReason
    detail: str


class Signed(Struct, frozen=True):
    """A payload with the exact bytes that were signed (DSSE pre-authentication encoding)."""

    payload: bytes
    signed_bytes: bytes
    signatures: tuple[tuple[str, bytes], ...]


class Trusted(Struct, frozen=True):
    """What the agent must not forget: durable before a manifest is applied.

    `digests` maps "service/version" to the digest seen first.
    """

    host_id: str
    root: bytes
    keys: KeySet
    serial: Serial = 0
    manifest_sha256: str = ""
    clock_floor: Epoch = 0
    digests: dict[str, str] = {}


def versions_seen(trusted: Trusted) -> frozenset[int]:
    """Return the services of which this host was ever given a version."""
    return frozenset(int(key.partition("/")[0]) for key in trusted.digests)


def now_of(trusted: Trusted, wall: float) -> int:
    """The time by which leases and expiries are judged: it never runs backwards."""
    return max(int(wall), trusted.clock_floor)


def with_clock_reset(trusted: Trusted, wall: float) -> Trusted:
    """Believe the wall clock again, by hand: the floor comes down to it, and nothing else changes.

    Serials, digests and the version of the key set still refuse all that is older. What the floor refused
    besides (a lease, a key or a manifest that ended between this time and that) is no longer refused.
    """
    return msgspec.structs.replace(trusted, clock_floor=min(trusted.clock_floor, int(wall)))


def accept_keys(trusted: Trusted, message: Signed, verify: Verify) -> Trusted:
    """Take a newer key set; raises Nacked."""
    _check_size(message, MAX_MANIFEST_BYTES)
    if not any(verify(trusted.root, message.signed_bytes, sig) for _, sig in message.signatures):
        raise NotOurs("bad_signature", "the key set is not signed by this fleet's root key")
    keys = _decoded(message.payload, KeySet)
    if keys.version < trusted.keys.version:
        raise Nacked("stale_serial", f"key set version {keys.version} after {trusted.keys.version}")
    if keys.version == trusted.keys.version and keys != trusted.keys:
        raise Nacked("equivocation", f"two key sets of version {keys.version}")
    return msgspec.structs.replace(trusted, keys=keys)


def accept_manifest(
    trusted: Trusted,
    message: Signed,
    sha256: str,
    wall: float,
    verify: Verify,
    before: HostManifest | None = None,
    refuse: Callable[[RefusedService], None] | None = None,
) -> tuple[Trusted, HostManifest]:
    """The manifest and what to remember of it; raises Nacked. `sha256` is that of the payload.

    `refuse` is called with each service that is not believed; the manifest then has of it what the manifest
    `before` had. Without `refuse`, or where no service is believed, the whole manifest is refused.
    """
    _check_size(message, MAX_MANIFEST_BYTES)
    now = now_of(trusted, wall)
    check_signature(trusted, message, now, verify)
    _check_audience(trusted, message.payload)
    manifest, bad = _manifest(message.payload)
    _check_serial(trusted, manifest, sha256)
    if manifest.not_after <= now:
        raise Nacked("expired", f"not_after {manifest.not_after} is not after now {now}", manifest.serial)
    _check_limits(manifest, now, len(manifest.services) + len(bad))
    manifest, bad = _sifted(trusted, manifest, now, bad)
    if bad and (refuse is None or not manifest.services):
        raise Nacked(bad[0].reason, bad[0].detail, manifest.serial)
    digests = trusted.digests | _digests(manifest.services)
    for one in bad:
        assert refuse is not None
        refuse(one)
    manifest = _as_before(manifest, bad, before)
    floor = max(trusted.clock_floor, manifest.issued_at)
    known = msgspec.structs.replace(
        trusted, serial=manifest.serial, manifest_sha256=sha256, clock_floor=floor, digests=digests
    )
    return known, manifest


def accept_content(
    trusted: Trusted,
    message: Signed,
    body: bytes,
    wanted: ActiveRef | CandidateRef,
    wall: float,
    verify: Verify,
) -> Content:
    """The content of a digest that the manifest names; raises Nacked.

    `body` is the decompressed payload, produced by the caller after `check_content_signature`.
    """
    check_signature(trusted, message, now_of(trusted, wall), verify)
    return accept_body(body, wanted, Content)


def accept_body(body: bytes, wanted: ActiveRef | CandidateRef, kind: type[C]) -> C:
    """A content, or what a host reads of it, from bytes whose signature was checked; raises Nacked."""
    content = _decoded(body, kind)
    if (content.digest, content.version) != (wanted.digest, wanted.version):
        raise Nacked(
            "bad_schema",
            f"asked for version {wanted.version} {wanted.digest}, got {content.version} {content.digest}",
        )
    if content.tables_format != TABLES_FORMAT:
        raise Nacked(
            "unsupported_format", f"tables format {content.tables_format}, this agent reads {TABLES_FORMAT}"
        )
    if content.entries > MAX_ENTRIES or content.tables.size() > MAX_BYTES or len(body) > MAX_CONTENT_BYTES:
        raise Nacked("over_limit", f"{content.entries} entries, {content.tables.size()} bytes of tables")
    if content.tables.digest() != content.tables_digest:
        raise Nacked("bad_schema", "the tables do not have the digest that the content states")
    return content


def accept_confirm(trusted: Trusted, message: Signed, wall: float, verify: Verify) -> Confirm:
    """A confirmation for this host; raises Nacked."""
    _check_size(message, MAX_MANIFEST_BYTES)
    check_signature(trusted, message, now_of(trusted, wall), verify)
    _check_audience(trusted, message.payload)
    return _decoded(message.payload, Confirm)


def check_signature(trusted: Trusted, message: Signed, now: int, verify: Verify) -> PublicKey:
    """The key of the key set that signed; raises Nacked unknown_key, expired or bad_signature."""
    by_id = {key.id: key for key in trusted.keys.keys}
    known = [(by_id[keyid], sig) for keyid, sig in message.signatures if keyid in by_id]
    if not known:
        raise NotOurs("unknown_key", f"signed by no key of key set version {trusted.keys.version}")
    valid = [(key, sig) for key, sig in known if key.not_before <= now < key.not_after]
    if not valid:
        raise NotOurs("unknown_key", f"key {known[0][0].id} is not valid at {now}")
    for key, sig in valid:
        if verify(key.public, message.signed_bytes, sig):
            return key
    raise NotOurs("bad_signature", f"the signature of key {valid[0][0].id} does not fit the bytes")


class _Audience(Struct):
    host_id: str


T = TypeVar("T")


def _decoded(payload: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except BROKEN as err:
        raise Nacked("bad_schema", f"{kind.__name__}: {in_words(err, kind)}") from None


def _check_size(message: Signed, limit: int) -> None:
    if len(message.payload) > limit:
        raise NotOurs("over_limit", f"{len(message.payload)} bytes, at most {limit}")


def _check_audience(trusted: Trusted, payload: bytes) -> None:
    host_id = _decoded(payload, _Audience).host_id
    if host_id != trusted.host_id:
        raise NotOurs("wrong_audience", f"made for another host than {trusted.host_id}")


def _check_serial(trusted: Trusted, manifest: HostManifest, sha256: str) -> None:
    if manifest.serial < trusted.serial:
        raise Nacked("stale_serial", f"serial {manifest.serial} after {trusted.serial}", manifest.serial)
    if manifest.serial == trusted.serial and sha256 != trusted.manifest_sha256:
        raise Nacked("equivocation", f"two manifests of serial {manifest.serial}", manifest.serial)


def _check_limits(manifest: HostManifest, now: int, services: int) -> None:
    if services > MAX_SERVICES:
        raise Nacked("over_limit", f"services: at most {MAX_SERVICES}, got {services}", manifest.serial)
    if manifest.issued_at > now + MAX_FUTURE_ISSUE:
        raise Nacked("over_limit", f"issued_at {manifest.issued_at} lies over 30 days ahead", manifest.serial)


class _Loose(Struct, frozen=True):
    """A manifest whose services are not read yet."""

    host_id: HostId
    serial: Serial
    issued_at: Epoch
    not_after: Epoch
    services: tuple[msgspec.Raw, ...]


class _Named(Struct):
    service_id: ServiceId


def _manifest(payload: bytes) -> tuple[HostManifest, list[RefusedService]]:
    """The manifest with the services that follow the schema, and the others; raises Nacked."""
    try:
        return _decoded(payload, HostManifest), []
    except Nacked:
        loose = _decoded(payload, _Loose)
    good: list[ServiceState] = []
    bad: list[RefusedService] = []
    for number, raw in enumerate(loose.services, 1):
        try:
            good.append(_decoded(bytes(raw), ServiceState))
        except Nacked as error:
            bad.append(RefusedService(_id_of(bytes(raw)), error.reason, f"service {number}: {error.detail}"))
    named = (loose.host_id, loose.serial, loose.issued_at, loose.not_after)
    return HostManifest(*named, tuple(good)), bad


def _id_of(raw: bytes) -> int | None:
    try:
        return _decoded(raw, _Named).service_id
    except Nacked:
        return None


def _sifted(
    trusted: Trusted, manifest: HostManifest, now: int, bad: list[RefusedService]
) -> tuple[HostManifest, list[RefusedService]]:
    """The manifest without the services that break a limit or were another under the same version."""
    named = Counter(service.service_id for service in manifest.services)
    named.update(one.service_id for one in bad if one.service_id is not None)
    found = list(bad)
    good = []
    for service in manifest.services:
        wrong = _wrong(trusted, service, max(now, manifest.issued_at), named[service.service_id])
        if wrong is None:
            good.append(service)
        else:
            found.append(RefusedService(service.service_id, *wrong))
    return msgspec.structs.replace(manifest, services=tuple(good)), found


def _wrong(trusted: Trusted, service: ServiceState, now: int, times: int) -> tuple[NackReason, str] | None:
    number = service.service_id
    if times > 1:
        return "bad_schema", f"service {number} is named twice"
    if service.active and service.active.lease_until > now + TTL_MAX:
        return "over_limit", f"service {number}: a lease of over 30 days"
    named = dict[str, str]()
    for ref in (service.active, service.candidate):
        if ref is None:
            continue
        version = f"{number}/{ref.version}"
        known = trusted.digests.get(version, named.setdefault(version, ref.digest))
        if known != ref.digest:
            return "equivocation", f"service {number} version {ref.version}: {ref.digest} after {known}"
    return None


def _digests(services: Iterable[ServiceState]) -> dict[str, str]:
    return {
        f"{service.service_id}/{ref.version}": ref.digest
        for service in services
        for ref in (service.active, service.candidate)
        if ref is not None
    }


def _as_before(
    manifest: HostManifest, bad: list[RefusedService], before: HostManifest | None
) -> HostManifest:
    """With what was wanted of the services that are refused. Where one cannot even be named, no service that
    was wanted ends: it may be that one."""
    refused = {one.service_id for one in bad}
    named = {service.service_id for service in manifest.services}
    kept = [
        service
        for service in (before.services if before else ())
        if service.service_id not in named and (service.service_id in refused or None in refused)
    ]
    return msgspec.structs.replace(manifest, services=(*manifest.services, *kept)) if kept else manifest
