"""Keeps the cgroups of the host bound to services, as selectors and the live tree say."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from aegisflux.agent.parts import Parts
from aegisflux.domain.converge import Holding
from aegisflux.domain.errors import AegisError, Invalid
from aegisflux.domain.manifest import HostManifest
from aegisflux.domain.ownership import Ownership
from aegisflux.domain.room import fitting
from aegisflux.domain.selectors import (
    UNIT_SLICES,
    Owners,
    Selector,
    below,
    never_matches,
    parse_stored_selector,
    unborn_paths,
    unselected,
)
from aegisflux.domain.text import printable
from aegisflux.ports.datapath import Binding

GONE_KEPT: Final = 1024
SEEN_KEPT: Final = 1024
MAX_BINDINGS: Final = 8192
ENDED: Final = object()
SHOWN, SHOWN_PATH, LOGGED = 80, 255, 8


class Binder:
    """`cgroups` are the bound paths of each service, `unbound` counts what is selected and not bound,
    `conflicts` says in words what each wanted and did not get.

    Each selector, path and binding is taken by itself: one that is refused costs its own service only, which
    says so. Bindings of removed cgroups stay while their service does, up to 1,024: sockets may outlive a
    cgroup. Those of cgroups below a directory that others than root write do not.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._selectors: dict[int, tuple[Selector, ...]] = {}
        self._unreadable: dict[int, tuple[str, ...]] = {}
        self._refused: dict[str, str] = {}
        self._living, self._to_come = Ownership(), Ownership()
        self._unborn: dict[str, int] = {}
        self._bound: dict[int, Binding] = {}
        self._gone: OrderedDict[int, Binding] = OrderedDict()
        self._literals: dict[str, int] | None = None
        self._slots: dict[int, int] = {}
        self._first = True
        self._delegated: frozenset[str] | None = None
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._cut: set[int] = set()
        self.cgroups: dict[int, tuple[str, ...]] = {}
        self.unbound: dict[int, int] = {}
        self.conflicts: dict[int, tuple[str, ...]] = {}

    def follow(self, manifest: HostManifest) -> None:
        """Take the selectors of a manifest; one that cannot be read selects nothing and is said."""
        self._selectors, before, self._unreadable = {}, self._unreadable, {}
        slices = (*UNIT_SLICES, *self._parts.settings.unit_slices)
        for service in manifest.services:
            chosen: list[Selector] = []
            unreadable: list[str] = []
            for text in service.selectors:
                try:
                    chosen.append(parse_stored_selector(text, slices=slices))
                    if why := never_matches(text):
                        unreadable.append(
                            f"{printable(text)[:SHOWN]}: new services may not have it: expected {why}"
                        )
                except Invalid as error:
                    unreadable.append(f"{printable(text)[:SHOWN]}: selects nothing: {error}")
            self._selectors[service.service_id] = tuple(chosen)
            self._unreadable[service.service_id] = tuple(unreadable)
            for line in set(unreadable) - set(before.get(service.service_id, ())):
                self._parts.log(f"service {service.service_id}: {line}")

    async def bind(self, holdings: dict[int, Holding], *, anew: bool = False) -> bool:
        """Compare the tree with what is bound, and bind; whether anything changed. `anew` binds again all."""
        tree = await self._parts.cgroups.scan()
        own = self._parts.cgroups.own
        paths = [p for p in tree if own is None or not (p == own or p.startswith(own + "/"))]
        services = {i: s for i, s in self._selectors.items() if i in holdings}
        owned = await self._owners(self._living, paths, services)
        slots = self._slots = {i: holdings[i].slot for i in services}
        wanted = {tree[p]: Binding(tree[p], p, slots[i]) for p, i in owned.services.items()}
        self._note(owned.services)
        self._remember_gone(wanted, set(tree.values()), set(slots.values()))
        over = await self._over(owned.services, services)
        every = {n: b for n, b in wanted.items() if b.path not in over}
        room = max(0, MAX_BINDINGS - len(every))
        every |= {b.cgroup_id: b for b in list(self._gone.values())[:room]}
        changed = False
        await self._tell_withdrawn(every, over, tree, set(slots.values()))
        delegated = self._parts.cgroups.delegated  # then failsafe rules are judged again, by `Datapath.bind`
        if (
            every != self._bound or delegated != self._delegated or anew
        ):  # what runs comes before what may come
            await self._each(self._parts.datapath.bind, list(every.values()))
            refused = self._parts.datapath.refusals()
            held = {n: b for n, b in every.items() if b.path not in refused}
            changed = anew or held != self._bound
            self._bound, self._delegated = held, delegated
        changed |= await self._bind_literals(services, slots, anew=anew)
        self._claim(owned.services, tree)
        self._say(owned, over)
        return changed

    async def _over(
        self, owned: Mapping[str, int], services: Mapping[int, Sequence[Selector]]
    ) -> dict[str, int]:
        """The selected cgroups for which there is no room, and whose they are."""
        if len(owned) <= MAX_BINDINGS:
            return {}
        bound = {binding.path for binding in self._bound.values()}
        kept = await self._parts.blocking(fitting, owned, services, MAX_BINDINGS, bound)
        return {path: service for path, service in owned.items() if path not in kept}

    def _claim(self, owned: Mapping[str, int], tree: Mapping[str, int]) -> None:
        """Say of each service what is bound, and of how many of its cgroups that nothing is."""
        found: dict[int, list[str]] = {}
        unbound = Counter[int]()
        for path, service in owned.items():
            if tree[path] in self._bound:
                found.setdefault(service, []).append(path)
            else:
                unbound[service] += 1
        self.cgroups = {service: tuple(paths) for service, paths in found.items()}
        self.unbound = dict(unbound)

    def binds(self, binding: Binding) -> bool:
        """Whether this cgroup is bound to a service now."""
        return binding.cgroup_id in self._bound

    def why_not(self, service: int, path: str) -> str:
        """Why a cgroup that lives is not this service's, and what to do."""
        chosen, delegated = self._selectors.get(service, ()), self._parts.cgroups.delegated
        return printable(unselected(path, chosen, delegated))

    async def _tell_withdrawn(
        self,
        every: Mapping[int, Binding],
        over: Collection[str],
        tree: Mapping[str, int],
        slots: set[int],
    ) -> None:
        """Tell of each cgroup that lives and that its service, which is here still, selects no more."""
        before = dict(self._bound)
        if self._first:
            self._first = False
            before |= {b.cgroup_id: b for b in await self._parts.blocking(self._parts.datapath.former, False)}
            known = set(before)
        else:
            known = set(tree.values())
        delegated = self._parts.cgroups.delegated
        services = {slot: number for number, slot in self._slots.items()}
        lines = [
            f"service {services[b.slot]}: no longer enforced: {self.why_not(services[b.slot], b.path)}"
            for number, b in before.items()
            if number not in every
            and b.path not in over
            and b.slot in slots
            and (number in known or below(b.path, delegated))
        ]
        for line in lines[:LOGGED]:
            self._parts.log(line)
        if len(lines) > LOGGED:
            self._parts.log(f"{len(lines) - LOGGED} more cgroups are no longer enforced")

    async def _owners(
        self, known: Ownership, paths: Collection[str], services: dict[int, tuple[Selector, ...]]
    ) -> Owners:
        """Who owns the paths. Only a little is compared on the loop: a host may have very many cgroups."""
        steps = known.follow(paths, services)
        if next(steps, ENDED) is not ENDED:
            while await self._parts.blocking(next, steps, ENDED) is not ENDED:
                pass
        return known.owners()

    async def _each(self, call: Callable[[Any], None], items: object) -> None:
        """Give the datapath a list; what it refused of it is said, and the rest holds."""
        try:
            await self._parts.blocking(call, items)
        except AegisError:
            if not self._parts.datapath.refusals():
                raise

    def _say(self, owned: Owners, over: Mapping[str, int]) -> None:
        """What each service wanted and did not get; new refusals go to the log, some of very many."""
        refused = dict(self._parts.datapath.refusals())
        cut = {i: self._cut_text(i, count) for i, count in Counter(over.values()).items()}
        lost = {
            i: [*([cut[i]] if i in cut else ()), *self._unreadable.get(i, ()), *owned.conflicts.get(i, ())]
            for i in self._selectors
        }
        for i in sorted(cut.keys() - self._cut):
            self._parts.log(f"service {i}: {cut[i]}")
        for i in sorted(self._cut - cut.keys()):
            self._parts.log(f"service {i}: there is room again for all of its cgroups")
        self._cut = set(cut)
        fresh: list[str] = []
        for path, why in refused.items():
            line = f"{printable(path)[:SHOWN_PATH]}: not bound: {why}"
            if self._refused.get(path) != why:
                fresh.append(line)
            service = owned.services.get(path, self._unborn.get(path))
            if service in lost:
                lost[service].append(line)
        for line in fresh[:LOGGED]:
            self._parts.log(line)
        if len(fresh) > LOGGED:
            self._parts.log(f"{len(fresh) - LOGGED} more cgroups are not bound")
        self._refused = refused
        self.conflicts = {i: tuple(lines) for i, lines in lost.items() if lines}

    def _cut_text(self, service: int, count: int) -> str:
        held = len(self.cgroups.get(service, ()))
        return (
            f"{count} of {held + count} selected cgroups are not bound: this host binds {MAX_BINDINGS} at "
            "most, first those that a service names without a wildcard, then an equal share of each service"
        )

    def skipped(self) -> tuple[str, ...]:
        """Cgroups whose names are no text, with these escaped, that belong to no service by a parent."""
        governed = {path for paths in self.cgroups.values() for path in paths}
        return tuple(printable(p) for p in self._parts.cgroups.skipped if not below(p, governed))

    def differs(self, bound: list[Binding]) -> bool:
        """Whether a binding is gone or changed; what the kernel bound by itself is fine."""
        found = {b.cgroup_id: b for b in bound}
        return any(found.get(cgroup_id) != binding for cgroup_id, binding in self._bound.items())

    def reset(self) -> None:
        """Nothing is bound any more."""
        self._bound, self._literals = {}, None
        self._gone.clear()

    async def _bind_literals(
        self, services: dict[int, tuple[Selector, ...]], slots: dict[int, int], *, anew: bool
    ) -> bool:
        delegated = self._parts.cgroups.delegated
        unborn = unborn_paths(services, self._seen, delegated)
        self._unborn = dict((await self._owners(self._to_come, unborn, services)).services)
        wanted = {p: slots[i] for p, i in self._unborn.items()}
        if wanted == self._literals and not anew:
            return False
        await self._each(self._parts.datapath.literals, wanted)
        refused = self._parts.datapath.refusals()
        self._literals = {p: slot for p, slot in wanted.items() if p not in refused}
        return True

    def _note(self, owned: Mapping[str, int]) -> None:
        for path in owned:
            self._seen[path] = None
            self._seen.move_to_end(path)
        while len(self._seen) > SEEN_KEPT:
            self._seen.popitem(last=False)

    def _remember_gone(self, wanted: dict[int, Binding], live: set[int], slots: set[int]) -> None:
        for cgroup_id, binding in self._bound.items():
            if cgroup_id not in wanted:
                self._gone.setdefault(cgroup_id, binding)
        delegated = self._parts.cgroups.delegated
        for cgroup_id, binding in list(self._gone.items()):
            stays = cgroup_id not in wanted and cgroup_id not in live and binding.slot in slots
            if not stays or below(binding.path, delegated):
                del self._gone[cgroup_id]
        while len(self._gone) > GONE_KEPT:
            self._gone.popitem(last=False)
