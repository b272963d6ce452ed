"""Guardrails: what no plan may do, however good it looks. Each is one function with one limit.

A guardrail answers in words whether it holds; `checked` asks all of them. Who may pass one by hand, and how
that is written down, is not decided here. The failsafe is none of them: no snapshot takes it away.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

from msgspec import Meta, Struct

from aegisflux.domain.errors import Invalid
from aegisflux.domain.names import check_label

Share = Annotated[float, Meta(gt=0, le=1)]
Labels = Mapping[str, str | tuple[str, ...]]
MINUTES_A_DAY: Final = 1440
SECONDS_A_DAY: Final = 86_400
EPOCH_WEEKDAY: Final = 3  # 1 January 1970 was a Thursday; Monday is 0


class MaintenanceWindow(Struct, frozen=True):
    """When changes may begin: minutes of a UTC day from `start` up to, and without, `end`; Monday is 0."""

    weekdays: frozenset[Annotated[int, Meta(ge=0, le=6)]]
    start: Annotated[int, Meta(ge=0, lt=MINUTES_A_DAY)] = 0
    end: Annotated[int, Meta(gt=0, le=MINUTES_A_DAY)] = MINUTES_A_DAY


_CLOCK: Final = re.compile(r"([01]?[0-9]|2[0-4]):([0-5][0-9])")
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def parse_window(text: str) -> MaintenanceWindow:
    """Of "mon-fri 08:00-17:00" or "sat 22:00-24:00"; raises Invalid."""
    wrong = Invalid("windows", 'a window such as "mon-fri 08:00-17:00" (UTC)', text)
    days, _, times = text.strip().lower().partition(" ")
    first, _, last = days.partition("-")
    if first not in DAYS or (last or first) not in DAYS:
        raise wrong
    begin, end = DAYS.index(first), DAYS.index(last or first)
    weekdays = range(begin, end + 1 if end >= begin else end + 8)
    start, _, stop = times.strip().partition("-")
    clocks = [_CLOCK.fullmatch(clock) for clock in (start, stop)]
    found = [int(clock[1]) * 60 + int(clock[2]) for clock in clocks if clock]
    if len(found) != 2 or not 0 <= found[0] < found[1] <= MINUTES_A_DAY:
        raise wrong
    return MaintenanceWindow(frozenset(day % 7 for day in weekdays), *found)


class Limits(Struct, frozen=True, kw_only=True):
    """The limits of a fleet. `never_block`: labels of hosts on which nothing is enforced, matched exactly; of
    one name one value, or several.

    windows: empty: at any time
    """

    never_block: Labels = {}
    most_of_fleet: Share = 0.25
    most_of_service: Share = 0.5
    ttl_seconds: int = 7 * SECONDS_A_DAY
    changes_an_hour: int = 20
    windows: tuple[MaintenanceWindow, ...] = ()

    @property
    def marks(self) -> frozenset[tuple[str, str]]:
        """The labels of `never_block`, one by one."""
        return frozenset((name, value) for name, of in self.never_block.items() for value in _values(of))

    def check_labels(self, path: str) -> None:
        """Raise Invalid by path for a label of `never_block` that no host can have as its reader sees it."""
        for name, value in sorted(self.marks):
            check_label(path, name, value)


OPEN: Final = Limits(most_of_fleet=1, most_of_service=1, ttl_seconds=1 << 40, changes_an_hour=1 << 40)


class Wave(Struct, frozen=True, kw_only=True):
    """What is about to happen to some hosts at once.

    hosts: the hosts whose enforcement changes
    labels: of every host of the fleet, by host, from the trusted inventory
    members: the hosts of each service that changes
    enforces: whether anything of it blocks; observing alone touches nobody
    widens: whether something becomes allowed that was not
    changes_before: changes of the last hour
    """

    hosts: frozenset[str]
    labels: Mapping[str, Mapping[str, str]]
    members: Mapping[str, frozenset[str]]
    ttl_seconds: int
    now: int
    author: str
    approvers: frozenset[str] = frozenset()
    enforces: bool = True
    widens: bool = False
    changes_before: int = 0


class Held(Struct, frozen=True):
    """A guardrail that does not hold: its name, its limit, what came, and which object."""

    guardrail: str
    limit: str
    got: str
    about: str

    def __str__(self) -> str:
        return f"{self.guardrail}: {self.about}: expected {self.limit}, got {self.got}"


def never_block(wave: Wave, limits: Limits) -> Held | None:
    """No host that bears one of the labels is enforced upon."""
    if not wave.enforces:
        return None
    forbidden = limits.marks
    marked = sorted(host for host in wave.hosts if forbidden & set(wave.labels.get(host, {}).items()))
    return Held("never_block", "no host", f"{len(marked)}", ", ".join(marked)) if marked else None


def most_of_fleet(wave: Wave, limits: Limits) -> Held | None:
    """A wave touches at most this share of all hosts, and may always touch one."""
    return _share("most_of_fleet", limits.most_of_fleet, len(wave.hosts), len(wave.labels), "the fleet")


def most_of_service(wave: Wave, limits: Limits) -> Held | None:
    """A wave touches at most this share of the hosts of each service, and may always touch one."""
    for service, members in sorted(wave.members.items()):
        touched = len(wave.hosts & members)
        held = _share("most_of_service", limits.most_of_service, touched, len(members), f"service {service}")
        if held:
            return held
    return None


def ttl(wave: Wave, limits: Limits) -> Held | None:
    """A lease is not longer than the fleet wants to wait for a control plane that is gone."""
    if wave.ttl_seconds <= limits.ttl_seconds:
        return None
    return Held("ttl", f"at most {limits.ttl_seconds} s", f"{wave.ttl_seconds} s", "the lease")


def change_budget(wave: Wave, limits: Limits) -> Held | None:
    """So many changes an hour; more at once is a mistake, or somebody else's work."""
    if wave.changes_before < limits.changes_an_hour:
        return None
    return Held(
        "change_budget", f"at most {limits.changes_an_hour} an hour", f"{wave.changes_before + 1}", "changes"
    )


