"""Which host is to run which version of a service: posted, promoted, rolled back, withdrawn.

Pure: every step takes a `Rollout` and gives the next one with the hosts whose manifest changes. A posted
version ends
with its lease; a promoted one is renewed (`Assigned.renewed`) until it is superseded.
Versions on a host only rise.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from aegisflux.domain.errors import Conflict, NotFound

MAX_PROMOTIONS: Final = 32


class Assigned(Struct, frozen=True):
    """The version that a host is to run, until when (seconds since the epoch), and whether its lease is
    renewed.
    """

    version: int
    lease_until: int
    renewed: bool


class Rollout(Struct, frozen=True):
    """`latest` is the highest version stored (0: none), `stable` the promoted one.

    `open_version` was posted to every host of the service; a host that begins to run the service before
    `open_until` gets it. `promotions` are the versions promoted, oldest first.
    """

    service_id: int
    latest: int = 0
    stable: int | None = None
    promotions: tuple[int, ...] = ()
    open_version: int | None = None
    open_until: int = 0
    hosts: Mapping[str, Assigned] = {}

    def on(self, version: int) -> tuple[str, ...]:
        """The hosts that are to run the version, by name."""
        return tuple(sorted(host for host, given in self.hosts.items() if given.version == version))


class Step(Struct, frozen=True):
    """What holds afterwards, and the hosts whose desired state changes, by name."""

    rollout: Rollout
    changed: tuple[str, ...]


class StaleVersion(Conflict):
    """A posted version does not rise; the answer names the current and the next one."""

    def __init__(self, service_id: int, version: int, current: int) -> None:
        self.current, self.following = current, current + 1
        super().__init__(
            f"service {service_id}: version {version} does not follow version {current}; "
            f"the next version is {current + 1}"
        )


def check_version(rollout: Rollout, version: int, digest: str, latest_digest: str | None) -> bool:
    """Whether the version is new; False when it is the latest one with the same digest; raises
    StaleVersion.
    """
    if version > rollout.latest:
        return True
    if version == rollout.latest and digest == latest_digest:
        return False
    raise StaleVersion(rollout.service_id, version, rollout.latest)


def post(
    rollout: Rollout, version: int, lease_until: int, targets: Iterable[str] | None, running: Collection[str]
) -> Step:
    """Give the version to the targets, or to every host that runs the service when `targets` is None.

    A host that is to run it already keeps its lease: the same post again changes nothing.
    """
    wanted = Assigned(version, lease_until, False)
    chosen = sorted(set(running if targets is None else targets))
    changed = tuple(host for host in chosen if _version(rollout, host) != version)
    hosts = {**rollout.hosts, **dict.fromkeys(changed, wanted)}
    after = replace(rollout, latest=max(rollout.latest, version), hosts=hosts)
    if targets is None and rollout.open_version != version:
        after = replace(after, open_version=version, open_until=lease_until)
    return Step(after, changed)


def promotable(rollout: Rollout, version: int | None) -> int:
    """The version that a promotion means; raises NotFound or Conflict, saying what to do instead."""
    wanted = rollout.latest if version is None else version
    if not 0 < wanted <= rollout.latest:
        raise NotFound(
            f"service {rollout.service_id}: there is no version {wanted or ''} to promote".rstrip()
        )
    newest = max((given.version for given in rollout.hosts.values()), default=0)
    if wanted < max(newest, rollout.stable or 0):
        raise Conflict(
            f"service {rollout.service_id}: version {wanted} is older than version "
            f"{max(newest, rollout.stable or 0)}, which hosts have; roll back instead"
        )
    return wanted


def promote(
    rollout: Rollout, version: int, lease_until: int, running: Collection[str],
    spared: Collection[str] = (),
) -> Step:  # fmt: skip
    """Give the version to all hosts that run the service or have one of it, and renew it from now on. Those
    that are `spared` keep what they have."""
    wanted = Assigned(version, lease_until, True)
    hosts = dict.fromkeys(sorted({*running, *rollout.hosts} - set(spared)), wanted)
    kept = {host: rollout.hosts[host] for host in hosts if _holds(rollout, host, version)}
    changed = tuple(host for host in hosts if host not in kept)
    history = rollout.promotions if rollout.stable == version else (*rollout.promotions, version)
    after = replace(
        rollout,
        latest=max(rollout.latest, version),
        stable=version,
        promotions=history[-MAX_PROMOTIONS:],
        open_version=None,
        open_until=0,
        hosts={**rollout.hosts, **hosts, **kept},
    )
    return Step(after, changed)


def rollback_target(rollout: Rollout, to_version: int | None) -> int:
    """The version whose content is to come back; raises NotFound or Conflict.

    Without a wish: the stable one while some host has another, else the one promoted before it.
    """
    if to_version is not None:
        if not 0 < to_version <= rollout.latest:
            raise NotFound(f"service {rollout.service_id}: there is no version {to_version}")
        return to_version
    stable = rollout.stable
    if stable is not None and (_strays(rollout) or rollout.open_version is not None):
        return stable
    earlier = [version for version in rollout.promotions if version != stable]
    if stable is None or not earlier:
        raise Conflict(
            f"service {rollout.service_id}: nothing was promoted before; name to_version, or withdraw"
        )
    return earlier[-1]


def withdraw(rollout: Rollout, targets: Iterable[str] | None) -> Step:
    """Take the service's snapshot from the targets, or from everywhere: what is promoted ends too."""
    gone = set(rollout.hosts) if targets is None else rollout.hosts.keys() & set(targets)
    after = replace(rollout, hosts={h: given for h, given in rollout.hosts.items() if h not in gone})
    if targets is None:
        after = replace(after, stable=None, open_version=None, open_until=0)
    return Step(after, tuple(sorted(gone)))


def joined(rollout: Rollout, hosts: Iterable[str], now: int, stable_ttl: int) -> Step:
    """Hosts began to run the service: they get what is open to all, else what is stable, else nothing; those
    that have a version keep it.
    """
    if rollout.open_version is not None and rollout.open_until > now:
        given = Assigned(rollout.open_version, rollout.open_until, False)
    elif rollout.stable is not None:
        given = Assigned(rollout.stable, now + stable_ttl, True)
    else:
        return Step(rollout, ())
    fresh = tuple(sorted({host for host in hosts if host not in rollout.hosts}))
    if not fresh:
        return Step(rollout, ())
    return Step(replace(rollout, hosts={**rollout.hosts, **dict.fromkeys(fresh, given)}), fresh)


def runs(host_labels: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a host with `labels` runs a service for `host_labels`; a service without them names no host."""
    return bool(host_labels) and all(labels.get(name) == value for name, value in host_labels.items())


class Labelled:
    """Hosts by their labels: which of them run a service, found without a look at every host."""

    def __init__(self, labels: Mapping[str, Mapping[str, str]]) -> None:
        self._hosts: dict[tuple[str, str], set[str]] = defaultdict(set)
        for host, given in labels.items():
            for item in given.items():
                self._hosts[item].add(host)

    def running(self, host_labels: Mapping[str, str]) -> set[str]:
        """Return the hosts for which `runs` holds."""
        found = sorted((self._hosts.get(item, set()) for item in host_labels.items()), key=len)
        return set.intersection(*found) if found else set()


def _version(rollout: Rollout, host: str) -> int | None:
    given = rollout.hosts.get(host)
    return given.version if given else None


def _holds(rollout: Rollout, host: str, version: int) -> bool:
    given = rollout.hosts.get(host)
    return given is not None and given.version == version and given.renewed


def _strays(rollout: Rollout) -> bool:
    return any(given.version != rollout.stable for given in rollout.hosts.values())
