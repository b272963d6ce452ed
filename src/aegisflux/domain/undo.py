"""What may come back when something is undone: by a rollback, a panic, or a rollout that takes itself back.

Undoing asks for no second person and for no guardrail, since it has to be quick. Therefore it leads a host
back, and nowhere else: to content that was promoted, or to content that this very host was given before; and
to content that blocks only where the host enforced the service before. Whatever is more than that is a
promotion.

Content is compared by its rules: a copy under a new version has the rules of the version that it brings back,
and a copy that only observes has others.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from aegisflux.domain.errors import Conflict
from aegisflux.domain.rollout import MAX_PROMOTIONS, Assigned, Rollout, Step, promote
from aegisflux.domain.text import first_of

MAX_HAD: Final = 16  # versions of a service that are remembered of a host
MOST_NAMED: Final = 3


class Content(Struct, frozen=True):
    """What a version says: the digest of its rules and mode, and whether it blocks."""

    rules: str
    enforces: bool


class Past(Struct, frozen=True):
    """What a service had.

    contents: the versions that are named anywhere below
    promoted: rules that were promoted, that is approved for every host of the service
    had: of each host the versions that it was given by a post, a promotion or a rollout, oldest first
    spared: hosts on which nothing is ever enforced
    withheld: hosts from which it was withdrawn by name, and that nobody gave it again
    """

    contents: Mapping[int, Content]
    promoted: frozenset[str] = frozenset()
    had: Mapping[str, tuple[int, ...]] = {}
    spared: frozenset[str] = frozenset()
    withheld: frozenset[str] = frozenset()

    def of(self, host: str, without: frozenset[int] = frozenset()) -> tuple[int, ...]:
        """The versions that a host had, oldest first; those of `without` and of their rules do not count."""
        taken = {self.contents[version].rules for version in without if version in self.contents}
        found = (version for version in self.had.get(host, ()) if version in self.contents)
        return tuple(version for version in found if self.contents[version].rules not in taken)

    def enforces(self, version: int | None) -> bool:
        """Whether a version blocks."""
        content = self.contents.get(version) if version is not None else None
        return content is not None and content.enforces


class Undone(Struct, frozen=True):
    """A step that leads back, and the hosts that it leaves alone, each with the reason."""

    step: Step
    kept: Mapping[str, str]


def remembered(had: tuple[int, ...], version: int) -> tuple[int, ...]:
    """What a host had, once it is given one more version: the newest last, at most `MAX_HAD`."""
    return (*(one for one in had if one != version), version)[-MAX_HAD:]


def barred(past: Past, host: str, version: int, without: frozenset[int] = frozenset()) -> str:
    """Why undoing may not lead the host to the version; empty: it may. `without`: what is being undone."""
    content, own = past.contents[version], past.of(host, without)
    if content.rules not in past.promoted and content.rules not in {past.contents[one].rules for one in own}:
        return f"version {version} was neither promoted nor given to it before"
    if not content.enforces:
        return ""
    if host in past.spared:
        return "nothing is enforced on it (limits.never_block)"
    if not any(past.enforces(one) for one in own):
        return "it did not enforce the service before"
    return ""


def roll_back(
    rollout: Rollout, past: Past, source: int, version: int, lease_until: int, running: Collection[str]
) -> Undone:
    """Give the content of `source`, now `version`, to every host that may be led back to it; the others keep
    what they have. Where nothing is ever enforced, what enforces is withdrawn.

    Content that was promoted becomes the stable one again. Content that was not is for the hosts that had it,
    until its lease ends. Raises Conflict when no host may be led back.
    """
    promoted = past.contents[source].rules in past.promoted
    hosts = sorted({*rollout.hosts, *(set(running) - past.withheld if promoted else ())})
    kept = {host: why for host in hosts if (why := barred(past, host, source))}
    given = [host for host in hosts if host not in kept]
    if kept and not given:
        raise Conflict(
            f"service {rollout.service_id}: no host may be led back to version {source} ({told(kept)}); "
            "post it again as a new version, and have it promoted"
        )
    gone = {host for host in kept if host in past.spared and past.enforces(_version(rollout, host))}
    wanted = Assigned(version, lease_until, promoted)
    left = {host: one for host, one in rollout.hosts.items() if host not in gone}
    after = replace(
        rollout,
        latest=max(rollout.latest, version),
        open_version=None,
        open_until=0,
        hosts={**left, **dict.fromkeys(given, wanted)},
    )
    return Undone(
        Step(_stable(after, version) if promoted else after, tuple(sorted([*given, *gone]))),
        {host: why for host, why in kept.items() if host not in gone},
    )


def returns(
    past: Past, hosts: Iterable[str], source: int | None, taken: frozenset[int]
) -> dict[str, int | None]:
    """What comes back on each host when the versions `taken` are taken from it: `source` where undoing may
    lead to it, else the newest of what the host had before, else nothing (None)."""
    first = () if source is None or source not in past.contents else (source,)
    found: dict[str, int | None] = {}
    for host in hosts:
        could = (*first, *reversed(past.of(host, taken)))
        found[host] = next((one for one in could if not barred(past, host, one, taken)), None)
    return found


def take_back(
    rollout: Rollout, past: Past, back: Mapping[str, int | None], copies: Mapping[int, int], lease_until: int,
    source: int | None, promoted: bool,
) -> Step:  # fmt: skip
    """Give each host what comes `back` to it, under the new version that `copies` has for it; from the others
    it is withdrawn. `promoted`: what is taken back was the stable one; then `source` is, if it was promoted.
    """
    given = {host: copies[one] for host, one in back.items() if one is not None}
    renewed = {copies[one] for one in copies if past.contents[one].rules in past.promoted}
    hosts = {host: one for host, one in rollout.hosts.items() if host not in back}
    hosts |= {host: Assigned(version, lease_until, version in renewed) for host, version in given.items()}
    after = replace(rollout, hosts=hosts, latest=max([rollout.latest, *copies.values()]))
    if promoted:
        again = copies.get(source) if source is not None else None
        after = _stable(after, again) if again in renewed else replace(after, stable=None)
    return Step(after, tuple(sorted(back)))


def could_have(rollout: Rollout, now: int, host: str | None = None) -> tuple[int, ...]:
    """The versions that the host has, or that any host has or is given when it joins; the newest first."""
    found: set[int | None] = {one.version for name, one in rollout.hosts.items() if host in (None, name)}
    if host is None:
        found |= {rollout.stable, rollout.open_version if rollout.open_until > now else None}
    return tuple(sorted((version for version in found if version is not None), reverse=True))


def observe(
    rollout: Rollout, version: int, lease_until: int, running: Collection[str], host: str | None = None
) -> Step:
    """Give the version, which blocks nothing, to the host; or to every host of the service, where it becomes
    the stable one if there was one, and open to those that join if another one was. `running`: without those
    that are withheld.
    """
    if host is None and rollout.stable is not None:
        return promote(rollout, version, lease_until, running)
    wanted = Assigned(version, lease_until, rollout.stable is not None)
    given = dict.fromkeys(sorted(rollout.hosts) if host is None else [host], wanted)
    after = replace(rollout, latest=max(rollout.latest, version), hosts={**rollout.hosts, **given})
    if host is None and rollout.open_version is not None:
        after = replace(after, open_version=version, open_until=lease_until)
    return Step(after, tuple(given))


def told(kept: Mapping[str, str]) -> str:
    """Hosts that are left alone, in words: by reason, of each the first few."""
    hosts: dict[str, list[str]] = {}
    for host, why in sorted(kept.items()):
        hosts.setdefault(why, []).append(host)
    return "; ".join(f"{first_of(named, MOST_NAMED)}: {why}" for why, named in hosts.items())


def _stable(rollout: Rollout, version: int) -> Rollout:
    history = (*rollout.promotions, version)[-MAX_PROMOTIONS:]
    return replace(rollout, latest=max(rollout.latest, version), stable=version, promotions=history)


def _version(rollout: Rollout, host: str) -> int | None:
    given = rollout.hosts.get(host)
    return given.version if given else None
