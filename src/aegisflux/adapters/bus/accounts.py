"""The accounts of our NATS: CONTROL, AGENTS and SYS, as contracts §4 has them.

CONTROL holds all streams, our services and viewers. AGENTS holds agents and no JetStream; what crosses
are the exports
that the register of subjects names. Users are issued by scoped signing keys whose templates say all that
a user may do.
"""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from nacl.signing import SigningKey

from aegisflux.domain.errors import Invalid, Unavailable
from aegisflux.ports.secrets import Secrets
from aegisflux.wire import natsjwt, subjects
from aegisflux.wire.natsjwt import Credentials

PUSH_SUBJECT = "$SYS.REQ.CLAIMS.UPDATE"
STATE = "nats-accounts.json"
USER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
AGENT_SUBSCRIPTIONS = 16
VIEWER_SUBSCRIPTIONS = 16
INGEST_SUBSCRIPTIONS = 64

Push = Callable[[str], Awaitable[None]]


class NatsAccounts:
    """Keys and claims of our accounts, made when missing and kept in `secrets`, one file for each key.

    The account claims are made from keys and revocations alone, so a deleted server directory loses nothing.
    """

    def __init__(self, secrets: Secrets, now: int) -> None:
        self._secrets = secrets
        self._keys = {name: _Key(secrets, name, kind) for name, kind in _KEYS.items()}
        state = json.loads(secrets.obtain(STATE, lambda: _state(now, {})))
        self._stamp: int = state["stamp"]
        self._revoked: dict[str, int] = state["revoked"]

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
            '  allow_delete: false\n  interval: "2m"\n}\n'
            f"resolver_preload {{\n{preload}}}\n"
        )

    def account_jwts(self) -> dict[str, str]:
        """The claims of the three accounts by public key."""
        made = (self._control_claim(), self._agents_claim(), self._system_claim())
        return {natsjwt.claims(jwt)["sub"]: jwt for jwt in made}

    def issue_agent(self, host: str, public: bytes, now: int) -> str:
        """See `AgentAccounts.issue_agent`; a revoked key is good again only for claims issued later."""
        nkey = natsjwt.public_nkey("user", public)
        return self._user("agent", nkey, subjects.host_token(host), now)

    def control_creds(self, now: int) -> Credentials:
        """Credentials of our own services: everything in CONTROL."""
        return self._kept_user("control", "control", now)

    def ingest_creds(self, now: int) -> Credentials:
        """Credentials of ingest: read what hosts send, publish what is checked and what is refused."""
        return self._kept_user("ingest", "ingest", now)

    def system_creds(self, now: int) -> Credentials:
        """Credentials that may push account claims, and nothing else."""
        return self._kept_user("sys", "system", now)

    def viewer_creds(self, now: int, name: str = "default") -> Credentials:
        """Credentials of somebody who may watch `actions.seg.maps` and publish nothing."""
        if not USER_NAME.fullmatch(name):
            raise Invalid("name", USER_NAME.pattern, name)
        return self._kept_user("viewer", f"viewer-{name}", now)

    def revoke(self, public: bytes, now: int) -> str:
        """Refuse claims of the key issued up to now, durably; gives the claim of AGENTS to push to the
        servers.
        """
        self._revoked[natsjwt.public_nkey("user", public)] = now
        self._stamp = max(self._stamp + 1, now)
        self._secrets.write(STATE, _state(self._stamp, self._revoked))
        return self._agents_claim()

    def revoked(self, public: bytes) -> int:
        """Up to when claims of the key are refused, in seconds since the epoch; 0 when it was never
        revoked.
        """
        return self._revoked.get(natsjwt.public_nkey("user", public), 0)

    def _user(self, role: str, nkey: str, name: str, now: int) -> str:
        issuer = self._keys[f"nats-sign-{role}"]
        account = self._keys[_ACCOUNT_OF[role]].public
        return natsjwt.user_jwt(
            nkey, name=name, account=account, issuer=issuer.public, now=now, sign=issuer.sign
        )

    def _kept_user(self, role: str, name: str, now: int) -> Credentials:
        key = _Key(self._secrets, f"nats-user-{name}", "user")
        return Credentials(self._user(role, key.public, name, now), key.seed)

    def _claim(self, account: str, name: str, **parts: object) -> str:
        operator = self._keys["nats-operator"]
        public = self._keys[account].public
        return natsjwt.account_jwt(
            public,
            name=name,
            issuer=operator.public,
            now=self._stamp,
            sign=operator.sign,
            **parts,  # type: ignore[arg-type]
        )

    def _exports(self) -> list[natsjwt.Json]:
        services = [natsjwt.service_export(pattern) for pattern in subjects.agent_requests()]
        return services + [natsjwt.stream_export(pattern) for pattern in subjects.agent_hears()]

    def _control_claim(self) -> str:
        control = self._scope("control", pub=(">",), sub=(">",), subs=-1)
        viewer = self._scope("viewer", pub=(), sub=subjects.viewer_subscribes(), subs=VIEWER_SUBSCRIPTIONS)
        hears = (subjects.inbox("ingest") + ".>",)
        ingest = self._scope("ingest", pub=subjects.ingest_publishes(), sub=hears, subs=INGEST_SUBSCRIPTIONS)
        return self._claim(
            "nats-account-control",
            "CONTROL",
            jetstream=True,
            exports=self._exports(),
            scopes=[control, viewer, ingest],
        )

    def _agents_claim(self) -> str:
        control = self._keys["nats-account-control"].public
        agent = self._scope(
            "agent", pub=subjects.agent_publishes(), sub=subjects.agent_subscribes(), subs=AGENT_SUBSCRIPTIONS
        )
        imports = [natsjwt.imported(export, control) for export in self._exports()]
        return self._claim(
            "nats-account-agents", "AGENTS", imports=imports, scopes=[agent], revocations=self._revoked
        )

    def _system_claim(self) -> str:
        system = self._scope("sys", pub=(PUSH_SUBJECT,), sub=(subjects.inbox("system") + ".>",), subs=4)
        return self._claim("nats-account-sys", "SYS", scopes=[system])

    def _scope(self, role: str, *, pub: tuple[str, ...], sub: tuple[str, ...], subs: int) -> natsjwt.Json:
        key = self._keys[f"nats-sign-{role}"].public
        return natsjwt.scope(key, role, pub=pub, sub=sub, subs=subs, payload=subjects.MAX_MESSAGE)


