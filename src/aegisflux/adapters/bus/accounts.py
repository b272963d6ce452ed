"""The accounts of our NATS: CONTROL, SYS, and one for each host and key (ADR 0037).

CONTROL holds all streams, our services and viewers. The account of a host holds that host alone, and imports
from CONTROL the subjects that name it, and nothing else: whatever a host publishes, and wherever it wants
the answer, ends in CONTROL or in its own account. Users are issued by scoped signing keys that say all that
a user may do.
"""

import asyncio
import contextlib
import hmac
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from secrets import randbelow, token_bytes
from typing import Protocol

from nacl.signing import SigningKey

from aegisflux.domain.errors import Forbidden, Invalid, Unavailable, shown
from aegisflux.ports.secrets import Secrets
from aegisflux.wire import natsjwt, subjects
from aegisflux.wire.natsjwt import Credentials

PUSH_SUBJECT = "$SYS.REQ.CLAIMS.UPDATE"
LIMITS_SUBJECT = "$SYS.REQ.SERVER.PING.VARZ"
LIST_SUBJECT, DELETE_SUBJECT = "$SYS.REQ.CLAIMS.LIST", "$SYS.REQ.CLAIMS.DELETE"
LOOK_UP_SUBJECT = "$SYS.REQ.ACCOUNT.{}.CLAIMS.LOOKUP"
STATE = "nats-accounts.json"
HOST_CLAIM = "host "
HOSTS_SECRET, SHARED_BEFORE = "nats-hosts", "nats-account-agents"
USER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
HOST_CONNECTIONS = 4  # one, a clone's, and those whose end the server has not noticed yet
AGENT_SUBSCRIPTIONS = 16
# Added to the time of a claim: raise it whenever what claims say changes.
CLAIMS = 3
DAY = 86_400
AGENT_SECONDS, AGENT_SPREAD = 14 * DAY, 2 * DAY
SERVICE_SECONDS, SERVICE_SPREAD = 14 * DAY, 2 * DAY  # not all of them connect anew at once
VIEWER_SECONDS = 7 * DAY
VIEWER_SUBSCRIPTIONS = 16
PUSHED_AT_ONCE = 16
DELETED_AT_ONCE = 1000
INGEST_SUBSCRIPTIONS = 64

Push = Callable[[str], Awaitable[None]]


