"""Handlers that need a token: thin, each a call of one part of the orchestrator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post, put
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.params import Parameter
from msgspec import Meta, Struct

from aegisflux.domain.errors import Invalid
from aegisflux.domain.flow import Direction
from aegisflux.domain.manifest import HostId
from aegisflux.domain.policy import Name
from aegisflux.domain.roles import Role
from aegisflux.domain.snapshot import MapSnapshot
from aegisflux.runtime.access import needs, who
from aegisflux.runtime.http import MAX_BODY
from aegisflux.services.orchestrator.access import NewToken, TokenView
from aegisflux.services.orchestrator.api import orchestrator_of
from aegisflux.services.orchestrator.changes import Changed
from aegisflux.services.orchestrator.effects import Effect
from aegisflux.services.orchestrator.hosts import EnrollmentToken, HostView
from aegisflux.services.orchestrator.registry import Health
from aegisflux.services.orchestrator.rotation import KeyState, RotateRequest
from aegisflux.services.orchestrator.snapshots import Accepted
from aegisflux.services.orchestrator.state import Service, ServiceChange
from aegisflux.services.orchestrator.suspicions import Suspicion
from aegisflux.services.orchestrator.views import Asked, ServiceMaps, ServiceStatus, Why

Handler = Request[Any, Any, Any]
ServiceNumber = Annotated[int, Parameter(ge=0, le=2**32 - 1, description="the service's number")]
PRINTABLE = (
    r"^[^\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\u2800\u3164\ue000-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]+$(?!\\n)"
)
VersionNumber = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Targets = Annotated[
    list[str] | None,
    Parameter(
        query="target_host",
        description="hosts, comma-separated, repeated, or both; absent: all of the service",
    ),
]
DryRun = Annotated[bool, Parameter(description="say what would change, and change nothing")]
Beside = Annotated[
    bool,
    Parameter(description="judge it beside what is in force, and block nothing by it"),
]
Key = Annotated[
    str | None,
    Parameter(
        header="Idempotency-Key",
        max_length=128,
        pattern=r"^[ -~]*$(?!\n)",
        description="the same key and request: the same answer, once",
    ),
]


class PromoteRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Without `version`: the latest."""

    service_id: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    version: VersionNumber | None = None


class RollbackRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Without `to_version`: the stable one, or the one promoted before it."""

    service_id: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    to_version: VersionNumber | None = None


class ServiceRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A service; without `id` it gets the next free number."""

    name: Name
    id: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    selectors: Annotated[list[str], Meta(max_length=32)] = []
    host_labels: dict[str, str] = {}


class ChangeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The change that waits, by the number under which it was seen."""

    change: Annotated[int, Meta(ge=1, le=2**62)]


class HostTokenRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Labels that the host is to have; `host_id` binds the token to one name."""

    labels: dict[str, str] = {}
    host_id: HostId | None = None
    ttl_seconds: Annotated[int, Meta(ge=1, le=3600)] = 3600


class LabelsRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """All labels of a host."""

    labels: dict[str, str]


class TokenRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A new API token; `host_id` is whose events a token of the role source may post."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=PRINTABLE)]
    role: Role
    ttl_seconds: Annotated[int, Meta(ge=60, le=10 * 365 * 86_400)] | None = None
    host_id: HostId | None = None


class AuditLine(Struct, frozen=True):
    """A line of the audit log; `at` in milliseconds since the epoch, `hash` covers all lines before."""

    seq: int
    at: int
    actor: str
    source: str
    action: str
    object: str
    before: str
    after: str
    reason: str
    request_id: str
    hash: str


class AuditPage(Struct, frozen=True):
    """Newest lines first; `next_cursor` is the `before` of the next page."""

    items: tuple[AuditLine, ...]
    next_cursor: int | None


@dataclass
class _SnapshotSchema(Schema):
    """The schema of MapSnapshot as msgspec writes it, without references."""

    def to_schema(self) -> dict[str, Any]:
        """The schema as JSON."""
        schema = msgspec.json.schema(MapSnapshot)
        parts = schema.pop("$defs")
        found: dict[str, Any] = _inlined(parts["MapSnapshot"], parts)
        return found


