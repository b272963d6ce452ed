"""Questions to the graph: who reaches a service, what a compromise of a host exposes. Edges in, answers out.

Two kinds of edges: what was seen (allowed traffic), and what could be (no snapshot in force on either side
forbids it). A path of several hops is one an intruder could walk, through each service it stops at.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

MAX_HOPS: Final = 8


class Hop(Struct, frozen=True, order=True):
    """One way from an actor to another; `proto` and `port` 0: any. `seen`: traffic went there."""

    start: str
    end: str
    proto: int
    port: int
    seen: bool = True
    last_ns: int = 0


class Reached(Struct, frozen=True):
    """An actor, how far away, and the last step of a shortest way to it."""

    actor: str
    hops: int
    by: Hop


def reaching(target: str, edges: Iterable[Hop], most: int = MAX_HOPS) -> tuple[Reached, ...]:
    """Who reaches the target, nearest first; `by` is the first step of their way."""
    return _walk(target, _index(edges, backwards=True), most, backwards=True)


def exposed(starts: Iterable[str], edges: Iterable[Hop], most: int = MAX_HOPS) -> tuple[Reached, ...]:
    """What is reached from any of the starts, nearest first; `by` is the last step of the way there."""
    index = _index(edges, backwards=False)
    found: dict[str, Reached] = {}
    begun = set(starts)
    for start in sorted(begun):
        for reached in _walk(start, index, most, backwards=False):
            known = found.get(reached.actor)
            if reached.actor not in begun and (known is None or reached.hops < known.hops):
                found[reached.actor] = reached
    return tuple(sorted(found.values(), key=lambda r: (r.hops, r.actor)))


def _index(edges: Iterable[Hop], backwards: bool) -> Mapping[str, list[Hop]]:
    index: dict[str, list[Hop]] = {}
    for edge in sorted(edges, key=lambda e: (not e.seen, e)):
        index.setdefault(edge.end if backwards else edge.start, []).append(edge)
    return index


def _walk(origin: str, index: Mapping[str, list[Hop]], most: int, *, backwards: bool) -> tuple[Reached, ...]:
    found: dict[str, Reached] = {}
    queue = deque([(origin, 0)])
    while queue:
        at, hops = queue.popleft()
        if hops == most:
            continue
        for edge in index.get(at, ()):
            actor = edge.start if backwards else edge.end
            if actor != origin and actor not in found:
                found[actor] = Reached(actor, hops + 1, edge)
                queue.append((actor, hops + 1))
    return tuple(sorted(found.values(), key=lambda r: (r.hops, r.actor)))
