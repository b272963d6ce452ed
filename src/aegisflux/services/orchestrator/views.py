"""The read side of /seg/maps: lists, the state of each host, and why a flow is allowed or not."""

from typing import Any

import msgspec
from msgspec import Struct

from aegisflux.domain.digits import whole
from aegisflux.domain.errors import Invalid, NotFound
from aegisflux.domain.flow import Direction, Flow
from aegisflux.domain.net import PROTOCOLS, parse_address
from aegisflux.domain.rollout import Rollout
from aegisflux.ports.store import Row
from aegisflux.services.orchestrator import state
from aegisflux.services.orchestrator.answers import heartbeat_of
from aegisflux.services.orchestrator.core import Core
from aegisflux.services.orchestrator.hosts import is_silent
from aegisflux.wire.canonical import unpacked


class ContentView(Struct, frozen=True):
    """A stored version of a snapshot, without its entries."""

    version: int
    digest: str
    rules_digest: str
    entries: int
    ttl_seconds: int
    mode: str
    on_expiry: str
    established: str
    created_at: int
    created_by: str
    copy_of: int | None
    hosts: tuple[str, ...]


class ServiceMaps(Struct, frozen=True):
    """What a service has: `stable` is the promoted version, `candidate` a newer one on canary hosts."""

    service_id: int
    name: str
    latest: int
    next_version: int
    stable: ContentView | None
    candidate: ContentView | None
    snapshot: Any = None


class Named(Struct, frozen=True):
    """A version and its digest."""

    version: int | None
    digest: str | None


class LastNack(Struct, frozen=True):
    """The last refusal of a host."""

    reason: str
    detail: str
    version: int | None
    at: float


class HostStatus(Struct, frozen=True):
    """Desired and observed state of a service on a host.

    since: when the observed state began; beside: the version that is judged beside it and blocks nothing;
    troubles: what stands in the way of the host's agent
    """

    host_id: str
    state: str
    desired: Named | None
    observed: Named
    since: float | None
    lease_until: int | None
    renewed: bool
    deadline: int | None
    cgroups: tuple[str, ...]
    conflicts: tuple[str, ...]
    drift: bool
    confirmed: bool | None
    last_nack: LastNack | None
    acked_at: float | None
    beside: int | None = None
    troubles: tuple[str, ...] = ()


class ServiceStatus(Struct, frozen=True):
    """The state of each host for a service, and how many are in which state."""

    service_id: int
    stable: int | None
    states: dict[str, int]
    hosts: tuple[HostStatus, ...]


class Reason(Struct, frozen=True):
    """The verdict of a flow by one snapshot; `word` is allowed, blocked, would block or unknown."""

    version: int | None
    digest: str | None
    word: str
    action: str
    reason: str
    rule: str | None
    mode: str
    hosts: tuple[str, ...]


class Why(Struct, frozen=True):
    """The verdict for the desired and for each observed snapshot; `differs` says that they do not agree."""

    service_id: int
    flow: dict[str, Any]
    desired: tuple[Reason, ...]
    observed: tuple[Reason, ...]
    differs: bool


