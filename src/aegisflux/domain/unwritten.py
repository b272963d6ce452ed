"""What of a manifest is applied although it cannot be written down: the leases of what is in force, no more.

Such a manifest is lost with the process, and an earlier one may be replayed then. So nothing may be applied
from memory that a replay would undo: each service stays as it is durable, and only its lease may end later.
"""

from collections.abc import Mapping

from msgspec.structs import replace

from aegisflux.domain.converge import InForce
from aegisflux.domain.manifest import ActiveRef, HostManifest, NackReason, ServiceState
from aegisflux.domain.trust import RefusedService


def renewed(
    before: HostManifest | None,
    after: HostManifest,
    in_force: Mapping[int, InForce],
    reason: NackReason,
    detail: str,
) -> tuple[HostManifest | None, list[RefusedService]]:
    """Return what is applied of the manifest `after`, and the services of which more waits, for this reason.

    That is the manifest `before` under the serial of `after`, with the leases that `after` prolongs; None
    where nothing was durable before. A lease is prolonged where `after` names the content that `before` has,
    or the one that is in force (a trial failed, say). Services that come, go or change otherwise are as they
    were, each by itself.
    """
    if before is None:
        return None, [RefusedService(None, reason, detail)]
    wanted = {service.service_id: service for service in after.services}
    applied = {
        service.service_id: _prolonged(
            service, wanted.get(service.service_id), in_force.get(service.service_id)
        )
        for service in before.services
    }
    waits = [
        RefusedService(number, reason, detail)
        for number in sorted(applied.keys() | wanted.keys())
        if applied.get(number) != wanted.get(number)
    ]
    return replace(after, services=tuple(applied.values())), waits


def _prolonged(old: ServiceState, new: ServiceState | None, held: InForce | None) -> ServiceState:
    if old.active is None or new is None or new.active is None:
        return old
    ref, lease = old.active, new.active.lease_until
    if _names(new.active, ref):
        return replace(old, active=replace(ref, lease_until=max(lease, ref.lease_until)))
    if held is not None and _names(new.active, held):
        return replace(old, active=replace(new.active, lease_until=max(lease, held.lease_until)))
    return old


def _names(one: ActiveRef, other: ActiveRef | InForce) -> bool:
    return (one.version, one.digest) == (other.version, other.digest)


def taken_up(manifest: HostManifest, in_force: Mapping[int, InForce]) -> HostManifest:
    """Return the durable manifest as a restarted agent goes on with it: no lease of what is in force ends
    earlier than it was prolonged to by a manifest that could not be written."""
    services = tuple(
        replace(service, active=replace(ref, lease_until=max(ref.lease_until, held.lease_until)))
        if (ref := service.active) is not None
        and (held := in_force.get(service.service_id)) is not None
        and _names(ref, held)
        else service
        for service in manifest.services
    )
    return replace(manifest, services=services)
