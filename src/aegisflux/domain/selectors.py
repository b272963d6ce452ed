"""Which cgroups belong to which service (contracts §2).

Selectors:
  unit:<glob>    the last component of a cgroup path: a systemd unit, wherever its slice lies. Without a
                 suffix `.service` is meant; a `.service` also selects the `.socket` of the same name,
                 because sockets of socket activation belong to that unit
  cgroup:<glob>  the whole path below the v2 root; `*` and `?` stay inside a component, `**` crosses them

Two services on one cgroup: a literal beats a glob, then the longer literal prefix, then the lower id; the
loser is told. The root cgroup is never selected.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from aegisflux.domain.errors import Invalid

MAX_SELECTOR: Final = 512
DEFAULT_SLICE: Final = "system.slice"
_SPECIAL: Final = re.compile(r"[*?\[]")
_UNIT_SUFFIX: Final = re.compile(r"\.(service|socket|slice|scope|mount|timer|swap)$")

Kind = Literal["unit", "cgroup"]


class Selector(NamedTuple):
    """A parsed selector; `pattern` has no leading or trailing slash."""

    kind: Kind
    pattern: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.pattern}"

    @property
    def literal(self) -> bool:
        """Whether it names exactly one unit or path."""
        return _SPECIAL.search(self.pattern) is None

    @property
    def prefix(self) -> int:
        """How many characters stand before the first wildcard."""
        found = _SPECIAL.search(self.pattern)
        return found.start() if found else len(self.pattern)

    def matches(self, path: str) -> bool:
        """Whether the cgroup at `path` (relative to the v2 root) is selected."""
        path = path.strip("/")
        if not path:
            return False
        return (
            _compiled(self).fullmatch(path if self.kind == "cgroup" else path.rpartition("/")[2]) is not None
        )

    def paths(self) -> tuple[str, ...]:
        """Paths that a literal selects wherever nothing else is known: those that can be bound unborn."""
        if not self.literal:
            return ()
        if self.kind == "cgroup":
            return (self.pattern,)
        return tuple(f"{DEFAULT_SLICE}/{name}" for name in _unit_names(self.pattern))


class Owners(NamedTuple):
    """Who owns what: service by path, and for each service what it wanted and lost, in words."""

    services: Mapping[str, int]
    conflicts: Mapping[int, tuple[str, ...]]


def parse_selector(text: str, path: str = "selectors") -> Selector:
    """Read `unit:<glob>` or `cgroup:<glob>`; raises Invalid."""
    kind, colon, pattern = text.partition(":")
    pattern = pattern.strip("/")
    if not colon or kind not in ("unit", "cgroup") or not pattern or len(text) > MAX_SELECTOR:
        raise Invalid(path, "unit:<glob> or cgroup:<glob>, not the root cgroup", text)
    parts = pattern.split("/")
    if any(part in ("", ".", "..") for part in parts) or not pattern.isprintable():
        raise Invalid(path, "a path without empty, . or .. components", text)
    if kind == "unit":
        if len(parts) > 1:
            raise Invalid(path, "the name of a unit, without a slash", text)
        pattern = pattern if _UNIT_SUFFIX.search(pattern) else pattern + ".service"
        return Selector("unit", pattern)
    return Selector("cgroup", pattern)


def owners(paths: Iterable[str], services: Mapping[int, Sequence[Selector]]) -> Owners:
    """The service of each path that any selects."""
    won: dict[str, int] = {}
    lost: dict[int, list[str]] = {}
    for path in sorted(paths):
        claims = sorted(claim for claim in (_claim(i, s, path) for i, s in services.items()) if claim)
        if not claims:
            continue
        won[path] = claims[0][2]
        for _, _, loser in claims[1:]:
            lost.setdefault(loser, []).append(f"{path}: belongs to service {claims[0][2]}")
    return Owners(won, {service: tuple(texts) for service, texts in lost.items()})


def literal_paths(services: Mapping[int, Sequence[Selector]], seen: Iterable[str] = ()) -> dict[str, int]:
    """Paths to be bound the moment they are created: those of literals, and where their units were seen."""
    wanted = {path for chosen in services.values() for selector in chosen for path in selector.paths()}
    for path in seen:
        if any(selector.literal and selector.matches(path) for c in services.values() for selector in c):
            wanted.add(path)
    return dict(owners(wanted, services).services)


def _claim(service: int, selectors: Sequence[Selector], path: str) -> tuple[int, int, int] | None:
    ranks = [(0 if s.literal else 1, -s.prefix) for s in selectors if s.matches(path)]
    return (*min(ranks), service) if ranks else None


def _unit_names(pattern: str) -> tuple[str, ...]:
    if pattern.endswith(".service"):
        return pattern, pattern.removesuffix(".service") + ".socket"
    return (pattern,)


@lru_cache(maxsize=4096)
def _compiled(selector: Selector) -> re.Pattern[str]:
    names = _unit_names(selector.pattern) if selector.kind == "unit" else (selector.pattern,)
    return re.compile("|".join(_regex(name) for name in names))


def _regex(pattern: str) -> str:
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**", i):
            out, i = out + ".*", i + 2
            continue
        char = pattern[i]
        end = pattern.find("]", i + 2) if char == "[" else -1
        if end > 0:
            inside = pattern[i + 1 : end].replace("\\", r"\\")
            inside = "^" + inside[1:] if inside[0] in "!^" else inside
            out, i = out + f"[{inside}]", end + 1
            continue
        out += {"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char))
        i += 1
    return out
