"""Which cgroups a host binds where more are selected than it has room for."""

from collections.abc import Collection, Mapping, Sequence

from aegisflux.domain.selectors import Selector


def fitting(
    owned: Mapping[str, int],
    selectors: Mapping[int, Sequence[Selector]],
    most: int,
    bound: Collection[str] = (),
) -> set[str]:
    """Return the paths that are bound, at most `most`; `owned` says which service each path belongs to.

    First come those that their service names without a wildcard, then the others; among these each service
    has the same share, and what one does not need is the others'. Of its own a service keeps what is `bound`,
    then has what lies nearest to the root: it governs what runs below.
    """
    named: dict[int, list[str]] = {}
    others: dict[int, list[str]] = {}
    for path, service in owned.items():
        exact = any(one.literal and one.matches(path) for one in selectors.get(service, ()))
        (named if exact else others).setdefault(service, []).append(path)
    kept: set[str] = set()
    for group in (named, others):
        share = shares({service: len(paths) for service, paths in group.items()}, most - len(kept))
        for service, paths in group.items():
            paths.sort(key=lambda path: (path not in bound, path.count("/"), path))
            kept.update(paths[: share[service]])
    return kept


def shares(wanted: Mapping[int, int], room: int) -> dict[int, int]:
    """Return how much of the room each gets: the same for all, but nobody more than it wants."""
    found: dict[int, int] = {}
    for who, much in sorted(wanted.items(), key=lambda item: (item[1], item[0])):
        found[who] = min(much, room // (len(wanted) - len(found)))
        room -= found[who]
    return found