class NatsAccounts:
    """Keys and claims of our accounts, made when missing and kept in `secrets`, one file for each key.

    Claims are made from keys and revocations alone, so a deleted server directory loses nothing. What is kept
    of a host are its revocations, and those no longer than its user JWTs live.
    """

    def __init__(self, secrets: Secrets, now: int) -> None:
        self._secrets = secrets
        self._keys = {name: _Key(secrets, name, kind) for name, kind in _KEYS.items()}
        self._hosts = secrets.obtain(HOSTS_SECRET, lambda: token_bytes(32))
        state = json.loads(secrets.obtain(STATE, lambda: _state(now, {})))
        self._stamp: int = state["stamp"]
        self._revoked: dict[str, int] = state.get("revoked_hosts", {})

    def server_config(self, resolver_dir: str) -> str:
        """The part of the server's configuration that names operator, resolver and accounts; holds no
        secret.
        """
        operator = self._keys["nats-operator"]
        system = self._keys["nats-account-sys"].public
        claim = natsjwt.operator_jwt(
            operator.public, name="aegisflux", system_account=system, now=self._stamp, sign=operator.sign
        )
        preload = "".join(f"  {public}: {json.dumps(jwt)}\n" for public, jwt in self.account_jwts().items())
        return (
            f"operator: {json.dumps(claim)}\nsystem_account: {system}\n"
            f"resolver {{\n  type: full\n  dir: {json.dumps(resolver_dir)}\n"
            '  allow_delete: true\n  hard_delete: true\n  interval: "2m"\n}\n'
            f"resolver_preload {{\n{preload}}}\n"
        )

    def account_jwts(self) -> dict[str, str]:
        """The claims of CONTROL and SYS by public key, and of the account that all hosts once shared."""
        made = (self._control_claim(), self._system_claim(), *self._retired())
        return {natsjwt.claims(jwt)["sub"]: jwt for jwt in made}

    def issue_agent(self, host: str, public: bytes, now: int) -> str:
        """See `AgentAccounts.issue_agent`; a revoked key is good again only for claims issued later.

        Not all JWTs of a fleet that enrolled at once end at once.
        """
        nkey = natsjwt.public_nkey("user", public)
        account = self.host_account(subjects.host_token(host), public)
        issuer = self._keys["nats-sign-agent"]
        return natsjwt.user_jwt(
            nkey,
            name=host,
            account=account,
            issuer=issuer.public,
            now=now,
            sign=issuer.sign,
            until=now + AGENT_SECONDS - randbelow(AGENT_SPREAD),
        )

    def host_account(self, host: str, public: bytes) -> str:
        """The public key of the account of a host and its key: it is not kept, and cannot be guessed."""
        seed = hmac.digest(self._hosts, host.encode() + b"\0" + public, "sha256")
        return natsjwt.public_nkey("account", bytes(SigningKey(seed).verify_key))

    def host_claim(self, host: str, public: bytes) -> str:
        """The claim of the account of a host and its key: the host may use the subjects with its own name."""
        account = self.host_account(subjects.host_token(host), public)
        revoked = self._revoked.get(account, 0)
        permitted = self._scope(
            "agent",
            pub=subjects.agent_publishes(host),
            sub=subjects.agent_subscribes(host),
            subs=AGENT_SUBSCRIPTIONS,
        )
        return self._signed(
            account,
            HOST_CLAIM + host,
            now=max(self._stamp, revoked),
            imports=self._imports(host),
            scopes=[permitted],
            revocations={"*": revoked} if revoked else {},
            limited={"conn": HOST_CONNECTIONS, "payload": subjects.MAX_MESSAGE, "leaf": 0, "exports": 0},
        )

    def is_of_host(self, claim: str) -> bool:
        """Whether we made the claim, for the account of a host."""
        said = natsjwt.claims(claim)
        ours = said.get("iss") == self._keys["nats-operator"].public
        return ours and str(said.get("name", "")).startswith(HOST_CLAIM)

    def closed_claim(self, account: str) -> str:
        """The claim of an account in which nobody is, and that imports nothing. A server keeps in memory what
        it deletes: without this, the same claim of a host that comes back would be no news to it.
        """
        return self._signed(account, HOST_CLAIM + "released", now=self._stamp, limited={"conn": 0})

    def deletion(self, accounts: Sequence[str], now: int) -> str:
        """What makes servers forget accounts, by their public keys."""
        operator = self._keys["nats-operator"]
        return natsjwt.deletion_jwt(operator.public, accounts=accounts, now=now, sign=operator.sign)

    def control_creds(self, now: int) -> Credentials:
        """Credentials of our own services: everything in CONTROL."""
        return self._kept_user("control", "control", now)

    def ingest_creds(self, now: int) -> Credentials:
        """Credentials of ingest: read what hosts send, publish what is checked and what is refused."""
        return self._kept_user("ingest", "ingest", now)

    def system_creds(self, now: int) -> Credentials:
        """Credentials that may push, list and delete account claims and ask servers for their limits, and
        nothing else."""
        return self._kept_user("sys", "system", now)

    def viewer_creds(self, now: int, name: str = "default") -> Credentials:
        """Credentials of somebody who may watch what is announced and enriched and publish nothing, for a
        week.
        """
        if not USER_NAME.fullmatch(name):
            raise Invalid("name", USER_NAME.pattern, name)
        return self._kept_user("viewer", f"viewer-{name}", now)

    def revoke(self, host: str, public: bytes, now: int) -> str:
        """Refuse claims of the host and key issued up to now, durably; gives the claim of its account to push
        to the servers.
        """
        self._revoked = {key: at for key, at in self._revoked.items() if now - at < 2 * AGENT_SECONDS}
        self._revoked[self.host_account(host, public)] = now
        self._secrets.write(STATE, _state(self._stamp, self._revoked))
        return self.host_claim(host, public)

    def revoked(self, host: str, public: bytes) -> int:
        """Up to when claims of the host and key are refused, in seconds since the epoch; 0 when it was never
        revoked.
        """
        return self._revoked.get(self.host_account(host, public), 0)

    def _kept_user(self, role: str, name: str, now: int) -> Credentials:
        key, issuer = _Key(self._secrets, f"nats-user-{name}", "user"), self._keys[f"nats-sign-{role}"]
        holds = VIEWER_SECONDS if role == "viewer" else SERVICE_SECONDS - randbelow(SERVICE_SPREAD)
        jwt = natsjwt.user_jwt(
            key.public,
            name=name,
            account=self._keys[_ACCOUNT_OF[role]].public,
            issuer=issuer.public,
            now=now,
            sign=issuer.sign,
            until=now + holds,
        )
        return Credentials(jwt, key.seed)

    def _claim(self, account: str, name: str, **parts: object) -> str:
        return self._signed(self._keys[account].public, name, now=self._stamp, **parts)

    def _signed(self, account: str, name: str, *, now: int, **parts: object) -> str:
        operator = self._keys["nats-operator"]
        return natsjwt.account_jwt(
            account,
            name=name,
            issuer=operator.public,
            now=now + CLAIMS,
            sign=operator.sign,
            **parts,  # type: ignore[arg-type]
        )

    def _imports(self, host: str) -> list[natsjwt.Json]:
        """Exactly the subjects that name the host, of the exports of CONTROL."""
        control = self._keys["nats-account-control"].public
        own = (*subjects.host_requests(host), *subjects.host_hears(host))
        return [natsjwt.imported(export, control, part) for export, part in zip(_exports(), own, strict=True)]

    def _control_claim(self) -> str:
        control = self._scope("control", pub=(">",), sub=(">",), subs=-1)
        viewer = self._scope("viewer", pub=(), sub=subjects.viewer_subscribes(), subs=VIEWER_SUBSCRIPTIONS)
        hears = (subjects.inbox("ingest") + ".>",)
        ingest = self._scope("ingest", pub=subjects.ingest_publishes(), sub=hears, subs=INGEST_SUBSCRIPTIONS)
        return self._claim(
            "nats-account-control",
            "CONTROL",
            jetstream=True,
            exports=_exports(),
            scopes=[control, viewer, ingest],
        )

    def _system_claim(self) -> str:
        asks = (PUSH_SUBJECT, LIMITS_SUBJECT, LIST_SUBJECT, DELETE_SUBJECT, LOOK_UP_SUBJECT.format("*"))
        system = self._scope("sys", pub=asks, sub=(subjects.inbox("system") + ".>",), subs=4)
        return self._claim("nats-account-sys", "SYS", scopes=[system])

    def _retired(self) -> tuple[str, ...]:
        """A server that knows the account that hosts shared before ADR 0037 must let nobody in there."""
        if self._secrets.read(SHARED_BEFORE) is None:
            return ()
        account = _Key(self._secrets, SHARED_BEFORE, "account").public
        return (self._signed(account, "AGENTS", now=self._stamp, limited={"conn": 0}),)

    def _scope(self, role: str, *, pub: tuple[str, ...], sub: tuple[str, ...], subs: int) -> natsjwt.Json:
        key = self._keys[f"nats-sign-{role}"].public
        return natsjwt.scope(key, role, pub=pub, sub=sub, subs=subs, payload=subjects.MAX_MESSAGE)


