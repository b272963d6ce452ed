"""The meaning of a snapshot. Everything else that judges is checked against `judge`.

It is the executable form of contracts §1 and is written to be obviously right, not fast: it reads
every entry. It knows nothing of caches, tables or packets.
"""

from collections.abc import Callable, Iterable
from typing import Final, Literal

from msgspec import Struct

from aegisflux.domain.cgroup_paths import within
from aegisflux.domain.embedded import with_forms
from aegisflux.domain.flow import FailsafeRule, Flow, Host
from aegisflux.domain.net import ICMP, ICMPV6, TCP, UDP, Address, Cidr, parse_cidr
from aegisflux.domain.snapshot import Entry, Mode, Ruleset

Action = Literal["allow", "deny"]
Reason = Literal[
    "failsafe",
    "deny",
    "allow",
    "unrestricted",
    "no_match",
    "unmanaged",
    "malformed",
    "expired_open",
    "expired_closed",
]
REASONS: Final[tuple[Reason, ...]] = (
    "unmanaged",
    "failsafe",
    "expired_open",
    "expired_closed",
    "malformed",
    "deny",
    "allow",
    "unrestricted",
    "no_match",
)

LOOPBACK_V4: Final = parse_cidr("127.0.0.0/8")
LOOPBACK_V6: Final = Address(6, 1)
UNSPECIFIED: Final = (Address(4, 0), Address(6, 0))
NDP_TYPES: Final = range(133, 138)
NDP_HOP_LIMIT: Final = 255
MLD_TYPES: Final = (130, 131, 132, 143)
MLD_HOP_LIMIT: Final = 1
LINK_LOCAL: Final = parse_cidr("fe80::/10")
GROUPS: Final = parse_cidr("ff00::/8")
DHCP_PORTS: Final = ((4, 68, 67), (6, 546, 547))
DHCP_SERVERS: Final = (Address(4, 0xFFFFFFFF), Address(6, 0xFF02 << 112 | 0x10002))
ICMP_ANSWERS: Final = {ICMP: (0, 3, 4, 5, 11, 12, 14, 16, 18), ICMPV6: (1, 2, 3, 4, 129)}


class Verdict(Struct, frozen=True):
    """`action` is what the rules say; in observe a deny blocks nothing (`blocks`).

    rule:  the deciding entry, as text; None where no entry decided
    kept:  allowed only because the flow was live when the snapshot came into force
    """

    action: Action
    reason: Reason
    rule: str | None = None
    digest: str | None = None
    mode: Mode = "enforce"
    kept: bool = False

    @property
    def blocks(self) -> bool:
        return self.action == "deny" and self.mode == "enforce"

    @property
    def word(self) -> str:
        """What people are told: allowed, blocked or would block."""
        if self.action == "allow":
            return "allowed"
        return "blocked" if self.blocks else "would block"


def judge(snapshot: Ruleset | None, flow: Flow, host: Host, digest: str | None = None) -> Verdict:
    """What happens to this initiation on this host; `snapshot` None is a service without one."""
    if snapshot is None:
        return Verdict("allow", "unmanaged", mode="observe")
    action, reason, rule, kept = _decide(snapshot, flow, host)
    return Verdict(action, reason, rule, digest, snapshot.mode, kept)


Decision = tuple[Action, Reason, str | None, bool]


def _decide(snapshot: Ruleset, flow: Flow, host: Host) -> Decision:
    saved = failsafe(flow, host)
    if saved is not None:
        return "allow", "failsafe", saved, False
    if host.expired:
        return (
            ("deny", "expired_closed", None, False)
            if snapshot.on_expiry == "closed"
            else ("allow", "expired_open", None, False)
        )
    if flow.malformed:
        return "deny", "malformed", None, False
    denied = best(
        "deny", (e for e in with_forms(snapshot.deny) if e.direction in (flow.direction, "both")), flow
    )
    if denied:
        return "deny", "deny", denied[1], False
    allowed = _allowing(snapshot, flow)
    if allowed is not None:
        return "allow", "allow", allowed, False
    if flow.direction == "ingress" and snapshot.ingress is None:
        return "allow", "unrestricted", None, False
    if flow.live and snapshot.established == "keep":
        return "allow", "allow", None, True
    return "deny", "no_match", None, False


