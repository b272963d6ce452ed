"""What a policy opens to everybody: somebody has to have looked at such a rule once, since a patient scanner
looks like a bastion.

Everybody is the fleet, anyone, or more addresses than the widest prefix that the linter does not call wide,
in one prefix or in many.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from aegisflux.domain.policy import RESERVED, Policy, ends_of
from aegisflux.domain.policy_compile import Inventory, Places
from aegisflux.domain.policy_lint import WIDE
from aegisflux.domain.policy_ranges import Ranges
from aegisflux.domain.text import first_of

MOST_ENDS: Final = 8


def opened(policy: Policy, inventory: Inventory, services: frozenset[str]) -> Iterator[str]:
    """The rules that open one of these services to everybody, or everybody to one of them, in words."""
    places = Places(policy, inventory)
    for n, rule in enumerate(policy.rules):
        path, clients, servers = f"rules[{n}]", ends_of(rule.from_), ends_of(rule.to)
        if rule.action == "deny":
            continue
        callers, called = (
            [end for end in ends if not services.isdisjoint(places.held(end, path))]
            for ends in (clients, servers)
        )
        if called and _everybody(places, clients, path):
            yield f"{_words(called)} is open to {_words(clients)} on {', '.join(rule.ports)}"
        elif (called or callers) and _everybody(places, servers, path):
            yield f"{_words(servers)} is open to {_words(clients)} on {', '.join(rule.ports)}"


def _everybody(places: Places, ends: Sequence[str], path: str) -> bool:
    if not RESERVED.isdisjoint(ends):
        return True
    return Ranges(cidr for end in ends for cidr in places.of(end, path).cidrs).wider(WIDE)


def _words(ends: Sequence[str]) -> str:
    return first_of(ends, MOST_ENDS)