class Caller(Protocol):
    """A bus that reaches the server's own subjects."""

    async def call(self, subject: str, payload: bytes, timeout: float = 5.0) -> bytes:
        """One request, one answer."""
        ...


class LiveAccounts:
    """`AgentAccounts` over running servers: a revocation is kept first, then pushed through `push`."""

    def __init__(self, accounts: NatsAccounts, push: Push) -> None:
        self._accounts, self._push = accounts, push

    def issue_agent(self, host: str, public: bytes, now: int) -> str:
        """See `AgentAccounts.issue_agent`."""
        return self._accounts.issue_agent(host, public, now)

    async def revoke_agent(self, public: bytes, now: int) -> None:
        """See `AgentAccounts.revoke_agent`."""
        await self._push(self._accounts.revoke(public, now))

    async def push_all(self) -> None:
        """Push the claims of all accounts: after a reconnect, so that a revocation made meanwhile reaches
        the servers.
        """
        for jwt in self._accounts.account_jwts().values():
            await self._push(jwt)


def pusher(system: Caller) -> Push:
    """How claims reach the servers: over the bus of `NatsAccounts.system_creds`."""

    async def push(jwt: str) -> None:
        said = await system.call(PUSH_SUBJECT, jwt.encode())
        if json.loads(said).get("data", {}).get("code") != 200:
            raise Unavailable(f"account claim: expected the server to take it, got {said[:200]!r}")

    return push


class _Key:
    def __init__(self, secrets: Secrets, name: str, kind: natsjwt.Kind) -> None:
        text = secrets.obtain(name, lambda: natsjwt.seed_nkey(kind, bytes(SigningKey.generate())).encode())
        self.seed = natsjwt.raw_seed(text.decode())
        self._signing = SigningKey(self.seed)
        self.public = natsjwt.public_nkey(kind, bytes(self._signing.verify_key))

    def sign(self, data: bytes) -> bytes:
        return self._signing.sign(data).signature


_KEYS: dict[str, natsjwt.Kind] = {
    "nats-operator": "operator",
    "nats-account-control": "account",
    "nats-account-agents": "account",
    "nats-account-sys": "account",
    "nats-sign-control": "account",
    "nats-sign-viewer": "account",
    "nats-sign-ingest": "account",
    "nats-sign-agent": "account",
    "nats-sign-sys": "account",
}
_ACCOUNT_OF = {
    "agent": "nats-account-agents",
    "viewer": "nats-account-control",
    "ingest": "nats-account-control",
    "control": "nats-account-control",
    "sys": "nats-account-sys",
}


def _state(stamp: int, revoked: dict[str, int]) -> bytes:
    return json.dumps({"stamp": stamp, "revoked": revoked}).encode()
