"""Who a service is: its name, the cgroups that are it, and the labels of the hosts that run it.

Whoever changes that changes whom rules mean. So a service whose policy is in force is changed like a policy:
one asks, and another approves. The same holds for a service whose selectors could take cgroups from it.
"""

from collections.abc import Iterable, Iterator, Mapping

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


def differences(before: Definition, after: Definition) -> tuple[str, ...]:
    """What of the one is another in the other, in words; empty: they are the same."""
    return tuple(_differences(before, after))


def _differences(before: Definition, after: Definition) -> Iterator[str]:
    if before.name != after.name:
        yield f"name {before.name} becomes {after.name}"
    yield from (f"selector {one} is added" for one in after.selectors if one not in before.selectors)
    yield from (f"selector {one} is removed" for one in before.selectors if one not in after.selectors)
    if before.selectors != after.selectors and {*before.selectors} == {*after.selectors}:
        yield "selectors come in another order or number"
    for name in sorted({*before.host_labels, *after.host_labels}):
        was, is_ = before.host_labels.get(name), after.host_labels.get(name)
        if was is None:
            yield f"host label {name}={is_} is added"
        elif is_ is None:
            yield f"host label {name}={was} is removed"
        elif was != is_:
            yield f"host label {name}={was} becomes {name}={is_}"


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
