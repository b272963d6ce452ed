"""A policy in force stays true as its fleet changes: the same policy compiled with a later inventory.

Nobody approves a renewal, since the policy is the same; so it is bounded. It waits until the fleet has been
the same for a while (a host that comes and goes renews nothing), changes a small part of a snapshot at once,
takes away at most half of its allows from hosts that are still enrolled and never the last one, and happens a
few times an hour. What is more than that is stopped, and said: it wants a plan.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from aegisflux.domain.net import Address, Cidr
from aegisflux.domain.policy import Policy
from aegisflux.domain.snapshot import MapSnapshot, ruleset
from aegisflux.domain.spans import Spans
from aegisflux.domain.text import first_of

SETTLED_SECONDS: Final = 15.0
MOST_SHARE: Final = 0.25
ALWAYS: Final = 16  # entries, however small the snapshot is
HOURLY: Final = 12
HOUR: Final = 3600.0
MOST_WORDS: Final = 4
RENEWED: Final = "renewed: the fleet has changed"
HELD: Final = "not renewed: "
WAITS: Final = "renewal of "
DENY: Final = "deny"
Row = tuple[str, Cidr, str, int]  # list, prefix, protocol, port


class Delta(Struct, frozen=True):
    """Entries that come and go, in words, and how many entries there were.

    allows, left: entries that allow, before and after; cut: those of before by which a host that is still
    enrolled loses something
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    before: int
    allows: int = 0
    left: int = 0
    cut: int = 0

    def __str__(self) -> str:
        return ", ".join(filter(None, (_some("+", self.added), _some("-", self.removed)))) or "nothing"


def delta(before: MapSnapshot, after: MapSnapshot, fleet: Collection[Address] = ()) -> Delta:
    """What differs between the entries of two snapshots of a service; `fleet`: the addresses of all hosts."""
    old, new = _entries(before), _entries(after)
    had, has = _allows(old), _allows(new)
    held = {key: Spans(cidrs) for key, cidrs in has.items()}
    nothing = Spans(())
    here = sorted(fleet)
    cut = sum(
        any(not held.get(key, nothing).has(address) for address in _inside(cidr, here))
        for key, cidrs in had.items()
        for cidr in cidrs - has[key]
    )
    allows, left = (sum(map(len, one.values())) for one in (had, has))
    return Delta(_words(new - old), _words(old - new), len(old), allows, left, cut)


def stopped(change: Delta, settled_seconds: float, renewals: Sequence[float], now: float) -> str:
    """Why a renewal does not happen (yet), empty: it does.

    settled_seconds: for how long the same has been wanted; renewals: when there were some before
    """
    count = len(change.added) + len(change.removed)
    most = max(ALWAYS, int(MOST_SHARE * change.before))
    if count > most:
        return f"it would change {count} entries, expected at most {most}: plan again"
    half = max(1, change.allows // 2)
    if change.cut and (not change.left or change.cut > half):
        most_cut = half if change.left else min(half, change.allows - 1)
        words = f"{change.cut} of {change.allows} allows from hosts that are still enrolled"
        return f"it would take away {words}, expected at most {most_cut}: plan again"
    lately = sum(now - at < HOUR for at in renewals)
    if lately >= HOURLY:
        return f"there were {lately} in the last hour, expected at most {HOURLY}: look why the fleet flaps"
    if settled_seconds < SETTLED_SECONDS:
        return f"the fleet changed {settled_seconds:.0f} s ago, expected it quiet for {SETTLED_SECONDS:.0f} s"
    return ""


def told(said: str, parts: Sequence[str], held: Sequence[str]) -> str:
    """What the rollout says next, which said this before: what happened to each part that a renewal is due
    for, and why something is held as it is."""
    words = list(dict.fromkeys(parts))
    if held:
        words.append(HELD + "; ".join(held))
    if words:
        return "; ".join(words)
    return "in force as its policy says" if said.startswith(WAITS) or HELD in said else said


def without_gone(policy: Policy, hosts: Container[str]) -> Policy:
    """The same policy, its groups without the hosts that have left."""
    groups = {
        name: replace(group, hosts=tuple(host for host in group.hosts if host in hosts))
        for name, group in policy.groups.items()
    }
    return replace(policy, groups=groups)


def _allows(entries: Iterable[Row]) -> dict[tuple[str, str, int], set[Cidr]]:
    """The prefixes of allows, by list, protocol and port."""
    found: dict[tuple[str, str, int], set[Cidr]] = defaultdict(set)
    for name, cidr, proto, port in entries:
        if name != DENY:
            found[name, proto, port].add(cidr)
    return found


def _inside(cidr: Cidr, addresses: Sequence[Address]) -> Sequence[Address]:
    """Those of the sorted addresses that lie in a prefix."""
    first = bisect_left(addresses, Address(cidr.family, cidr.value))
    return addresses[first : bisect_left(addresses, Address(cidr.family, cidr.last + 1))]


def _entries(snapshot: MapSnapshot) -> set[Row]:
    rules = ruleset(snapshot)
    lists = (("to", rules.edges), ("peer", rules.peers), ("from", rules.ingress or ()), (DENY, rules.deny))
    return {(name, entry.cidr, entry.proto, entry.port) for name, entries in lists for entry in entries}


def _words(entries: Iterable[Row]) -> tuple[str, ...]:
    return tuple(sorted(f"{name} {cidr} {proto}/{port or '*'}" for name, cidr, proto, port in entries))


def _some(sign: str, entries: Sequence[str]) -> str:
    return f"{sign} {first_of(entries, MOST_WORDS)}" if entries else ""
