"""Keeps the cgroups of the host bound to services, as selectors and the live tree say."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from aegisflux.agent.parts import Parts
from aegisflux.domain.converge import Holding
from aegisflux.domain.errors import Invalid
from aegisflux.domain.manifest import HostManifest
from aegisflux.domain.selectors import Selector, literal_paths, owners, parse_selector
from aegisflux.ports.datapath import Binding

GONE_KEPT: Final = 1024
MAX_BINDINGS: Final = 8192


class Binder:
    """`cgroups` are the paths of each service, `conflicts` what each lost to another.

    Bindings of removed cgroups stay while their service does, up to 1,024: sockets may outlive a cgroup.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._selectors: dict[int, tuple[Selector, ...]] = {}
        self._bound: dict[int, Binding] = {}
        self._gone: OrderedDict[int, Binding] = OrderedDict()
        self._literals: dict[str, int] | None = None
        self._seen: set[str] = set()
        self.cgroups: dict[int, tuple[str, ...]] = {}
        self.conflicts: dict[int, tuple[str, ...]] = {}

    def follow(self, manifest: HostManifest) -> None:
        """Take the selectors of a manifest; one that cannot be read selects nothing and is said."""
        self._selectors = {}
        for service in manifest.services:
            chosen: list[Selector] = []
            for text in service.selectors:
                try:
                    chosen.append(parse_selector(text))
                except Invalid as error:
                    self._parts.log(f"service {service.service_id}: {error}")
            self._selectors[service.service_id] = tuple(chosen)

    async def bind(self, holdings: dict[int, Holding], *, anew: bool = False) -> bool:
        """Compare the tree with what is bound, and bind; whether anything changed. `anew` binds again all."""
        tree = self._parts.cgroups.scan()
        own = self._parts.cgroups.own
        paths = [p for p in tree if own is None or not (p == own or p.startswith(own + "/"))]
        services = {i: s for i, s in self._selectors.items() if i in holdings}
        owned = owners(paths, services)
        slots = {i: holdings[i].slot for i in services}
        wanted = {tree[p]: Binding(tree[p], p, slots[i]) for p, i in owned.services.items()}
        self._note(owned.services, owned.conflicts)
        changed = await self._bind_literals(services, slots, anew=anew)
        self._remember_gone(wanted, set(tree.values()), set(slots.values()))
        every = {**wanted, **{b.cgroup_id: b for b in self._gone.values()}}
        if len(every) > MAX_BINDINGS:
            self._parts.log(f"{len(wanted)} cgroups are selected; {MAX_BINDINGS} at most are bound")
            every = dict(list(every.items())[:MAX_BINDINGS])
        if every != self._bound or anew:
            await self._parts.blocking(self._parts.datapath.bind, list(every.values()))
            self._bound, changed = every, True
        return changed

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
        wanted = {p: slots[i] for p, i in literal_paths(services, self._seen).items()}
        if wanted == self._literals and not anew:
            return False
        await self._parts.blocking(self._parts.datapath.literals, wanted)
        self._literals = wanted
        return True

    def _note(self, owned: Mapping[str, int], conflicts: Mapping[int, tuple[str, ...]]) -> None:
        found: dict[int, list[str]] = {}
        for path, service_id in owned.items():
            found.setdefault(service_id, []).append(path)
        self._seen |= {p for p, i in owned.items() if any(s.literal for s in self._selectors[i])}
        self.cgroups = {i: tuple(paths) for i, paths in found.items()}
        self.conflicts = dict(conflicts)

    def _remember_gone(self, wanted: dict[int, Binding], live: set[int], slots: set[int]) -> None:
        for cgroup_id, binding in self._bound.items():
            if cgroup_id not in wanted:
                self._gone.setdefault(cgroup_id, binding)
        for cgroup_id, binding in list(self._gone.items()):
            if cgroup_id in wanted or cgroup_id in live or binding.slot not in slots:
                del self._gone[cgroup_id]
        while len(self._gone) > GONE_KEPT:
            self._gone.popitem(last=False)
