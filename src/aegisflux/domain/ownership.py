"""Who owns which cgroup, while cgroups and selectors come and go: a change costs what it changes.

`selectors.owners` is the meaning; `Ownership` gives the same answer from what it knew before.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from aegisflux.domain.globs import plain_runs
from aegisflux.domain.selectors import Owners, Selector, Verdict, settled
from aegisflux.domain.text import is_printable

PAIRS: Final = 50_000  # of paths and selectors that are compared in one slice: some milliseconds
_SUFFIX: Final = re.compile(r"\.[a-z]+\Z")


class Ownership:
    """The owners of a set of paths; follow it with each new set of paths and selectors, then ask `owners`."""

    def __init__(self) -> None:
        self._services: dict[int, tuple[Selector, ...]] = {}
        self._searched: dict[int, list[tuple[Selector, list[str]]]] = {}
        self._paths: set[str] = set()
        self._claims: dict[str, dict[int, tuple[int, int]]] = {}
        self._claimed: dict[int, set[str]] = {}
        self._settled: dict[str, Verdict] = {}
        self._owners: Owners | None = None

    def follow(self, paths: Collection[str], services: Mapping[int, Sequence[Selector]]) -> Iterator[None]:
        """Take what is now; it stops after each slice of work, and may be left there and begun again."""
        wanted = {service: tuple(selectors) for service, selectors in services.items()}
        for service in [i for i, known in self._services.items() if wanted.get(i) != known]:
            self._drop_service(service)
        live = set(paths)
        for path in self._paths - live:
            self._drop_path(path)
        self._paths &= live
        work = 0
        for service, selectors in wanted.items():
            if service in self._services:
                continue
            self._searched[service] = [(selector, _runs(selector)) for selector in selectors]
            self._claim(service, self._paths)
            self._services[service] = selectors
            work += len(self._paths) * len(selectors)
            if work >= PAIRS:
                work = 0
                yield
        yield from self._add(live - self._paths)

    def owners(self) -> Owners:
        """What `selectors.owners` says of the paths and services that were followed to the end."""
        if self._owners is not None:
            return self._owners
        won: dict[str, int] = {}
        lost: dict[int, list[str]] = {}
        for path in sorted(self._claims):
            verdict = self._settled.get(path)
            if verdict is None:
                claims = sorted((*rank, service) for service, rank in self._claims[path].items())
                verdict = self._settled[path] = settled(path, claims)
            if verdict.owner is not None:
                won[path] = verdict.owner
            for service, text in verdict.lost:
                lost.setdefault(service, []).append(text)
        self._owners = Owners(won, {service: tuple(texts) for service, texts in lost.items()})
        return self._owners

    def _add(self, fresh: Iterable[str]) -> Iterator[None]:
        rest = iter(fresh)
        size = max(1, PAIRS // max(1, sum(map(len, self._services.values()))))
        while some := list(islice(rest, size)):
            for service in self._services:
                self._claim(service, some)
            self._paths.update(some)
            yield

    def _claim(self, service: int, paths: Collection[str]) -> None:
        for selector, runs in self._searched[service]:
            rank = selector.rank
            for path in _selected(selector, runs, paths):
                known = self._claims.setdefault(path, {})
                known[service] = min(rank, known.get(service, rank))
                self._claimed.setdefault(service, set()).add(path)
                self._changed(path)

    def _drop_service(self, service: int) -> None:
        del self._services[service], self._searched[service]
        for path in self._claimed.pop(service, ()):
            del self._claims[path][service]
            if not self._claims[path]:
                del self._claims[path]
            self._changed(path)

    def _drop_path(self, path: str) -> None:
        for service in self._claims.pop(path, ()):
            self._claimed[service].discard(path)
            self._changed(path)

    def _changed(self, path: str) -> None:
        self._settled.pop(path, None)
        self._owners = None


def _runs(selector: Selector) -> list[str]:
    """What each path holds that the selector matches. The first one, a slice that most have, comes last."""
    a_unit = selector.kind == "unit"  # a service also means its socket
    pattern = _SUFFIX.sub("", selector.pattern) if a_unit else selector.pattern
    return plain_runs(pattern)[::-1]


def _selected(selector: Selector, runs: Iterable[str], paths: Collection[str]) -> Iterator[str]:
    """The paths that a selector matches: those only that hold what each of its matches holds are tried."""
    tried: Collection[str] = paths
    for run in runs:
        tried = [path for path in tried if run in path]
    return (path for path in tried if selector.matches(path) and is_printable(path))
