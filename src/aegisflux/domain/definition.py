"""Who a service is: its name, the cgroups that are it, and the labels of the hosts that run it.

Whoever changes that changes whom rules mean. So a service whose policy is in force is changed like a policy:
one asks, and another approves. The same holds for a service whose selectors could take cgroups from it.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from aegisflux.domain.errors import Invalid
from aegisflux.domain.roles import Principal, may
from aegisflux.domain.selectors import Selector, may_meet, parse_stored_selector


class Definition(Struct, frozen=True):
    """What rules mean by a service."""

    name: str
    selectors: tuple[str, ...] = ()
    host_labels: Mapping[str, str] = {}

    def __str__(self) -> str:
        return f"{self.name} {list(self.selectors)} {dict(self.host_labels)}"


def waits(before: Definition | None, after: Definition, *, matters: bool, author: Principal) -> bool:
    """Whether a change has to wait for somebody who approves it. `matters`: it may change what is enforced.
    An admin's does not wait, as with promotions.
    """
    return matters and before != after and not may(author.role, "admin")


def takes_from(before: Definition | None, after: Definition, others: Iterable[Definition]) -> tuple[str, ...]:
    """The names of other services whose cgroups a selector that is new could select too, on some host."""
    known = before.selectors if before else ()
    moved = before is None or before.host_labels != after.host_labels
    fresh = [one for one in after.selectors if moved or one not in known]
    wanted = list(_read(fresh))
    return tuple(
        other.name
        for other in others
        if wanted
        and not _apart(after.host_labels, other.host_labels)
        and any(may_meet(one, own) for own in _read(other.selectors) for one in wanted)
    )


def _read(texts: Iterable[str]) -> Iterable[Selector]:
    for text in texts:
        try:
            yield parse_stored_selector(text)
        except Invalid:  # a stored one that selects nothing
            continue


def _apart(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether no host can bear the labels of both."""
    return any(other.get(name, value) != value for name, value in one.items())