def _inlined(value: Any, parts: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            return _inlined(parts[value["$ref"].rpartition("/")[2]], parts)
        return {key: _inlined(item, parts) for key, item in value.items()}
    return [_inlined(item, parts) for item in value] if isinstance(value, list) else value


@dataclass
class _PostOperation(Operation):
    """The body is read as bytes, so that no snapshot is parsed on the event loop."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            required=True, content={"application/json": OpenAPIMediaType(schema=_SnapshotSchema())}
        )


@post(
    "/seg/maps",
    status_code=200,
    guards=[needs("operator")],
    operation_class=_PostOperation,
    request_max_body_size=MAX_BODY,
)
async def post_maps(
    request: Handler, target_host: Targets = None, idempotency_key: Key = None, beside: Beside = False
) -> Accepted:
    """Post a snapshot to the target hosts, or to every enrolled host that runs the service. 409 names the
    next version.
    """
    body = await request.body()
    return await orchestrator_of(request).snapshots.post(
        body, _hosts(target_host), idempotency_key or "", who(request), beside
    )


@post("/seg/maps/promote", status_code=200, guards=[needs("approver")])
async def promote(data: PromoteRequest, request: Handler, dry_run: DryRun = False) -> Changed:
    """Give a posted version to every host of the service, and renew it from now on. Its author may not,
    below an admin.
    """
    changes = orchestrator_of(request).changes
    act = changes.try_promote if dry_run else changes.promote
    return await act(data.service_id, data.version, who(request))


@post("/seg/maps/rollback", status_code=200, guards=[needs("operator")])
async def rollback(data: RollbackRequest, request: Handler, dry_run: DryRun = False) -> Changed:
    """The content of an earlier version, under a new and higher version, to every host of the service."""
    changes = orchestrator_of(request).changes
    if dry_run:
        return await changes.try_rollback(data.service_id, data.to_version)
    return await changes.rollback(data.service_id, data.to_version, who(request))


@delete("/seg/maps/{service_id:int}", status_code=200, guards=[needs("operator")])
async def withdraw(
    service_id: ServiceNumber, request: Handler, target_host: Targets = None, dry_run: DryRun = False
) -> Changed:
    """Withdraw a service's snapshot from the target hosts, or from all: they no longer govern the service."""
    changes = orchestrator_of(request).changes
    if dry_run:
        return await changes.try_withdraw(service_id, _hosts(target_host))
    return await changes.withdraw(service_id, _hosts(target_host), who(request))


@get("/seg/maps", guards=[needs("viewer")])
async def list_maps(request: Handler) -> tuple[ServiceMaps, ...]:
    """Every service that has a snapshot: its stable and its candidate version, and the hosts of each."""
    return await orchestrator_of(request).views.all()


@get("/seg/maps/{service_id:int}", guards=[needs("viewer")])
async def get_maps(
    service_id: ServiceNumber,
    request: Handler,
    version: Annotated[
        int | None, Parameter(ge=1, le=2**53 - 1, description="also this version's snapshot")
    ] = None,
) -> ServiceMaps:
    """A service's stable and candidate version, and the hosts of each; `version` adds that snapshot."""
    return await orchestrator_of(request).views.one(service_id, version)


@get("/seg/maps/{service_id:int}/status", guards=[needs("viewer")])
async def status(service_id: ServiceNumber, request: Handler) -> ServiceStatus:
    """Each host: desired and observed version, since when, its state in a word, its last refusal."""
    return await orchestrator_of(request).views.status(service_id)


@get("/seg/maps/{service_id:int}/why", guards=[needs("viewer")])
async def why(
    service_id: ServiceNumber,
    request: Handler,
    peer: Annotated[str, Parameter(description="address of the other end", max_length=64)],
    proto: Annotated[str, Parameter(description="tcp, udp, icmp, ... or a number")] = "tcp",
    port: Annotated[
        int | None, Parameter(ge=0, le=65535, description="the port that the initiator addresses")
    ] = None,
    direction: Annotated[Direction, Parameter(description="egress: the service initiates")] = "egress",
    source_port: Annotated[
        int | None, Parameter(ge=0, le=65535, description="the initiator's own port")
    ] = None,
    host: Annotated[str | None, Parameter(description="only this host", max_length=63)] = None,
) -> Why:
    """What happens to a flow and why, by the desired and by each observed snapshot; says when they differ."""
    asked = Asked(peer, proto, port, direction, source_port)
    return await orchestrator_of(request).views.why(service_id, host, asked)


@get("/api/v1/services", guards=[needs("viewer")])
async def list_services(request: Handler) -> tuple[Service, ...]:
    """All registered services."""
    return await orchestrator_of(request).registry.all()


@post("/api/v1/services", status_code=200, guards=[needs("operator")])
async def put_service(data: ServiceRequest, request: Handler, dry_run: DryRun = False) -> Service:
    """Register a service, or change the one of this id. A change of a service that has snapshots, or that a
    policy in force names, waits for an approver (`waits`), unless an admin makes it.
    """
    return await orchestrator_of(request).registry.put(
        data.id, data.name, data.selectors, data.host_labels, who(request), dry_run
    )


@get("/api/v1/services/{service_id:int}", guards=[needs("viewer")])
async def get_service(service_id: ServiceNumber, request: Handler) -> Service:
    """One service."""
    return await orchestrator_of(request).registry.one(service_id)


@get("/api/v1/services/changes", guards=[needs("viewer")])
async def list_service_changes(
    request: Handler, limit: Annotated[int, Parameter(ge=1, le=100)] = 100
) -> tuple[ServiceChange, ...]:
    """Changes of services that wait for an approver, oldest first; of each service at most one. Each says
    what it changes, why it waits, and which hosts begin and cease to run the service by it.
    """
    return await orchestrator_of(request).registry.changes(limit)


@post("/api/v1/services/{service_id:int}/approve", status_code=200, guards=[needs("approver")])
async def approve_service_change(
    service_id: ServiceNumber, data: ChangeRequest, request: Handler, dry_run: DryRun = False
) -> Service:
    """Make the change of a service that waits. Who asked for it may not, below an admin. 409: the service is
    not what it was when the change was asked for, and what differs.
    """
    registry = orchestrator_of(request).registry
    return await registry.approve(service_id, data.change, who(request), dry_run)


@post("/api/v1/services/{service_id:int}/discard", status_code=200, guards=[needs("operator")])
async def discard_service_change(
    service_id: ServiceNumber, data: ChangeRequest, request: Handler, dry_run: DryRun = False
) -> Effect:
    """Drop the change of a service that waits."""
    registry = orchestrator_of(request).registry
    return await registry.discard(service_id, data.change, who(request), dry_run)


@post("/api/v1/services/{service_id:int}/health", status_code=200, guards=[needs("operator")])
async def service_health(service_id: ServiceNumber, data: Health, request: Handler) -> Effect:
    """Report what your monitoring says of a service, or of the service on one host. A rollout that enforces
    on a service that was reported as unhealthy since it began is rolled back automatically.
    """
    return await orchestrator_of(request).registry.health(service_id, data, who(request))


@delete("/api/v1/services/{service_id:int}", status_code=200, guards=[needs("approver")])
async def delete_service(service_id: ServiceNumber, request: Handler, dry_run: DryRun = False) -> Effect:
    """Delete a service that no host has a snapshot of."""
    return await orchestrator_of(request).registry.delete(service_id, who(request), dry_run)


@get("/api/v1/hosts", guards=[needs("viewer")])
async def list_hosts(request: Handler) -> tuple[HostView, ...]:
    """All enrolled hosts, with what their last heartbeat said."""
    return await orchestrator_of(request).hosts.all()


@get("/api/v1/hosts/{host_id:str}", guards=[needs("viewer")])
async def get_host(host_id: str, request: Handler) -> HostView:
    """One enrolled host."""
    return await orchestrator_of(request).hosts.one(host_id)


@put("/api/v1/hosts/{host_id:str}/labels", guards=[needs("admin")])
async def put_labels(
    host_id: str, data: LabelsRequest, request: Handler, dry_run: DryRun = False
) -> HostView:
    """Give a host these labels instead of those that it has."""
    return await orchestrator_of(request).hosts.relabel(host_id, data.labels, who(request), dry_run)


@post("/api/v1/hosts/{host_id:str}/suspicion", status_code=200, guards=[needs("operator")])
async def suspicion(host_id: str, data: Suspicion, request: Handler) -> Effect:
    """Report that you, or an open finding, suspect a host, or no longer do. Its flows are excluded from
    learning while anyone does; a released host stays suspected.
    """
    return await orchestrator_of(request).hosts.suspicions.say(host_id, data, who(request))


@delete("/api/v1/hosts/{host_id:str}", status_code=200, guards=[needs("admin")])
async def release_host(host_id: str, request: Handler, dry_run: DryRun = False) -> Effect:
    """Release a host's name and revoke its key."""
    return await orchestrator_of(request).hosts.release(host_id, who(request), dry_run)


@post("/api/v1/hosts/tokens", status_code=201, guards=[needs("admin")])
async def host_token(data: HostTokenRequest, request: Handler) -> EnrollmentToken:
    """An enrolment token for one host, shown this once; it lives at most an hour."""
    return await orchestrator_of(request).hosts.token(
        data.labels, data.host_id, data.ttl_seconds, who(request)
    )


@get("/api/v1/tokens", guards=[needs("admin")])
async def list_tokens(request: Handler) -> tuple[TokenView, ...]:
    """All API tokens, without their text."""
    return await orchestrator_of(request).access.all()


@post("/api/v1/tokens", status_code=201, guards=[needs("admin")])
async def issue_token(data: TokenRequest, request: Handler) -> NewToken:
    """A new API token, shown this once."""
    access = orchestrator_of(request).access
    return await access.issue(data.name, data.role, data.ttl_seconds, who(request), data.host_id)


@delete("/api/v1/tokens/{token_id:str}", status_code=200, guards=[needs("admin")])
async def revoke_token(
    token_id: str, request: Handler, force: bool = False, dry_run: DryRun = False
) -> Effect:
    """End a token. From then on it changes nothing in any service, and reads nothing after five seconds. The
    last one of an admin is a 409 without `force`.
    """
    return await orchestrator_of(request).access.revoke(token_id, who(request), force, dry_run)


@get("/api/v1/keys", guards=[needs("viewer")])
async def keys(request: Handler) -> KeyState:
    """The key set in force, the key that signs, and how far a rotation is."""
    return await orchestrator_of(request).rotation.state()


@post("/api/v1/keys/rotate", status_code=202, guards=[needs("admin")])
async def rotate(data: RotateRequest, request: Handler, dry_run: DryRun = False) -> KeyState:
    """Begin to rotate the key that signs: add, wait for the hosts, sign again, wait, remove. While a rotation
    is under way: wait no more for the hosts of `without`.
    """
    return await orchestrator_of(request).rotation.rotate(data, who(request), dry_run)


@get("/api/v1/audit", guards=[needs("approver")])
async def audit(
    request: Handler,
    limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    before: Annotated[int, Parameter(ge=1, le=2**62, description="only lines below this number")] = 2**62,
) -> AuditPage:
    """The audit log, newest first."""
    rows = await orchestrator_of(request).core.store.rows("audit_newest", before, limit)
    items = tuple(AuditLine(**{**dict(row), "hash": row["hash"].hex()}) for row in rows)
    return AuditPage(items, items[-1].seq if len(items) == limit and items[-1].seq > 1 else None)


def _hosts(given: Sequence[str] | None) -> list[str] | None:
    """Both forms of `target_host` as one list, each host once, in the order of the request."""
    if given is None:
        return None
    found = [part.strip() for text in given for part in text.split(",")]
    if not all(found):
        raise Invalid("target_host", "names of hosts", ",".join(given))
    return list(dict.fromkeys(found))


HANDLERS = (
    post_maps, promote, rollback, withdraw, list_maps, get_maps, status, why,
    list_services, put_service, get_service, delete_service, service_health,
    list_service_changes, approve_service_change, discard_service_change,
    list_hosts, get_host, put_labels, suspicion, release_host, host_token,
    list_tokens, issue_token, revoke_token, keys, rotate, audit,
)  # fmt: skip
