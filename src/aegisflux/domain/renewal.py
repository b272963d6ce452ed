"""A policy in force stays true as its fleet changes: the same policy compiled with a later inventory.

Nobody approves a renewal, since the policy is the same; so it is bounded. It waits until the fleet has been
the same for a while (a host that comes and goes renews nothing), changes a small part of a snapshot at once,
and happens a few times an hour. What is more than that is stopped, and said: it wants a plan.
"""

from collections.abc import Container, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from aegisflux.domain.policy import Policy
from aegisflux.domain.snapshot import MapSnapshot, ruleset

SETTLED_SECONDS: Final = 15.0
MOST_SHARE: Final = 0.25
ALWAYS: Final = 16  # entries, however small the snapshot is
HOURLY: Final = 12
HOUR: Final = 3600.0
MOST_WORDS: Final = 4


class Delta(Struct, frozen=True):
    """Entries that come and go, in words, and how many entries there were."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    before: int

    def __str__(self) -> str:
        return ", ".join(filter(None, (_some("+", self.added), _some("-", self.removed)))) or "nothing"


def delta(before: MapSnapshot, after: MapSnapshot) -> Delta:
    """What differs between the entries of two snapshots of a service."""
    old, new = _entries(before), _entries(after)
    return Delta(tuple(sorted(new - old)), tuple(sorted(old - new)), len(old))


def stopped(change: Delta, settled_seconds: float, renewals: Sequence[float], now: float) -> str:
    """Why a renewal does not happen (yet), empty: it does.

    settled_seconds: for how long the same has been wanted; renewals: when there were some before
    """
    count = len(change.added) + len(change.removed)
    most = max(ALWAYS, int(MOST_SHARE * change.before))
    if count > most:
        return f"it would change {count} entries, expected at most {most}: plan again"
    lately = sum(now - at < HOUR for at in renewals)
    if lately >= HOURLY:
        return f"there were {lately} in the last hour, expected at most {HOURLY}: look why the fleet flaps"
    if settled_seconds < SETTLED_SECONDS:
        return f"the fleet changed {settled_seconds:.0f} s ago, expected it quiet for {SETTLED_SECONDS:.0f} s"
    return ""


def without_gone(policy: Policy, hosts: Container[str]) -> Policy:
    """The same policy, its groups without the hosts that have left."""
    groups = {
        name: replace(group, hosts=tuple(host for host in group.hosts if host in hosts))
        for name, group in policy.groups.items()
    }
    return replace(policy, groups=groups)


def _entries(snapshot: MapSnapshot) -> set[str]:
    rules = ruleset(snapshot)
    lists = (("to", rules.edges), ("peer", rules.peers), ("from", rules.ingress or ()), ("deny", rules.deny))
    return {
        f"{name} {entry.cidr} {entry.proto}/{entry.port or '*'}"
        for name, entries in lists
        for entry in entries
    }


def _some(sign: str, entries: Sequence[str]) -> str:
    if not entries:
        return ""
    more = f" and {len(entries) - MOST_WORDS} more" if len(entries) > MOST_WORDS else ""
    return f"{sign} {', '.join(entries[:MOST_WORDS])}{more}"
