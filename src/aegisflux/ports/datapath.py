"""What the agent asks of a datapath: hold generations of tables, flip between them, and tell what it did.

Calls block (milliseconds) and come from one thread. A service has a `slot` on its host, 0 to 255.
A generation is created, filled, frozen and read back by `load`; only `flip` lets it judge; no
generation is ever changed afterwards but for its deadline.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

from msgspec import Struct

from aegisflux.domain.flow import FailsafeRule, Flow, Own
from aegisflux.domain.net import Address
from aegisflux.domain.snapshot import Established, Expiry, Mode
from aegisflux.domain.tables import Tables
from aegisflux.domain.verdict import Reason, Verdict

Role = Literal["active", "candidate"]
MAX_SLOTS = 256


class Generation(Struct, frozen=True):
    """What is loaded: the tables and how they are to be used; `deadline_ns` is on the boot clock."""

    service_id: int
    version: int
    digest: str
    tables: Tables
    tables_digest: str
    mode: Mode
    on_expiry: Expiry
    established: Established
    deadline_ns: int


class Loaded(Struct, frozen=True):
    """A generation that the kernel holds and that was read back: `handle` is the datapath's own."""

    slot: int
    role: Role
    generation_id: int
    tables_digest: str
    handle: int


class Held(Struct, frozen=True):
    """What a slot judges by at this moment, as read from the kernel."""

    slot: int
    role: Role
    generation_id: int
    service_id: int
    version: int
    digest: str
    tables_digest: str
    mode: Mode
    on_expiry: Expiry
    established: Established
    deadline_ns: int


class DeniedFlow(Struct, frozen=True):
    """One denied (or would-be denied) initiation; `rule` as `domain.verdict.rule_text`."""

    boot_ns: int
    slot: int
    service_id: int
    role: Role
    mode: Mode
    direction: Literal["egress", "ingress"]
    proto: int
    local: Address | None
    local_port: int | None
    peer: Address
    peer_port: int | None
    reason: Reason
    rule: str | None
    digest: str


class Binding(Struct, frozen=True):
    """A cgroup that belongs to a service; `path` is relative to the root of the v2 tree."""

    cgroup_id: int
    path: str
    slot: int


class Check(Struct, frozen=True):
    """One line of `agent doctor`."""

    name: str
    ok: bool
    detail: str
    required: bool = True


class Datapath(Protocol):
    """A kernel, or its simulation. Raises Unavailable (the kernel refuses) or OverLimit (a map is full)."""

    name: str

    def open(self) -> None:
        """Load and attach, or take over what is pinned; idempotent."""
        ...

    def mend(self) -> list[str]:
        """Put back what somebody took away beside generations and bindings (programs that were detached, the
        lists of literals and of the failsafe); what it was, in words."""
        ...

    def retire(self) -> bool:
        """All that was accepted judges here: take away what an agent of another layout left judging."""
        ...

    def former(self, other: bool) -> list[Binding]:
        """The living cgroups that are bound and that nobody asked for here: by agents of other layouts, or
        (not `other`) by an earlier agent of this one."""
        ...

    def hand_over(self, left: Iterable[Binding]) -> None:
        """Take from other layouts all cgroups that are bound here; these are left to them."""
        ...

    def close(self) -> None:
        """Let go without ending enforcement."""
        ...

    def load(self, slot: int, role: Role, generation: Generation) -> Loaded:
        """Create, fill, freeze, read back; nothing judges by it yet."""
        ...

    def flip(self, loaded: Loaded) -> None:
        """Let it judge from the next packet on, and re-judge live flows once. The replaced generation is
        kept until `forget` or the next flip of this slot and role."""
        ...

    def flip_back(self, slot: int) -> bool:
        """Return to what the last flip replaced (to nothing, if there was nothing); False if it is gone."""
        ...

    def forget(self, slot: int) -> None:
        """Drop the replaced generation: what is active is confirmed."""
        ...

    def discard(self, loaded: Loaded) -> None:
        """Drop a loaded generation that never judged."""
        ...

    def renew(self, slot: int, deadline_ns: int) -> None:
        """Move the deadline of what is active; nothing else changes."""
        ...

    def remove(self, slot: int, role: Role) -> None:
        """The slot judges nothing any more (`unmanaged`)."""
        ...

    def held(self) -> list[Held]:
        """Read back every slot; the digests are computed from what the kernel holds."""
        ...

    def cut(self, slot: int) -> int:
        """Destroy live sockets of the service that its active generation denies; how many."""
        ...

    def live(self, slot: int) -> list[Flow]:
        """The initiations behind the connections that the service has now, `local` where they stay in their
        network namespace; changes nothing."""
        ...

    def bind(self, bindings: Iterable[Binding]) -> None:
        """Make these the mapped cgroups; raises the mapping epoch where anything changed.

        Each is taken by itself: where some cannot be bound, all others are before an error is raised, and
        `refusals` says which and why. Whose the cgroups of failsafe rules are is looked at again.
        """
        ...

    def literals(self, paths: Mapping[str, int]) -> None:
        """Paths (below the v2 root) that are bound in the kernel when root creates them in directories that
        are root's, with their slots. Each is taken by itself, see `bind`."""
        ...

    def refusals(self) -> Mapping[str, str]:
        """Why paths that `bind` and `literals` were last given are not held, by path."""
        ...

    def bindings(self) -> list[Binding]: ...

    def failsafe(self, rules: Iterable[FailsafeRule], agent_cgroup: str | None) -> None:
        """The host's list and the agent's own cgroup."""
        ...

    def refresh_addresses(self) -> list[str]:
        """Look for the network namespaces that governed processes live in, and read the own addresses of
        each; what could not be done, in words: there a refused call ends in a time-out, not at once."""
        ...

    def watch_addresses(self) -> int | None:
        """A descriptor that is readable (epoll) while changed addresses or local routes wait, until `close`;
        None where nobody tells."""
        ...

    def heed_addresses(self) -> list[str]:
        """Read again what changed; the answer as of `refresh_addresses`."""
        ...

    def addresses(self) -> tuple[Address, ...]:
        """By which addresses others reach this host, as of the last reading, the likeliest first. Asks
        nobody, so that any thread may."""
        ...

    def namespaces_unknown(self) -> int:
        """Of how many network namespaces the own addresses are not known, as of the last reading. Asks
        nobody."""
        ...

    def own(self, slot: int) -> Own:
        """What belongs to the network namespaces of the service's processes now, local routes included."""
        ...

    def counters(self, slot: int) -> Mapping[str, int]:
        """Verdicts since `open` by `reason`, and `would_block`, `lost_events`, `evicted_flows`."""
        ...

    @property
    def denied_fd(self) -> int | None:
        """Readable (epoll) while denied flows wait, until `panic` or `close`; None: ask `drain_denied`."""
        ...

    def drain_denied(self, limit: int) -> list[DeniedFlow]:
        """Denied flows since the last call, oldest first."""
        ...

    def why(self, slot: int, flow: Flow, role: Role = "active") -> Verdict:
        """The verdict of a flow from what the kernel holds."""
        ...

    def panic(self) -> None:
        """Remove every enforcement at once; leaves nothing attached or pinned."""
        ...

    def boot_ns(self) -> int:
        """The clock that deadlines are on."""
        ...

    def doctor(self) -> list[Check]: ...