class Caller(Protocol):
    """A bus that reaches the server's own subjects."""

    async def call(self, subject: str, payload: bytes, timeout: float = 5.0) -> bytes:
        """One request, one answer."""
        ...


Enrolled = Callable[[], Awaitable[Iterable[tuple[str, bytes]]]]
"""Each host that is enrolled, and its key."""


async def _nobody() -> Iterable[tuple[str, bytes]]:
    return ()


class KeptAccounts:
    """The claims that servers keep. `system`: the bus of `NatsAccounts.system_creds`."""

    def __init__(self, accounts: NatsAccounts, system: Caller) -> None:
        self._accounts, self._system, self._push = accounts, system, pusher(system)

    async def listed(self) -> list[str]:
        """All accounts that a server keeps, by their public keys; raises Unavailable."""
        return _said(await self._system.call(LIST_SUBJECT, b""))

    async def of_hosts(self, accounts: Iterable[str]) -> list[str]:
        """Those of the accounts that are of hosts; each is asked for. Raises Unavailable."""
        return [account for account in accounts if await self._is_of_host(account)]

    async def _is_of_host(self, account: str) -> bool:
        claim = await self._system.call(LOOK_UP_SUBJECT.format(account), b"")
        return bool(claim) and self._accounts.is_of_host(claim.decode("ascii", "replace"))

    async def delete(self, accounts: Sequence[str], now: int) -> None:
        """Let the servers forget them, and cut who is connected; raises Unavailable."""
        for start in range(0, len(accounts), DELETED_AT_ONCE):
            some = accounts[start : start + DELETED_AT_ONCE]
            for account in some:
                await self._push(self._accounts.closed_claim(account))
            _said(await self._system.call(DELETE_SUBJECT, self._accounts.deletion(some, now).encode()))


