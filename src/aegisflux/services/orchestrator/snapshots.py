"""Changes of rollouts: post, promote, roll back, withdraw. Each is one transaction, announced and relayed
afterwards.
"""

from collections.abc import Sequence
from hashlib import sha256

import msgspec
from msgspec import Struct

from aegisflux.domain import rollout as rollouts
from aegisflux.domain import seals
from aegisflux.domain.errors import Conflict, Invalid
from aegisflux.domain.rollout import Rollout
from aegisflux.ports.store import Change, Queries
from aegisflux.runtime import metrics
from aegisflux.runtime.again import again
from aegisflux.runtime.register import Register
from aegisflux.services.orchestrator import guard, state
from aegisflux.services.orchestrator.announce import announcement
from aegisflux.services.orchestrator.carried import check_free
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.prepare import Prepared
from aegisflux.services.orchestrator.state import Service
from aegisflux.wire import envelope

MAX_TARGETS = 10_000
NOBODY_YET = (
    "no enrolled host runs service {} yet: stored as desired state, hosts get it when they begin to run it"
)


class Accepted(Struct, frozen=True):
    """The answer to a posted snapshot."""

    accepted: bool
    service_id: int
    target_hosts: tuple[str, ...]
    timestamp: int
    version: int
    digest: str
    warnings: tuple[str, ...]


