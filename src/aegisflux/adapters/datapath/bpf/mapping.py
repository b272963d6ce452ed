"""Which cgroup is whose, which paths are bound at birth, and what no snapshot can deny."""

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from types import MappingProxyType
from typing import Final

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.control import Control
from aegisflux.adapters.datapath.bpf.followed import FollowedCgroups, literal_key, name_of, path_of
from aegisflux.domain.errors import AegisError, OverLimit, Refused, Unavailable
from aegisflux.domain.flow import FailsafeRule
from aegisflux.ports.datapath import Binding
from aegisflux.runtime.cgroupfs import number_at, numbered
from aegisflux.wire import layout

MANY: Final = 8192
LITERALS: Final = 16_384  # bpf/objects.h
FAILSAFE_SIZE: Final = layout.FAILSAFE_LIST.size + layout.MAX_FAILSAFE * layout.FAILSAFE_RULE.size
_PROTOS: Final = {"tcp": 6, "udp": 17, "any": 0}


class CgroupMap:
    """The maps `cgroups`, `literals` and `failsafes`, and those of `FollowedCgroups`."""

    def __init__(self, maps: dict[str, int], control: Control, root: Path) -> None:
        self._maps, self._control, self._root = maps, control, root
        self._followed = FollowedCgroups(maps, root)
        self._bound: dict[int, Binding] = {}
        self._missed: set[int] = set()
        self._dead: set[int] = set()
        self._literals: dict[str, int] = {}
        self._agent: int | None = None
        self._failsafe = b""
        self._unbound: dict[str, AegisError] = {}
        self._unlisted: dict[str, AegisError] = {}
        self._rules: tuple[FailsafeRule, ...] = ()

    def bind(
        self, bindings: Iterable[Binding], failed: Mapping[int, AegisError] = MappingProxyType({})
    ) -> None:
        """See `Datapath.bind`; slots that `failed` get no binding."""
        self._unbound = {}
        wanted: dict[int, Binding] = {}
        for binding in bindings:
            if not binding.path.strip("/"):
                self._unbound[binding.path] = Unavailable("the root cgroup cannot be mapped")
            elif binding.slot in failed:
                self._unbound[binding.path] = failed[binding.slot]
            elif binding.cgroup_id != self._agent:
                wanted[binding.cgroup_id] = binding
        present = self._present()
        missing = [b for n, b in wanted.items() if present.get(n) != b.slot]
        gone = [n for n, slot in present.items() if n not in wanted and slot != layout.SLOT_AGENT]
        changed = self._followed.mend()  # the tree may have other owners than before
        changed |= bool(missing)
        try:
            left = self._put_all(missing)
            changed |= self._unbind(gone, len(present))
            # what was unbound may have made room
            self._unbound |= {b.path: error for b, error in self._put_all(left).items()}
            self._bound = {n: b for n, b in wanted.items() if b.path not in self._unbound}
        finally:
            if changed:
                self._control.raise_epoch()
        _raise_first(self._unbound)

    def _put_all(self, bindings: Iterable[Binding]) -> dict[Binding, AegisError]:
        """Put each; those that failed, and why."""
        failed: dict[Binding, AegisError] = {}
        for binding in bindings:
            try:
                self._put(binding.cgroup_id, binding.slot)
            except OverLimit as error:
                failed[binding] = error
        return failed

    def refusals(self) -> dict[str, str]:
        """See `Datapath.refusals`."""
        return {path: str(error) for path, error in {**self._unlisted, **self._unbound}.items()}

    def bindings(self) -> list[Binding]:
        """Those that were asked for and that the kernel holds, or took away with a cgroup that is gone."""
        present = self._present()
        held = (
            b for b in self._bound.values() if present.get(b.cgroup_id) == b.slot or not self._is_there(b)
        )
        return sorted(held, key=lambda b: b.path)

    def ids(self) -> Set[int]:
        """The cgroups that the kernel holds for somebody."""
        return self._present().keys()

    def strangers(self) -> list[Binding]:
        """Living cgroups that the kernel holds and that nobody asked for yet."""
        present = self._present()
        return self.living(
            {n: s for n, s in present.items() if n not in self._bound and s < layout.SLOT_AGENT}
        )

    def living(self, slots: Mapping[int, int]) -> list[Binding]:
        """Those of these cgroups that exist, with their paths."""
        if not slots:
            return []
        top, found = str(self._root), _living(self._root)
        return [Binding(n, found[n].removeprefix(top).strip("/"), s) for n, s in slots.items() if n in found]

    def _is_there(self, binding: Binding) -> bool:
        return number_at(self._root / binding.path.strip("/")) == binding.cgroup_id

    def slots(self) -> set[int]:
        """The slots that a cgroup is mapped to, or will be when it is made."""
        return {b.slot for b in self._bound.values()} | set(self._literals.values())

    def paths_of(self, slot: int) -> list[Path]:
        return [self._root / b.path.strip("/") for b in self._bound.values() if b.slot == slot]

    def paths(self) -> list[Path]:
        return [self._root / b.path.strip("/") for b in self._bound.values()]

    def literals(
        self, paths: Mapping[str, int], failed: Mapping[int, AegisError] = MappingProxyType({})
    ) -> None:
        """See `Datapath.literals`; slots that `failed` get none."""
        self._unlisted = {path: failed[slot] for path, slot in paths.items() if slot in failed}
        wanted = {path: slot for path, slot in paths.items() if slot not in failed}
        self._put_literals(wanted)
        self._literals = {"/" + p.strip("/"): s for p, s in wanted.items() if p not in self._unlisted}
        _raise_first(self._unlisted)

    def mend(self) -> list[str]:
        """Put back what somebody changed in the lists, and take away mappings that nobody asked for."""
        found = []
        if self._put_literals(self._literals):
            found.append("literals")
        if (
            self._failsafe
            and libbpf.lookup(self._maps["failsafes"], bytes(4), FAILSAFE_SIZE) != self._failsafe
        ):
            libbpf.update(self._maps["failsafes"], bytes(4), self._failsafe)
            found.append("failsafe")
        if self._followed.mend():
            found.append("cgroups of the failsafe")
        present = self._present()
        if self._agent is not None and present.pop(self._agent, None) != layout.SLOT_AGENT:
            self._put(self._agent, layout.SLOT_AGENT)
            found.append("agent cgroup")
        strange = [n for n in present if n not in self._bound]
        if self._unbind(strange, 0):
            found.append("mappings that nobody asked for")
        if found:
            self._control.raise_epoch()
        return found

    def _put_literals(self, paths: Mapping[str, int]) -> bool:
        """Make the list these, as far as each can be in it; whether it changed."""
        fd, changed = self._maps["literals"], False
        wanted: dict[bytes, tuple[str, bytes]] = {}
        for path, slot in paths.items():
            try:
                wanted[literal_key(path)] = path, slot.to_bytes(4, "little")
            except Refused as error:
                self._unlisted[path] = error
        for key in libbpf.keys(fd, layout.MAX_PATH):
            if key not in wanted:
                changed |= libbpf.delete(fd, key)
        for key, (path, value) in wanted.items():
            if libbpf.lookup(fd, key, 4) == value:
                continue
            try:
                libbpf.update(fd, key, value)
                changed = True
            except OSError as error:
                self._unlisted[path] = OverLimit(
                    "literals", LITERALS, LITERALS + 1, f"cgroup {path}: not bound at birth: {error.strerror}"
                )
        return changed

    def failsafe(self, rules: Iterable[FailsafeRule], agent_cgroup: str | None) -> None:
        """See `Datapath.failsafe`."""
        listed = tuple(rules)
        if len(listed) > layout.MAX_FAILSAFE:
            raise OverLimit("failsafe_rules", layout.MAX_FAILSAFE, len(listed), "failsafe list")
        raw = [self._rule(rule) for rule in listed]
        head = layout.FAILSAFE_LIST.pack(len(raw), sum(bool(path_of(rule)) for rule in listed))
        self._failsafe = (head + b"".join(raw)).ljust(FAILSAFE_SIZE, b"\0")
        self._followed.follow(listed)
        libbpf.update(self._maps["failsafes"], bytes(4), self._failsafe)
        self._rules = listed
        self._agent_is(agent_cgroup)
        self._control.raise_epoch()

    def rules(self) -> tuple[FailsafeRule, ...]:
        """The failsafe rules that the kernel goes by now."""
        return tuple(rule for rule in self._rules if self._followed.holds(rule))

    def _agent_is(self, path: str | None) -> None:
        for number, slot in self._present().items():
            if slot == layout.SLOT_AGENT:
                libbpf.delete(self._maps["cgroups"], number.to_bytes(8, "little"))
        self._agent = None
        if path is not None and path.strip("/"):
            self._agent = (self._root / path.strip("/")).stat().st_ino
            self._put(self._agent, layout.SLOT_AGENT)

    def _rule(self, rule: FailsafeRule) -> bytes:
        net, plen = bytes(16), 0
        if rule.cidr is not None and rule.cidr.family == 4:
            net, plen = bytes(10) + b"\xff\xff" + rule.cidr.value.to_bytes(4, "big"), 96 + rule.cidr.plen
        elif rule.cidr is not None:
            net, plen = rule.cidr.value.to_bytes(16, "big"), rule.cidr.plen
        mask = ((1 << 128) - (1 << (128 - plen))).to_bytes(16, "big")
        path = path_of(rule)
        number, level = (name_of(path), path.count("/") + 1) if path else (0, 0)
        way = 0 if rule.direction == "egress" else 1
        return layout.FAILSAFE_RULE.pack(net, mask, number, rule.port, way, _PROTOS[rule.proto], level)

    def _present(self) -> dict[int, int]:
        fd = self._maps["cgroups"]
        found = {}
        for key in libbpf.keys(fd, 8):
            value = libbpf.lookup(fd, key, 4)
            if value is not None:
                found[int.from_bytes(key, "little")] = int.from_bytes(value, "little")
        return found

    def _put(self, number: int, slot: int) -> None:
        try:
            libbpf.update(self._maps["cgroups"], number.to_bytes(8, "little"), slot.to_bytes(4, "little"))
        except OSError as err:
            raise OverLimit("cgroups", 16_384, 16_385, f"cgroup {number}: {err.strerror}") from None

    def _unbind(self, gone: list[int], total: int) -> bool:
        """Mappings of removed cgroups stay while sockets may live, unless there are very many: the kernel
        takes them out after the last socket (`on_release`), but not those that were mapped after that."""
        living = self._paths_of_living([number for number in gone if number not in self._dead])
        changed = False
        for number in gone:
            path = living.get(number)
            if path is None and total < MANY:
                continue
            if path is not None and path in self._literals:
                continue
            changed |= libbpf.delete(self._maps["cgroups"], number.to_bytes(8, "little"))
        self._dead.intersection_update(gone)
        return changed

    def _paths_of_living(self, numbers: Iterable[int]) -> dict[int, str]:
        """The paths, from "/" on, of those cgroups that exist.

        Users make as many cgroups as they like, so the tree is read only for numbers that are not ours, and
        at most twice for each: a number never comes back. Once is not enough, since a cgroup is bound at its
        birth a moment before it can be seen.
        """
        found, unknown = {}, []
        for number in numbers:
            if (binding := self._bound.get(number)) is None:
                unknown.append(number)
                continue
            if self._is_there(binding):
                found[number] = "/" + binding.path.strip("/")
            else:
                self._dead.add(number)
        living = _living(self._root) if unknown else {}
        for number in unknown:
            if number in living:
                found[number] = living[number].removeprefix(str(self._root))
            elif number in self._missed:
                self._dead.add(number)
        self._missed = set(unknown) - set(living) - self._dead
        return found


def _living(root: Path) -> dict[int, str]:
    """The folder of each cgroup that exists."""
    return dict(numbered(root))


def _raise_first(failed: Mapping[str, AegisError]) -> None:
    for error in failed.values():
        raise error