class LiveAccounts:
    """`AgentAccounts` over running servers: a revocation is kept first, then pushed through `push`. `kept`:
    where accounts of released hosts are deleted.
    """

    def __init__(
        self,
        accounts: NatsAccounts,
        push: Push,
        enrolled: Enrolled = _nobody,
        kept: KeptAccounts | None = None,
    ) -> None:
        self._accounts, self._push, self._enrolled, self._kept = accounts, push, enrolled, kept

    @classmethod
    def over(cls, system: Caller, accounts: NatsAccounts, enrolled: Enrolled = _nobody) -> "LiveAccounts":
        """Over the bus of `NatsAccounts.system_creds`."""
        return cls(accounts, pusher(system), enrolled, KeptAccounts(accounts, system))

    def issue_agent(self, host: str, public: bytes, now: int) -> str:
        """See `AgentAccounts.issue_agent`."""
        return self._accounts.issue_agent(host, public, now)

    async def admit_agent(self, host: str, public: bytes) -> None:
        """See `AgentAccounts.admit_agent`."""
        await self._push(self._accounts.host_claim(host, public))

    async def revoke_agent(self, host: str, public: bytes, now: int) -> None:
        """See `AgentAccounts.revoke_agent`."""
        await self._push(self._accounts.revoke(host, public, now))
        if self._kept is not None:
            with contextlib.suppress(Unavailable, Forbidden):  # it is revoked, and deleted at the next start
                await self._kept.delete([self._accounts.host_account(host, public)], now)

    async def forget_released(self) -> None:
        """Delete the accounts of hosts that are not enrolled: what earlier versions left, or a release while
        the servers were away. Raises Unavailable, or Forbidden where our user may not do so yet.
        """
        if self._kept is None:
            return
        # Listed first: a host that enrols meanwhile is in the store before its account is on a server.
        listed = await self._kept.listed()
        known = {self._accounts.host_account(host, public) for host, public in await self._enrolled()}
        known |= self._accounts.account_jwts().keys()
        gone = await self._kept.of_hosts(account for account in listed if account not in known)
        await self._kept.delete(gone, int(time.time()))

    async def push_all(self) -> None:
        """Push the claims of all accounts: after a reconnect, so that what was revoked meanwhile reaches the
        servers, and so that a server whose data was deleted knows the hosts again.
        """
        for jwt in self._accounts.account_jwts().values():
            await self._push(jwt)
        known = list(await self._enrolled())
        for start in range(0, len(known), PUSHED_AT_ONCE):
            some = known[start : start + PUSHED_AT_ONCE]
            await asyncio.gather(*(self.admit_agent(host, public) for host, public in some))


def pusher(system: Caller) -> Push:
    """How claims reach the servers: over the bus of `NatsAccounts.system_creds`."""

    async def push(jwt: str) -> None:
        said = await system.call(PUSH_SUBJECT, jwt.encode())
        try:
            is_taken = json.loads(said)["data"]["code"] == 200
        except (ValueError, KeyError, TypeError):
            is_taken = False
        if not is_taken:
            raise Unavailable(f"account claim: expected the server to take it, got {said[:200]!r}")

    return push


def _said(answer: bytes) -> list[str]:
    """The data of a server's answer; raises Unavailable with its words."""
    try:
        said = json.loads(answer)
        if "error" in said:
            raise Unavailable(f"accounts on the bus: {shown(said['error'].get('description'))}")
        found = said["data"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unavailable(
            f"accounts on the bus: expected an answer of the server, got {answer[:200]!r}"
        ) from None
    return [str(account) for account in found] if isinstance(found, list) else []


class _Key:
    def __init__(self, secrets: Secrets, name: str, kind: natsjwt.Kind) -> None:
        text = secrets.obtain(name, lambda: natsjwt.seed_nkey(kind, bytes(SigningKey.generate())).encode())
        self.seed = natsjwt.raw_seed(text.decode())
        self._signing = SigningKey(self.seed)
        self.public = natsjwt.public_nkey(kind, bytes(self._signing.verify_key))

    def sign(self, data: bytes) -> bytes:
        return self._signing.sign(data).signature


def _exports() -> list[natsjwt.Json]:
    """What CONTROL offers: the same subjects for every host, in the order of a host's imports."""
    services = [natsjwt.service_export(pattern) for pattern in subjects.host_requests()]
    return services + [natsjwt.stream_export(pattern) for pattern in subjects.host_hears()]


_KEYS: dict[str, natsjwt.Kind] = {
    "nats-operator": "operator",
    "nats-account-control": "account",
    "nats-account-sys": "account",
    "nats-sign-control": "account",
    "nats-sign-viewer": "account",
    "nats-sign-ingest": "account",
    "nats-sign-agent": "account",
    "nats-sign-sys": "account",
}
_ACCOUNT_OF = {
    "viewer": "nats-account-control",
    "ingest": "nats-account-control",
    "control": "nats-account-control",
    "sys": "nats-account-sys",
}


def _state(stamp: int, revoked: dict[str, int]) -> bytes:
    return json.dumps({"stamp": stamp, "revoked_hosts": revoked}).encode()