class Views:
    """Reads only."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def all(self) -> tuple[ServiceMaps, ...]:
        """Every service that has a snapshot."""
        rows = await self._core.store.rows("services")
        return tuple([await self.one(row["id"]) for row in rows if row["latest"]])

    async def one(self, service_id: int, version: int | None = None) -> ServiceMaps:
        """A service's versions; with `version` also that snapshot. Raises NotFound."""
        store = self._core.store
        service, rollout = await state.load(store, service_id)
        candidate = rollout.latest if rollout.latest and rollout.latest != rollout.stable else None
        body = None
        if version is not None:
            row = await store.row("snapshot", service_id, version)
            if row is None:
                raise NotFound(f"service {service_id}: version {version} was never posted")
            body = msgspec.Raw(unpacked(row["snapshot"]))
        return ServiceMaps(
            service.id,
            service.name,
            rollout.latest,
            rollout.latest + 1,
            await self._content(rollout, rollout.stable),
            await self._content(rollout, candidate),
            body,
        )

    async def status(self, service_id: int) -> ServiceStatus:
        """Each host's desired and observed state; raises NotFound."""
        store = self._core.store
        _, rollout = await state.load(store, service_id)
        versions = {given.version for given in rollout.hosts.values()}
        digests = {v: r["digest"] for v in versions if (r := await store.row("content", service_id, v))}
        reports = {row["host_id"]: row for row in await store.rows("reports", service_id)}
        hosts = {row["host_id"]: row for row in await store.rows("hosts")}
        beside = {row["host_id"]: row["version"] for row in await store.rows("candidates", service_id)}
        names = {*rollout.hosts, *beside, *(host for host, row in reports.items() if row["digest"])}
        found = tuple(
            self._host(hosts[name], rollout, digests, reports.get(name), beside.get(name))
            for name in sorted(names & set(hosts))
        )
        states: dict[str, int] = {}
        for host in found:
            states[host.state] = states.get(host.state, 0) + 1
        return ServiceStatus(service_id, rollout.stable, states, found)

    async def why(self, service_id: int, host: str | None, asked: "Asked") -> Why:
        """The verdict of a flow for what is desired and what is observed, on one host or on all."""
        flow = asked.flow()
        status = await self.status(service_id)
        hosts = [h for h in status.hosts if host in (None, h.host_id)]
        if host is not None and not hosts:
            raise NotFound(f"service {service_id} has no snapshot on host {host}")
        desired = await self._reasons(flow, [(h.desired, h.host_id) for h in hosts])
        if not hosts:
            desired = await self._open(service_id, flow)
        observed = await self._reasons(
            flow, [(h.observed, h.host_id) for h in hosts], {h.host_id: h.state for h in hosts}
        )
        differs = {_essence(r) for r in desired} != {_essence(r) for r in observed}
        return Why(service_id, msgspec.to_builtins(asked), desired, observed, differs)

    async def _open(self, service_id: int, flow: Flow) -> tuple[Reason, ...]:
        _, rollout = await state.load(self._core.store, service_id)
        version = rollout.stable or rollout.open_version or rollout.latest
        row = await self._core.store.row("content", service_id, version)
        named = Named(version, row["digest"]) if row else None
        return await self._reasons(flow, [(named, "")])

    async def _reasons(
        self,
        flow: Flow,
        given: list[tuple[Named | None, str]],
        states: dict[str, str] | None = None,
    ) -> tuple[Reason, ...]:
        groups: dict[tuple[int | None, str | None, bool], list[str]] = {}
        for named, host in given:
            expired = (states or {}).get(host) == "expired"
            key = (named.version, named.digest, expired) if named else (None, None, False)
            groups.setdefault(key, []).append(host)
        return tuple([await self._reason(flow, *key, hosts) for key, hosts in groups.items()])

    async def _reason(
        self,
        flow: Flow,
        version: int | None,
        digest: str | None,
        expired: bool,
        hosts: list[str],
    ) -> Reason:
        names = tuple(sorted(host for host in hosts if host))
        if digest is None:
            return Reason(None, None, "allowed", "allow", "unmanaged", None, "observe", names)
        row = await self._core.store.row("snapshot_by_digest", digest)
        if row is None:
            return Reason(version, digest, "unknown", "unknown", "unknown", None, "unknown", names)
        found = await self._core.workshop.judge(row["snapshot"], flow, expired, digest)
        return Reason(version, digest, found.word, found.action, found.reason, found.rule, found.mode, names)

    async def _content(self, rollout: Rollout, version: int | None) -> ContentView | None:
        row = await self._core.store.row("content", rollout.service_id, version) if version else None
        if row is None or version is None:
            return None
        fields = {name: row[name] for name in ContentView.__struct_fields__ if name != "hosts"}
        return ContentView(hosts=rollout.on(version), **fields)

    def _host(
        self, host: Row, rollout: Rollout, digests: dict[int, str], report: Row | None, beside: int | None
    ) -> HostStatus:
        given = rollout.hosts.get(host["host_id"])
        desired = Named(given.version, digests.get(given.version)) if given else None
        observed = Named(report["version"], report["digest"]) if report else Named(None, None)
        nack = None
        if report and report["nack_reason"]:
            nack = LastNack(
                report["nack_reason"], report["nack_detail"], report["nack_version"], report["nack_at"]
            )
        awaits = bool(report and report["awaits"])
        return HostStatus(
            host_id=host["host_id"],
            state=_state_word(is_silent(self._core, host), desired, report),
            desired=desired,
            observed=observed,
            since=report["since"] or None if report else None,
            lease_until=given.lease_until if given else None,
            renewed=bool(given and given.renewed),
            deadline=report["deadline"] if report else None,
            cgroups=tuple(report["cgroups"]) if report else (),
            conflicts=tuple(report["conflicts"]) if report else (),
            drift=bool(report and report["drift"]),
            confirmed=report["confirmed_at"] is not None if report and awaits else None,
            last_nack=nack,
            acked_at=report["ack_stored_at"] if report else None,
            beside=beside,
            troubles=self._core.troubles(
                host["host_id"], heartbeat_of(host), host["left_out"], host["serial"], host["seen_at"]
            ),
        )


class Asked(Struct, frozen=True, omit_defaults=True):
    """A flow as people name it."""

    peer: str
    proto: str = "tcp"
    port: int | None = None
    direction: Direction = "egress"
    source_port: int | None = None

    def flow(self) -> Flow:
        """The flow; raises Invalid by field."""
        number = PROTOCOLS.get(self.proto)
        if number is None:
            number = whole(self.proto, 255)
        if number is None:
            raise Invalid("proto", ", ".join(PROTOCOLS) + " or a number up to 255", self.proto)
        for name in ("port", "source_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 65_535:
                raise Invalid(name, "0 to 65535", value)
        if number in (6, 17) and self.port is None:
            raise Invalid("port", "a port for tcp and udp", None)
        peer = parse_address(self.peer, "peer")
        return Flow(self.direction, number, peer, self.port, self.source_port)


def _essence(reason: Reason) -> tuple[str, str, str | None]:
    return reason.word, reason.reason, reason.rule


def _state_word(silent: bool, desired: Named | None, report: Row | None) -> str:
    """One of the words of contracts §1; a nack counts while it speaks of what is desired."""
    if silent:
        return "silent"
    if report is None:
        return "pending"
    if report["state"] in ("panicked", "expired", "reverted"):
        return str(report["state"])
    if desired is None:
        return "pending" if report["digest"] else str(report["state"])
    nacked = (
        report["nack_version"] in (None, desired.version) and report["nack_serial"] >= report["ack_serial"]
    )
    if report["nack_reason"] and nacked and report["digest"] != desired.digest:
        return "nacked"
    if report["digest"] != desired.digest:
        return "pending"
    return str(report["state"])
