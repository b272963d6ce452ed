"""Which cgroups belong to which service (contracts §2, ADR 0028).

Selectors:
  unit:<glob>    a systemd unit of `system.slice`, `machine.slice` or a slice that the host adds, in that
                 slice or in slices inside of it; never below another directory. Without a suffix
                 `.service` is meant; a `.service` also selects the `.socket` of the same name, because
                 sockets of socket activation belong to that unit. A slice is where its name says:
                 `unit:app-b.slice` is `app.slice/app-b.slice`; a glob finds those inside of what is searched
  cgroup:<glob>  the whole path below the v2 root; `*` and `?` stay inside a component, `**` crosses them

A name identifies a service only where root alone could give it: callers of `owners` leave out what lies below
a delegated directory (`root_only`). Two services on one cgroup: a literal beats a glob, then the longer
literal prefix, then the lower id; the loser is told. The root cgroup is never selected.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from aegisflux.domain.cgroup_paths import EXPECTED, below_mount, misread
from aegisflux.domain.errors import Invalid
from aegisflux.domain.globs import SPECIAL, matcher
from aegisflux.domain.text import is_printable, name_bytes
from aegisflux.domain.units import (
    WITH_CGROUPS,
    default_paths,
    has_place_in,
    is_slice,
    own_place,
    slice_names,
    suffix_of,
    unescaped,
)

MAX_SELECTOR: Final = 512  # bytes of its text
MAX_PATH: Final = 253  # bytes of a path that the kernel knows before it exists (bpf/aegis_maps.h: MAX_PATH)
MAX_DEPTH: Final = 31  # components of a path: the kernel looks no deeper (bpf/aegis_maps.h: MAX_DEPTH)
UNIT_SLICES: Final = ("system.slice", "machine.slice")
_OTHERS_WRITE: Final = 0o022
_PREFIXED: Final = re.compile(r"(unit|cgroup):.")
_SET: Final = re.compile(r"\[.[^\]]*\]")  # of a glob, as `globs` reads it
_NO_UNIT: Final = re.compile(r"[^A-Za-z0-9:_.\\@*?-]")  # of systemd's `unit_name_is_valid`, and wildcards

Kind = Literal["unit", "cgroup"]


class Selector(NamedTuple):
    """A parsed selector; `pattern` has no leading or trailing slash, `unit:` searches the `slices`."""

    kind: Kind
    pattern: str
    slices: tuple[str, ...] = UNIT_SLICES

    def __str__(self) -> str:
        return f"{self.kind}:{self.pattern}"

    @property
    def literal(self) -> bool:
        """Whether it names exactly one unit or path."""
        return SPECIAL.search(self.pattern) is None

    @property
    def prefix(self) -> int:
        """How many characters stand before the first wildcard."""
        found = SPECIAL.search(self.pattern)
        return found.start() if found else len(self.pattern)

    @property
    def rank(self) -> tuple[int, int]:
        """The lowest wins: a literal before a glob, then the longer prefix."""
        return (0 if self.literal else 1, -self.prefix)

    def matches(self, path: str) -> bool:
        """Whether the cgroup at `path` (relative to the v2 root) is selected."""
        path = path.strip("/")
        if self.kind == "cgroup":
            return bool(path) and _compiled(self)(path)
        names = tuple(map(unescaped, path.split("/")))
        if not _compiled(self)(names[-1]):
            return False
        place = own_place(names[-1])
        if not place:
            return not is_slice(names[-1]) and _is_searched(path, self.slices)
        if names == place and self.literal:
            return True
        return any(has_place_in(names, place, tuple(map(unescaped, top.split("/")))) for top in self.slices)

    def paths(self) -> tuple[str, ...]:
        """Paths that a literal selects wherever nothing else is known: those that can be bound unborn."""
        if not self.literal:
            return ()
        if self.kind == "cgroup":
            return (self.pattern,)
        return tuple(path for name in _unit_names(self.pattern) for path in default_paths(name))


def may_meet(one: Selector, other: Selector) -> bool:
    """Whether a cgroup that the one selects may be, or lie below, one that the other selects, or the other
    way round. True where that is not easily told: what stands before the first wildcard decides.
    """
    if one.kind != other.kind:
        return _unit_may_meet(one, other) if one.kind == "unit" else _unit_may_meet(other, one)
    if one.kind == "unit" and one.literal and other.literal:
        return bool({*_unit_names(one.pattern)} & {*_unit_names(other.pattern)})
    first, second = (found.pattern[: found.prefix] + "/" * found.literal for found in (one, other))
    return first.startswith(second) or second.startswith(first)


def _unit_may_meet(unit: Selector, path: Selector) -> bool:
    """A unit lies in slices, so a path meets it at a component of its name, or in a slice above it."""
    *above, last = path.pattern[: path.prefix].split("/")
    head = unit.pattern[: unit.prefix]
    if any(part.startswith(head) for part in above):
        return True
    if path.literal:
        return is_slice(last) or last.startswith(head)
    slices = above[-1].removesuffix(".slice") + "-" if above else ""
    return any(last.startswith(start) or start.startswith(last) for start in (head, slices))


class Owners(NamedTuple):
    """Who owns what: service by path, and for each service what it wanted and lost, in words."""

    services: Mapping[str, int]
    conflicts: Mapping[int, tuple[str, ...]]


class Verdict(NamedTuple):
    """Who owns one path, None where nobody can, and which services wanted it and lost it, in words."""

    owner: int | None
    lost: Sequence[tuple[int, str]]


def root_only(uid: int, mode: int, roots: Collection[int] = (0,)) -> bool:
    """Whether a directory or file of this owner and mode is written by root alone.

    Where a file system has ACLs, the mode's group bits are their mask, so they are in here too.
    """
    return uid in roots and not mode & _OTHERS_WRITE


def parse_selector(text: str, path: str = "selectors", slices: Sequence[str] = UNIT_SLICES) -> Selector:
    """Read `unit:<glob>` or `cgroup:<glob>`; raises Invalid, also for what can never match.

    Its limits are the kernel's, in bytes: what this accepts can be bound on a host.
    """
    selector = parse_stored_selector(text, path, slices)
    _check_matchable(selector, path, text)
    return selector


def parse_stored_selector(
    text: str, path: str = "selectors", slices: Sequence[str] = UNIT_SLICES
) -> Selector:
    """As `parse_selector`, and what was stored before selectors that never match were refused."""
    kind, colon, pattern = text.partition(":")
    pattern = pattern.strip("/")
    if not colon or kind not in ("unit", "cgroup") or not pattern:
        raise Invalid(path, "unit:<glob> or cgroup:<glob>, not the root cgroup", text)
    parts = pattern.split("/")
    if any(part in ("", ".", "..") for part in parts) or not is_printable(pattern) or " " in pattern:
        raise Invalid(path, "a path of printable characters without spaces, empty, . or .. components", text)
    if kind == "unit":
        if len(parts) > 1:
            raise Invalid(path, "the name of a unit, without a slash", text)
        return _checked(Selector("unit", _unit_pattern(pattern, path, text), tuple(slices)), path, text)
    return _checked(Selector("cgroup", pattern), path, text)


def never_matches(text: str) -> str:
    """What was expected instead of a stored selector that a new service may not have, else empty."""
    try:
        parse_selector(text)
    except Invalid as error:
        return error.expected
    return ""


def slice_of(text: str, path: str = "unit_slices") -> str:
    """A slice in which `unit:` is to look, by its path below the v2 root; raises Invalid.

    A path of the file system is that of its cgroup, and a slice at the root is where systemd has it:
    `kubepods-burstable.slice` is `kubepods.slice/kubepods-burstable.slice`.
    """
    inside = below_mount(text)
    selector = parse_selector(f"cgroup:{text if inside is None else inside}", path)
    *folders, name = selector.pattern.split("/")
    place = slice_names(name)
    if not selector.literal or not is_slice(name) or not place:
        raise Invalid(path, "the path of a slice, such as kubepods.slice", text)
    if folders and is_slice(folders[-1]) and folders[-1] != (place[-2:-1] or folders[-1:])[0]:
        raise Invalid(path, f"the path of a slice, which systemd has at {'/'.join(place)}", text)
    return selector.pattern if folders else "/".join(place)


def _check_matchable(selector: Selector, path: str, text: str) -> None:
    """Raises Invalid for a selector that no cgroup can ever have, with what to write."""
    pattern = selector.pattern
    if selector.kind == "cgroup":
        if wrong := misread(pattern):
            selected = _PREFIXED.match(pattern)
            write = pattern if selected else f"cgroup:{wrong.meant}" if wrong.meant else ""
            raise Invalid(
                path, f"{EXPECTED}, not {wrong.kind}" + (f" (write {write})" if write else ""), text
            )
        return
    if odd := _NO_UNIT.search(_SET.sub("", pattern)):
        raise Invalid(
            path,
            f"the name of one unit as systemctl shows it, in which no {odd[0]} can be: write a selector for "
            "each unit, and as wildcards * ? [a-z] or [!a-z]",
            text,
        )
    name, _, suffix = pattern.rpartition(".")
    template = name.removesuffix("@")
    if not template or template.startswith("@"):
        raise Invalid(path, "the name of a unit, such as nginx or web@1", text)
    if template != name:
        raise Invalid(
            path,
            f"a unit that runs, not a template: write unit:{template}@*.{suffix} for all its instances, or "
            f"unit:{template}@1.{suffix} for one",
            text,
        )


def _unit_pattern(pattern: str, path: str, text: str) -> str:
    """With a suffix; raises Invalid for a unit that has no cgroup."""
    suffix = suffix_of(pattern)
    if suffix is None:
        return pattern + ".service"
    if suffix not in WITH_CGROUPS:
        kinds, meant = ", ".join(WITH_CGROUPS), f"unit:{pattern}.service"
        raise Invalid(
            path, f"a unit with processes ({kinds}; for a service of this name write {meant})", text
        )
    if suffix == "slice" and SPECIAL.search(pattern) is None and not slice_names(pattern):
        raise Invalid(
            path, "the name of a slice, such as app-web.slice, not that of the root or a template", text
        )
    return pattern


def _checked(selector: Selector, path: str, text: str) -> Selector:
    """Raises Invalid for what is too long for the kernel, and for a glob that is none."""
    if len(text.encode()) > MAX_SELECTOR:
        raise Invalid(path, f"at most {MAX_SELECTOR} bytes", f"{len(text.encode())} bytes: {text}")
    for wanted in selector.paths():
        if why := too_long(wanted):
            raise Invalid(path, why, text)
    try:
        _compiled(selector)
    except Invalid as error:
        raise Invalid(path, error.expected, text) from None
    return selector


def too_long(path: str) -> str:
    """What was expected of a path that the kernel cannot know by its name, empty where it can."""
    size, depth = len(name_bytes(path)), path.count("/") + 1
    if size > MAX_PATH:
        return f"a cgroup path of at most {MAX_PATH} bytes, not {size}"
    return f"a cgroup path of at most {MAX_DEPTH} components, not {depth}" if depth > MAX_DEPTH else ""


def owners(paths: Iterable[str], services: Mapping[int, Sequence[Selector]]) -> Owners:
    """The service of each path that any selects.

    A path whose name is no printable text is never selected: no selector can say it, and what runs there
    belongs to the nearest selected cgroup above. One that lies deeper than the kernel looks is lost by its
    service.
    """
    won: dict[str, int] = {}
    lost: dict[int, list[str]] = {}
    for path in sorted(paths):
        if not is_printable(path):
            continue
        claims = sorted(claim for claim in (_claim(i, s, path) for i, s in services.items()) if claim)
        if not claims:
            continue
        verdict = settled(path, claims)
        if verdict.owner is not None:
            won[path] = verdict.owner
        for loser, text in verdict.lost:
            lost.setdefault(loser, []).append(text)
    return Owners(won, {service: tuple(texts) for service, texts in lost.items()})


def settled(path: str, claims: Sequence[tuple[int, int, int]]) -> Verdict:
    """Who gets a path that the services with these claims (rank and id, the first wins) select."""
    owner = claims[0][2]
    if path.count("/") >= MAX_DEPTH:
        return Verdict(None, [(owner, f"{path}: has more than {MAX_DEPTH} components")])
    return Verdict(owner, [(loser, f"{path}: belongs to service {owner}") for _, _, loser in claims[1:]])


def unborn_paths(
    services: Mapping[int, Sequence[Selector]], seen: Iterable[str] = (), delegated: Collection[str] = ()
) -> set[str]:
    """Paths to be bound to their `owners` the moment they are created: those of literals, and `seen` ones.

    So a unit that is restarted runs open at no time, also where a glob selects it. None lies below a
    directory in `delegated`: there somebody else than root creates.
    """
    wanted = {path for chosen in services.values() for selector in chosen for path in selector.paths()}
    wanted.update(seen)
    return {path for path in wanted if not below(path, delegated)}


def unselected(path: str, selectors: Sequence[Selector], delegated: Collection[str] = ()) -> str:
    """Why a path is selected by none of these, and what to do, in words that begin with the path."""
    parts = path.split("/")
    if why := named_by_others(path, delegated):
        return f"{path}: {why}, or select the directory itself"
    units = [s for s in selectors if s.kind == "unit" and _compiled(s)(parts[-1].removeprefix("_"))]
    if not units:
        return f"{path}: no selector of the service matches it: correct its selectors"
    where = " and ".join(units[0].slices)
    if any(path.startswith(top + "/") for top in units[0].slices):
        return f"{path}: {units[0]} looks below no other unit: select it by cgroup:{path}"
    home = next(("/".join(parts[:n]) for n in range(1, len(parts)) if parts[n - 1].endswith(".slice")), "")
    adds = f"add {home} to unit_slices of this agent, or " if home else ""
    return f"{path}: {units[0]} looks in {where} only: {adds}select it by cgroup:{path}"


def named_by_others(path: str, delegated: Collection[str]) -> str | None:
    """Why a path names no cgroup that root vouches for, and what to do; None where root alone names it."""
    if not below(path, delegated):
        return None
    parts = path.split("/")
    folders = ("/".join(parts[:n]) for n in range(len(parts)))
    folder = next(f for f in folders if f in delegated)
    what = "it lies below a directory that others than root write"
    return f"{what} ({folder or '/'}): give that to root alone"


def below(path: str, folders: Collection[str]) -> bool:
    """Whether a path lies below (and is not itself) one of these; "" is the root."""
    if not folders:
        return False
    parts = path.split("/")
    return any("/".join(parts[:n]) in folders for n in range(len(parts)))


def _claim(service: int, selectors: Sequence[Selector], path: str) -> tuple[int, int, int] | None:
    ranks = [s.rank for s in selectors if s.matches(path)]
    return (*min(ranks), service) if ranks else None


def _unit_names(pattern: str) -> tuple[str, ...]:
    if pattern.endswith(".service"):
        return pattern, pattern.removesuffix(".service") + ".socket"
    return (pattern,)


def _is_searched(path: str, slices: Sequence[str]) -> bool:
    """Whether nothing but slices is between one of these and the path: what else has directories inside is a
    unit, or a container with units of its own."""
    return any(
        path.startswith(top + "/") and all(map(is_slice, path[len(top) + 1 :].split("/")[:-1]))
        for top in slices
    )


@lru_cache(maxsize=4096)
def _compiled(selector: Selector) -> Callable[[str], bool]:
    names = _unit_names(selector.pattern) if selector.kind == "unit" else (selector.pattern,)
    if selector.literal:
        return frozenset(names).__contains__
    every = [matcher(name) for name in names]
    return lambda text: any(matches(text) for matches in every)