def maintenance_window(wave: Wave, limits: Limits) -> Held | None:
    """Changes begin only when somebody is there; taking enforcement back is no wave and needs none."""
    day, minute = wave.now // SECONDS_A_DAY + EPOCH_WEEKDAY, wave.now % SECONDS_A_DAY // 60
    if not limits.windows or any(
        day % 7 in window.weekdays and window.start <= minute < window.end for window in limits.windows
    ):
        return None
    at = f"weekday {day % 7}, {minute // 60:02}:{minute % 60:02} UTC"
    return Held("maintenance_window", "a time in its windows", at, "the wave")


def second_person(wave: Wave, _limits: Limits) -> Held | None:
    """What allows more needs an approver who is not its author."""
    if not wave.widens or wave.approvers - {wave.author}:
        return None
    return Held("second_person", "an approver beside its author", f"{wave.author} alone", "the plan")


GUARDRAILS: Final = (
    never_block,
    most_of_fleet,
    most_of_service,
    ttl,
    change_budget,
    maintenance_window,
    second_person,
)


def within(asked: Limits, fleet: Limits) -> Limits:
    """What a plan asks for, as far as the fleet lets it: of each limit the narrower one, of
    labels all."""
    return Limits(
        never_block=_both(asked.never_block, fleet.never_block),
        most_of_fleet=min(asked.most_of_fleet, fleet.most_of_fleet),
        most_of_service=min(asked.most_of_service, fleet.most_of_service),
        ttl_seconds=min(asked.ttl_seconds, fleet.ttl_seconds),
        changes_an_hour=min(asked.changes_an_hour, fleet.changes_an_hour),
        windows=fleet.windows or asked.windows,
    )


def checked(wave: Wave, limits: Limits) -> tuple[Held, ...]:
    """All guardrails that do not hold, in their order; empty: go on."""
    return tuple(held for guardrail in GUARDRAILS if (held := guardrail(wave, limits)))


def waves(
    hosts: Sequence[str], members: Mapping[str, frozenset[str]], fleet: int, limits: Limits
) -> list[list[str]]:
    """The hosts in waves that pass both share guardrails, each as full as can be, in their order."""
    found: list[list[str]] = []
    left = list(hosts)
    most = max(1, int(limits.most_of_fleet * fleet))
    room = {service: max(1, int(limits.most_of_service * len(own))) for service, own in members.items()}
    while left:
        wave: list[str] = []
        touched: Counter[str] = Counter()
        for host in left:
            of = [service for service, own in members.items() if host in own]
            if len(wave) < most and all(touched[service] < room[service] for service in of):
                wave.append(host)
                touched.update(of)
        found.append(wave)
        taken = set(wave)
        left = [host for host in left if host not in taken]
    return found


def _values(of: str | tuple[str, ...]) -> tuple[str, ...]:
    return (of,) if isinstance(of, str) else of


def _both(one: Labels, other: Labels) -> Labels:
    """The labels of both; a name that both have gets the values of both."""
    found = {**other, **one}
    for name in one.keys() & other.keys():
        own = _values(one[name])
        more = tuple(value for value in _values(other[name]) if value not in own)
        found[name] = (*own, *more) if more else one[name]
    return found


def _share(name: str, limit: float, touched: int, of: int, about: str) -> Held | None:
    if touched <= max(1, int(limit * of)):
        return None
    return Held(name, f"at most {limit:.0%} of its {of} hosts", f"{touched}", about)
