"""What the parts of the orchestrator share."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated, Final, NamedTuple

from msgspec import Meta

from aegisflux.domain import skew
from aegisflux.domain.bounds import MAX_INT64
from aegisflux.domain.guardrails import OPEN, Limits
from aegisflux.domain.manifest import Heartbeat
from aegisflux.domain.rotation import ahead_text
from aegisflux.domain.runs import Runs
from aegisflux.ports.accounts import AgentAccounts
from aegisflux.ports.bus import Bus
from aegisflux.ports.clock import Clock
from aegisflux.ports.store import Store
from aegisflux.runtime.access import Who
from aegisflux.runtime.register import Register
from aegisflux.services.orchestrator.hearing import Hearing
from aegisflux.services.orchestrator.keys import Keys
from aegisflux.services.orchestrator.prepare import Workshop

CLASH_SECONDS: Final = 60.0  # heartbeats of both come every few seconds
MAX_TROUBLES: Final = 16
LINE: Final = (
    r"^[^\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\u2800\u3164\ue000-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]*$(?!\\n)"
)
Words = Annotated[str, Meta(max_length=1000, pattern=LINE)]
"""A reason for the history and the audit log: one line in which a reader sees every character."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of the orchestrator. Times in seconds; `max_lease` 0: as long as a snapshot says; `limits`:
    what no plan and no operator can loosen."""

    limits: Limits = OPEN
    max_lease: int = 0
    confirm_seconds: int = 30
    renew_every: float = 5.0
    compare_every: float = 300.0
    silent_after: float = 3.0
    enroll_url: str
    nats_urls: tuple[str, ...]
    ca_pem: str
    ca_sha256: str


def clash_text(runs: Runs) -> str:
    """Two live agents with one identity, in words."""
    other = runs.earlier[-1] if runs.earlier else None
    return (
        f"two agents answer as this host at once ({runs.current}; {other}): a machine was cloned; "
        "release one and enrol it under a name of its own"
    )


class Unmade(NamedTuple):
    """A manifest that cannot be made or sent, why, and until when nobody tries it again."""

    serial: int
    why: str
    again_at: float


@dataclass(slots=True, kw_only=True)
class Core:
    """Ports, keys and the bells that wake the relay and the register.

    unmade: the last manifest of a host that could not be made or sent
    shared_addresses: how many addresses several hosts report, when it was counted last
    bus_remarks: where NATS servers that others run keep less than we promise, in words
    register: which rows of the store are believed
    hearing: whose requests are heard
    """

    store: Store
    bus: Bus
    accounts: AgentAccounts
    clock: Clock
    keys: Keys
    workshop: Workshop
    options: Options
    manifests_due: asyncio.Event = field(default_factory=asyncio.Event)
    announcements_due: asyncio.Event = field(default_factory=asyncio.Event)
    mark_due: asyncio.Event = field(default_factory=asyncio.Event)
    host_keys: dict[str, bytes] = field(default_factory=dict)
    digests: dict[str, frozenset[str]] = field(default_factory=dict)
    runs: dict[str, Runs] = field(default_factory=dict)
    unmade: dict[str, Unmade] = field(default_factory=dict)
    shared_addresses: int = 0
    bus_remarks: tuple[str, ...] = ()
    register: Register = field(init=False)
    hearing: Hearing = field(init=False)

    def __post_init__(self) -> None:
        self.register = Register(self.store, self.keys.secrets, keeps=True)
        self.hearing = Hearing(self.bus, self.store)

    def now(self) -> int:
        """Whole seconds since the epoch."""
        return int(self.clock.now())

    def troubles(
        self,
        host: str,
        beat: Heartbeat | None,
        left_out: str = "",
        serial: int = MAX_INT64,
        seen_at: float = 0,
    ) -> tuple[str, ...]:
        """What stands in the way of a host's agent, in words: what it says, and what it cannot know;
        `left_out`: what its manifest has no room for; `serial`: that of its newest manifest; `seen_at`: when
        the heartbeat was received."""
        found = []
        if beat and beat.serial > serial:
            found.append(ahead_text(beat.serial, serial))
        if beat and seen_at and (wrong := skew.trouble(seen_at - beat.clock)):
            found.append(wrong)
        if (runs := self.runs.get(host, Runs())).clashes(self.clock.now(), CLASH_SECONDS):
            found.append(clash_text(runs))
        if host in self.unmade:
            found.append(f"it gets no newer manifest: {self.unmade[host].why}")
        if left_out:
            found.append(left_out)
        return (*found, *(beat.troubles[:MAX_TROUBLES] if beat else ()))

    def lease(self, ttl_seconds: int) -> int:
        """The length of a lease of a snapshot with this TTL, in seconds."""
        longest = self.options.max_lease
        return min(ttl_seconds, longest) if longest else ttl_seconds

    def wake(self) -> None:
        """Tell the relay and the register that a transaction was committed."""
        self.mark_due.set()
        self.manifests_due.set()
        self.announcements_due.set()


__all__ = ["Core", "Options", "Who"]
