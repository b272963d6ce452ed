"""Hosts: enrolment tokens, enrolment, release. A host's name and its key belong together until it is
released.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from aegisflux.domain import rights
from aegisflux.domain.errors import Conflict, Forbidden, Invalid, NotFound, Refused
from aegisflux.domain.names import check_name
from aegisflux.domain.own_addresses import conflict_text
from aegisflux.domain.rights import ENROLMENT_DIGITS, enrolment_text, labels_text
from aegisflux.domain.text import first_of
from aegisflux.ports.store import Queries, Row
from aegisflux.runtime import logs, metrics
from aegisflux.runtime.again import again
from aegisflux.services.orchestrator import state
from aegisflux.services.orchestrator.answers import heartbeat_of
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.effects import Effect, attempt
from aegisflux.services.orchestrator.joining import join
from aegisflux.services.orchestrator.keys import verified
from aegisflux.services.orchestrator.service_changes import named_by
from aegisflux.services.orchestrator.standing import release
from aegisflux.services.orchestrator.suspicions import Suspicions
from aegisflux.wire import envelope, subjects
from aegisflux.wire.token import (
    EnrollAnswer,
    EnrollRequest,
    EnrollToken,
    b64,
    from_b64,
    parse_token,
    proof_bytes,
    root_sha256,
    token_hash,
    token_text,
)

MAX_TOKEN_SECONDS = 3600
MOST_CONFLICTS = 8
MOST_NAMED = 5
RETRY_SECONDS, MAX_RETRIES = 60, 4096
log = logs.get("hosts")
NOT_NOW = "this enrolment token cannot be used: it is unknown, expired, or made for another host"


class EnrollmentToken(Struct, frozen=True):
    """A new enrolment token, shown this once. A secret."""

    token: str
    expires_at: int
    labels: dict[str, str]
    host_id: str | None
    command: str


class HostView(Struct, frozen=True):
    """An enrolled host, as people see it. Times are seconds since the epoch. `suspicious`: who says so;
    `troubles`: what stands in its agent's way, such as a full disk or a second agent with its identity;
    `address_conflicts`: of the addresses that other hosts report too, the first eight."""

    host_id: str
    labels: dict[str, str]
    enrolled_at: int
    serial: int
    observed_serial: int
    last_seen: float | None
    silent: bool
    agent_version: str | None
    datapath: str | None
    panicked: bool
    clock_offset: float | None
    services: tuple[int, ...]
    suspicious: tuple[str, ...]
    troubles: tuple[str, ...] = ()
    address_conflicts: tuple[str, ...] = ()


class Hosts:
    """Enrolment and the list of hosts."""

    def __init__(self, core: Core) -> None:
        self._core, self.suspicions = core, Suspicions(core)
        self._retries: dict[str, int] = {}  # until when a token's retry writes no further line

    @again
    async def token(self, labels: Mapping[str, str], host: str | None, ttl: int, who: Who) -> EnrollmentToken:
        """A token for one host, at most an hour old when it is used; `host` binds it to a name."""
        known = None
        if (
            host is not None
            and (known := await self._core.store.row("host", subjects.host_token(host))) is None
        ):
            check_name("host_id", host)
        if not 1 <= ttl <= MAX_TOKEN_SECONDS:
            raise Invalid("ttl_seconds", f"1 to {MAX_TOKEN_SECONDS}", ttl)
        state.check_labels("labels", labels, known["labels"] if known else None)
        options, now = self._core.options, self._core.now()
        text = token_text(
            EnrollToken(
                options.enroll_url,
                options.ca_sha256,
                root_sha256(self._core.keys.root_public),
                self._core.keys.enroll_secret(),
            )
        )
        async with self._core.store.change() as db:
            await db.run(
                "add_enroll_token", token_hash(text), dict(labels), host, now, who.principal.name, now + ttl
            )
            after = f"{token_hash(text)[:ENROLMENT_DIGITS]} {enrolment_text(host, dict(labels), now + ttl)}"
            await db.audit(who.did("host.token", f"host/{host or '*'}", after=after))
        command = "aegisflux agent enroll --token-file -" + (f" --host-id {host}" if host else "")
        return EnrollmentToken(text, now + ttl, dict(labels), host, command)

    async def enroll(self, request: EnrollRequest, who: Who) -> EnrollAnswer:
        """Bind a name and a key; a retry with the same token and key gets the same answer.

        Raises Invalid, Forbidden (token or proof) or Conflict (name or token used by another key).
        """
        host = subjects.host_token(request.host_id)
        public = from_b64(request.agent_public_key, "agent_public_key", 32)
        proof = from_b64(request.proof, "proof", 64)
        token = parse_token(request.token)
        try:
            if not self._core.keys.made_enroll(token.secret):
                raise Forbidden(NOT_NOW)
            if not verified(public, proof_bytes(request.token, host), proof):
                raise Forbidden("proof: it is not made by agent_public_key for this token and host_id")
            digest = token_hash(request.token)
            answer = await self._repeated(digest, host, public) or await self._enrolled(
                digest, host, public, who
            )
        except (Forbidden, Conflict):
            metrics.http_unauthorized.labels("enrolment").inc()
            raise
        await self._core.register.follow()  # a key that was released before may be enrolled by now
        await self._core.accounts.admit_agent(host, public)  # a retry comes here again
        await self._core.hearing.add(host)
        self._core.host_keys.pop(host, None)
        self._core.wake()
        return answer

    async def _repeated(self, digest: str, host: str, public: bytes) -> EnrollAnswer | None:
        """What is refused without the lock that all changes share, and the answer to a retry whose line the
        audit log has; None for what needs a change."""
        row = await self._core.store.row("read_enroll_token", digest)
        answer = _answered(row, host, public, self._core.now())
        if answer is None:
            await self._check_free(self._core.store, host, public)
        elif self._core.register.rights.released_host(b64(public)):
            raise Forbidden(NOT_NOW)  # its answer is one of before the release
        elif self._retries.get(digest, 0) > self._core.now():
            return answer
        return None

    @again
    async def _enrolled(self, digest: str, host: str, public: bytes, who: Who) -> EnrollAnswer:
        now = self._core.now()
        await self._core.register.follow()
        async with self._core.store.change() as db:
            token = await db.row("enroll_token", digest)
            answer = _answered(token, host, public, now)
            if answer is not None:
                await db.audit(who.did("host.enroll", f"host/{host}", reason="repeated"))
            else:
                assert token is not None
                if not self._believed(digest, token):
                    raise Forbidden(NOT_NOW)
                await self._check_free(db, host, public)
                if token["host_id"] is None:
                    await _check_unmeant(db, host)
                answer = self._answer(host, public, now)
                await db.run("put_host", host, public, token["labels"], now)
                await db.run("serial_above", host, self._core.register.floor)
                await db.run("use_enroll_token", digest, host, public, now, msgspec.json.encode(answer))
                await join(self._core, db, host, now)
                before, after = digest[:ENROLMENT_DIGITS], f"{b64(public)} {labels_text(token['labels'])}"
                await db.audit(who.did("host.enroll", f"host/{host}", before=before, after=after))
        self._retries[digest] = now + RETRY_SECONDS
        while len(self._retries) > MAX_RETRIES:
            del self._retries[next(iter(self._retries))]
        return answer

    def _believed(self, digest: str, token: Row) -> bool:
        """Whether the audit log says so of an enrolment token, and that nobody has used it."""
        said = self._core.register.rights.enrolments.get(digest[:ENROLMENT_DIGITS])
        if said == enrolment_text(token["host_id"], token["labels"], token["expires_at"]):
            return True
        log.error("an enrolment token is refused: its row is not as the audit log says", token=digest[:8])
        return False

    async def _check_free(self, db: Queries, host: str, public: bytes) -> None:
        known = await db.row("host", host)
        if known is None:
            check_name("host_id", host)
        if known is not None and known["released_at"] is None and known["public_key"] != public:
            raise Conflict(f"host {host} is enrolled with another key; an admin releases the name first")

    def _answer(self, host: str, public: bytes, now: int) -> EnrollAnswer:
        core = self._core
        return EnrollAnswer(
            host_id=host,
            user_jwt=core.accounts.issue_agent(host, public, now),
            nats_urls=core.options.nats_urls,
            ca_pem=core.options.ca_pem,
            root_public_key=b64(core.keys.root_public),
            keys=b64(envelope.encode(core.keys.envelope)),
        )

    @again
    async def release(self, host: str, who: Who, dry_run: bool = False) -> Effect:
        """Free the name and revoke the key; raises NotFound.

        The key is revoked before the commit: a kill between the two must not leave a released host's key
        good. When the bus cannot take it nothing is released, and the admin tries again.
        """
        now = self._core.now()
        async with attempt(self._core.store, dry_run) as db:
            known = await _enrolled_host(db, host)
            given = [str(row["service_id"]) for row in await db.rows("assignments_of_host", host)]
            await release(db, known, now, who)
            if not dry_run:
                await self._core.accounts.revoke_agent(host, known["public_key"], now)
        if not dry_run:
            await self._released(host)
        did = [f"revokes the key of host {host}", f"frees the name {host}: another host can enrol under it"]
        if given:
            did.append(
                f"renews nothing there any more of {len(given)} services ({first_of(given, MOST_NAMED)}): "
                "what the kernel enforces of them ends with its leases"
            )
        return Effect(action=rights.RELEASE, object=f"host/{host}", did=tuple(did), dry_run=dry_run)

    async def _released(self, host: str) -> None:
        await self._core.register.follow()  # before the answer: no older store undoes what was answered
        self._core.host_keys.pop(host, None)
        self._core.digests.pop(host, None)
        self._core.unmade.pop(host, None)
        await self._core.hearing.remove(host)

    @again
    async def relabel(
        self, host: str, labels: Mapping[str, str], who: Who, dry_run: bool = False
    ) -> HostView:
        """Give a host other labels; services that match them now reach it."""
        async with attempt(self._core.store, dry_run) as db:
            known = await _enrolled_host(db, host)
            state.check_labels("labels", labels, known["labels"])
            await db.run("relabel_host", host, dict(labels))
            db.bump([host])
            await join(self._core, db, host, self._core.now())
            words = labels_text(known["labels"]), labels_text(labels)
            await db.audit(who.did("host.relabel", f"host/{host}", before=words[0], after=words[1]))
            view = await self._one(db, host)
        if not dry_run:
            self._core.wake()
        return view

    async def all(self) -> tuple[HostView, ...]:
        """All enrolled hosts by name."""
        given: dict[str, list[int]] = {}
        for row in await self._core.store.rows("all_assigned"):
            given.setdefault(row["host_id"], []).append(row["service_id"])
        rows, said = await self._core.store.rows("hosts"), await self.suspicions.words()
        conflicts = await self._conflicts(None)
        return tuple(
            self._view(row, given.get(row["host_id"], ()), said.get(row["host_id"], ()), conflicts)
            for row in rows
        )

    async def one(self, host: str) -> HostView:
        """One enrolled host; raises NotFound."""
        return await self._one(self._core.store, host)

    async def _one(self, db: Queries, host: str) -> HostView:
        row = await _enrolled_host(db, host)
        given = await db.rows("assignments_of_host", host)
        said = await self.suspicions.words()
        conflicts = await self._conflicts(host)
        return self._view(row, [found["service_id"] for found in given], said.get(host, ()), conflicts)

    async def _conflicts(self, host: str | None) -> dict[str, list[str]]:
        """Of hosts, the addresses that others report too."""
        found: dict[str, list[str]] = {}
        for row in await self._core.store.rows("address_conflicts", host):
            hosts = row["hosts"][:MOST_CONFLICTS]
            for name in hosts if host is None else [host]:
                if len(texts := found.setdefault(name, [])) < MOST_CONFLICTS:
                    others = [other for other in row["hosts"] if other != name]
                    texts.append(conflict_text(row["address"], others))
        return found

    def _view(
        self,
        row: Row,
        services: Sequence[int],
        suspicious: tuple[str, ...],
        conflicts: Mapping[str, Sequence[str]],
    ) -> HostView:
        beat = heartbeat_of(row)
        return HostView(
            host_id=row["host_id"],
            labels=row["labels"],
            enrolled_at=row["enrolled_at"],
            serial=row["serial"],
            observed_serial=row["heartbeat_serial"],
            last_seen=row["seen_at"] or None,
            silent=is_silent(self._core, row),
            agent_version=beat.agent_version if beat else None,
            datapath=beat.datapath if beat else None,
            panicked=beat.panicked if beat else False,
            clock_offset=round(row["seen_at"] - beat.clock, 3) if beat else None,
            services=tuple(sorted(services)),
            suspicious=suspicious,
            troubles=self._core.troubles(
                row["host_id"], beat, row["left_out"], row["serial"], row["seen_at"]
            ),
            address_conflicts=tuple(conflicts.get(row["host_id"], ())),
        )


def _answered(token: Row | None, host: str, public: bytes, now: int) -> EnrollAnswer | None:
    """The answer that a token was used for by this host and key; None while it can be used. Raises Forbidden
    or Conflict."""
    if token is None or (token["host_id"] or host) != host:
        raise Forbidden(NOT_NOW)
    if token["used_by"] is not None:
        if (token["used_by"], token["used_key"]) != (host, public):
            raise Conflict("this enrolment token was used already, by another host or key")
        return msgspec.json.decode(token["answer"], type=EnrollAnswer)
    if token["expires_at"] <= now:
        raise Forbidden(NOT_NOW)
    return None


async def _check_unmeant(db: Queries, host: str) -> None:
    """Raises Forbidden for a name that a policy or a rollout means: an admin says which machine has it."""
    why = await named_by(db, host)
    if not why and (row := await db.row("reaching", host)):
        why = f"rollout {row['id']} is to reach a host of the name {host}"
    if why:
        raise Forbidden(
            f"host {host}: {why}; enrol it with a token that is made for this name: "
            f"aegisflux hosts token --host-id {host}"
        )


def is_silent(core: Core, row: Row) -> bool:
    """Whether nothing was heard of a host for three of its heartbeats; so it is when no number says more."""
    return not core.clock.now() - row["seen_at"] <= core.options.silent_after * row["every"]


async def _enrolled_host(db: Queries, host: str) -> Row:
    row = await db.row("host", _name(host))
    if row is None or row["released_at"] is not None:
        raise NotFound(f"host {host} is not enrolled; see aegisflux hosts list")
    return row


def _name(host: str) -> str:
    """The name of a host in a path; raises NotFound for text that cannot be one."""
    try:
        return subjects.host_token(host)
    except Refused:
        raise NotFound(f"host {host!r} is not enrolled") from None