class Snapshots:
    """The write side of /seg/maps."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @again
    async def post(
        self, body: bytes, targets: Sequence[str] | None, key: str, who: Who, beside: bool = False
    ) -> Accepted:
        """Compile, then store with everything that follows from it; raises Refused by name.

        beside: hosts judge it beside what is in force, and it blocks nothing
        """
        words = (",".join(targets or ()) + ("\0beside" if beside else "")).encode()
        request = sha256(b"%s\0%s" % (words, body)).digest()
        known = await self._remembered(self._core.store, key, request, who)
        if known is not None:
            return known
        prepared = await self._core.workshop.prepare(body)
        sealed = self._core.keys.seal(envelope.CONTENT, prepared.payload)
        now = self._core.now()
        async with self._core.store.change() as db:
            known = await self._remembered(db, key, request, who)
            if known is not None:
                await db.audit(
                    who.did("snapshot.repeat", f"service/{prepared.service_id}", after=known.digest)
                )
                return known
            answer = await self._post(db, prepared, sealed, targets, now, who, beside)
            if key:
                encoded = msgspec.json.encode(answer)
                await db.run("remember", who.principal.key, key, request, encoded, now)
        self._core.wake()
        metrics.posts.labels("accepted").inc()
        return answer

    async def _post(
        self,
        db: Change,
        prepared: Prepared,
        sealed: envelope.Envelope,
        targets: Sequence[str] | None,
        now: int,
        who: Who,
        beside: bool,
    ) -> Accepted:
        service, rollout, warnings = await self._service(db, prepared.service_id, now, who)
        await check_free(db, service.id)
        latest = await db.row("content", prepared.service_id, rollout.latest)
        is_new = rollouts.check_version(
            rollout, prepared.version, prepared.digest, latest["digest"] if latest else None
        )
        if targets is not None:
            await check_enrolled(db, targets)
        runs = await state.running(db, service)
        lease_until = now + self._core.lease(prepared.ttl_seconds)
        step = rollouts.post(rollout, prepared.version, lease_until, targets, runs)
        chosen = tuple(targets) if targets is not None else tuple(sorted(runs))
        if not beside:
            await guard.check(self._core, db, chosen, prepared.mode, prepared.ttl_seconds)
        if is_new:
            await store_content(db, prepared, sealed, now, who, None, self._core.register)
            await db.run("add_outbox", *announcement(prepared, "post", chosen, now), now)
        if beside:
            changed = await state.offer(db, rollout, prepared.version, chosen)
        else:
            await state.give(self._core.register, db, step, now)
            await state.end_offers(db, service.id, step.changed)
            changed = step.changed
        what = f"service/{service.id}/version/{prepared.version}"
        before, reason = latest["digest"] if latest else "", f"{len(changed)} hosts changed"
        action = "snapshot.offer" if beside else "snapshot.post"
        await db.audit(who.did(action, what, before=before, after=prepared.digest, reason=reason))
        if not chosen:
            warnings.append(NOBODY_YET.format(service.id))
        made_at = now if is_new or latest is None else latest["created_at"]
        told = (*prepared.warnings, *warnings)
        return Accepted(True, service.id, chosen, made_at, prepared.version, prepared.digest, told)

    async def _service(
        self, db: Change, service_id: int, now: int, who: Who
    ) -> tuple[Service, Rollout, list[str]]:
        warnings = []
        if await db.row("service", service_id) is None:
            name = f"service-{service_id}"
            if await db.row("service_named", name) is not None:
                raise Conflict(f"service {service_id} is not registered, and the name {name} is taken")
            await db.run("put_service", service_id, name, [], {}, now)
            await db.audit(who.did("service.register", f"service/{service_id}", after=name))
            warnings.append(
                f"service {service_id} was not registered: registered as {name} without selectors; "
                "no host enforces it until it has some"
            )
        service, rollout = await state.load(db, service_id)
        return service, rollout, warnings

    async def _remembered(self, db: Queries, key: str, request: bytes, who: Who) -> Accepted | None:
        if not key:
            return None
        row = await db.row("remembered", who.principal.key, key)
        if row is None:
            return None
        if row["request"] != request:
            raise Conflict("Idempotency-Key: it was used for another request")
        return msgspec.json.decode(row["answer"], type=Accepted)


async def check_enrolled(db: Queries, targets: Sequence[str]) -> None:
    """Raises Invalid with the names that are not enrolled."""
    if len(targets) > MAX_TARGETS:
        raise Invalid("target_host", f"at most {MAX_TARGETS} hosts", len(targets))
    enrolled = {row["host_id"] for row in await db.rows("host_labels")}
    missing = [host for host in targets if host not in enrolled]
    if missing:
        raise Invalid("target_host", "enrolled hosts", ", ".join(missing[:10]) + " is not enrolled")


async def store_and_tell(
    core: Core, db: Change, prepared: Prepared, action: str, hosts: tuple[str, ...], who: Who,
    copy_of: int | None = None,
) -> None:  # fmt: skip
    """Sign and keep a prepared snapshot, and announce it by this action."""
    now = core.now()
    sealed = core.keys.seal(envelope.CONTENT, prepared.payload)
    await store_content(db, prepared, sealed, now, who, copy_of, core.register)
    what = f"service/{prepared.service_id}/version/{prepared.version}"
    await db.audit(who.did("snapshot.store", what, after=prepared.digest, reason=action))
    await db.run("add_outbox", *announcement(prepared, action, hosts, now), now)


async def store_content(
    db: Change, prepared: Prepared, sealed: envelope.Envelope, now: int, who: Who, copy_of: int | None,
    register: Register,
) -> None:  # fmt: skip
    """Keep a prepared snapshot with its MAC; `copy_of` is the version that it brings back."""
    (signature,) = sealed.signatures
    row = {name: getattr(prepared, name) for name in seals.CONTENT if hasattr(prepared, name)} | {
        "created_at": now,
        "created_by": who.principal.name,
        "author": who.principal.key,
        "copy_of": copy_of,
        "payload_sha256": seals.payload_digest(prepared.payload),
    }
    await db.run(
        "put_content",
        prepared.service_id,
        prepared.version,
        prepared.digest,
        prepared.rules_digest,
        prepared.tables_digest,
        prepared.tables_format,
        prepared.entries,
        prepared.ttl_seconds,
        prepared.mode,
        prepared.on_expiry,
        prepared.established,
        now,
        row["created_by"],
        copy_of,
        prepared.snapshot,
        prepared.payload,
        signature.keyid,
        signature.sig,
        row["author"],
        row["payload_sha256"],
        register.seal("content", row),
    )
