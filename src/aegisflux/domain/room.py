"""What is kept where there is not room for all: cgroups that a host binds, lines of a message."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, TypeVar

from aegisflux.domain.selectors import Selector

K = TypeVar("K")
HEAD_BYTES: Final = 5  # of a text in MessagePack, at most


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


def shares(wanted: Mapping[K, int], room: int) -> dict[K, int]:
    """Return how much of the room each gets: the same for all, but nobody more than it wants."""
    found: dict[K, int] = {}
    for who, much in sorted(wanted.items(), key=lambda item: item[1]):
        found[who] = min(much, room // (len(wanted) - len(found)))
        room -= found[who]
    return found


def listed(lists: Mapping[K, Sequence[str]], most: int, room: int) -> dict[K, tuple[str, ...]]:
    """Return the first lines of each list: at most so many of each, and in all no more bytes than the room of
    a message, of which each list has the same share."""
    sizes = {who: [len(line.encode()) + HEAD_BYTES for line in lines[:most]] for who, lines in lists.items()}
    share = shares({who: sum(found) for who, found in sizes.items()}, max(0, room))
    return {who: tuple(lines[: _prefix(sizes[who], share[who])]) for who, lines in lists.items()}


def _prefix(sizes: Sequence[int], room: int) -> int:
    for count, size in enumerate(sizes):
        room -= size
        if room < 0:
            return count
    return len(sizes)