def _allowing(snapshot: Ruleset, flow: Flow) -> str | None:
    name = "edges" if flow.direction == "egress" else "ingress"
    listed = snapshot.edges if flow.direction == "egress" else snapshot.ingress or ()
    found = [b for b in (best(name, listed, flow), best("allow_cidrs", snapshot.peers, flow)) if b]
    return min(found)[1] if found else None


def best(name: str, entries: Iterable[Entry], flow: Flow) -> tuple[tuple[int, bool, bool, bool], str] | None:
    """The most specific matching entry and its rank: longest prefix, exact port, named protocol."""
    found = [
        ((-e.cidr.plen, e.port == 0, e.proto == "any", name == "allow_cidrs"), rule_text(name, e))
        for e in entries
        if matches(e, flow)
    ]
    return min(found) if found else None


def matches(entry: Entry, flow: Flow) -> bool:
    """Contracts §1.3: inside the CIDR, the protocol equal or any, the port equal or 0."""
    if not entry.cidr.covers(flow.peer):
        return False
    if entry.proto == "any":
        return entry.port == 0 or (flow.proto in (TCP, UDP) and entry.port == flow.port)
    if flow.proto != (TCP if entry.proto == "tcp" else UDP):
        return False
    return entry.port in (0, flow.port)


def rule_text(name: str, entry: Entry) -> str:
    """The name of a rule everywhere: `edges 10.0.0.0/8 tcp/443`; every port is `*`."""
    return f"{name} {entry.cidr} {entry.proto}/{entry.port or '*'}"


def failsafe(flow: Flow, host: Host) -> str | None:
    """Which failsafe covers the flow, or None (contracts §1.7)."""
    checks: tuple[tuple[str, Callable[[Flow, Host], bool]], ...] = (
        ("failsafe local address", _is_local),
        ("failsafe neighbour discovery", _is_ndp),
        ("failsafe DHCP", _is_dhcp),
        ("failsafe agent", lambda f, _: f.from_agent),
        ("failsafe ICMP answer", _is_answer),
        ("failsafe host list", lambda f, h: any(is_listed(rule, f) for rule in h.failsafe)),
    )
    return next((name for name, holds in checks if holds(flow, host)), None)


def _is_local(flow: Flow, host: Host) -> bool:
    return (
        flow.local
        or LOOPBACK_V4.covers(flow.peer)
        or flow.peer == LOOPBACK_V6
        or flow.peer in UNSPECIFIED
        or host.owns(flow.peer)
    )


def _is_ndp(flow: Flow, _host: Host) -> bool:
    """Return whether it is NDP or MLD, which never cross a router: RFC 4861 and RFC 3810 fix the hop limit.
    Reports and queries of MLD go to groups, and come from link-local addresses or from none."""
    if flow.malformed or flow.proto != ICMPV6 or flow.icmp_type is None:
        return False
    if flow.icmp_type in NDP_TYPES:
        return flow.hop_limit == NDP_HOP_LIMIT
    if flow.icmp_type not in MLD_TYPES or flow.hop_limit != MLD_HOP_LIMIT:
        return False
    if flow.direction == "egress":
        return GROUPS.covers(flow.peer)
    return LINK_LOCAL.covers(flow.peer)  # and from ::, which is local


def _is_dhcp(flow: Flow, _host: Host) -> bool:
    """Return whether it is what a DHCP client needs: to ask by broadcast, or by multicast on its link, and to
    be answered by any server. A renewal by unicast that is refused is asked for again by broadcast (RFC 2131
    section 4.4.5)."""
    if flow.malformed or flow.proto != UDP:
        return False
    ours, theirs = (
        (flow.source_port, flow.port) if flow.direction == "egress" else (flow.port, flow.source_port)
    )
    if (flow.peer.family, ours, theirs) not in DHCP_PORTS:
        return False
    if flow.direction == "egress":
        return flow.peer in DHCP_SERVERS
    return flow.peer.family == 4 or LINK_LOCAL.covers(flow.peer)


def _is_answer(flow: Flow, _host: Host) -> bool:
    return (
        not flow.malformed
        and flow.direction == "ingress"
        and flow.icmp_type in ICMP_ANSWERS.get(flow.proto, ())
    )


def is_listed(rule: FailsafeRule, flow: Flow) -> bool:
    if flow.malformed or rule.direction != flow.direction:
        return False
    if rule.cgroup is not None and (flow.cgroup is None or not within(flow.cgroup, rule.cgroup)):
        return False
    return matches(Entry(rule.cidr or Cidr(flow.peer.family, 0, 0), rule.proto, rule.port), flow)
