"""Which cgroup is whose, which paths are bound at birth, and what no snapshot can deny."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.control import Control
from aegisflux.domain.errors import OverLimit, Refused, Unavailable
from aegisflux.domain.flow import FailsafeRule
from aegisflux.ports.datapath import Binding
from aegisflux.runtime import procfs
from aegisflux.wire import layout

MANY: Final = 8192
FAILSAFE_SIZE: Final = layout.FAILSAFE_LIST.size + layout.MAX_FAILSAFE * layout.FAILSAFE_RULE.size
_PROTOS: Final = {"tcp": 6, "udp": 17, "any": 0}


def v2_root() -> Path:
    """Where the cgroup v2 tree is mounted. Raises Unavailable."""
    for mount in procfs.mounts():
        if mount.kind == "cgroup2":
            return Path(mount.point)
    raise Unavailable("no cgroup v2 tree is mounted")


class CgroupMap:
    """The maps `cgroups`, `literals` and `failsafes`."""

    def __init__(self, maps: dict[str, int], control: Control, root: Path) -> None:
        self._maps, self._control, self._root = maps, control, root
        self._bound: dict[int, Binding] = {}
        self._literals: dict[str, int] = {}
        self._agent: int | None = None
        self._failsafe = b""
        self.rules: tuple[FailsafeRule, ...] = ()

    def bind(self, bindings: Iterable[Binding]) -> None:
        """See `Datapath.bind`."""
        wanted = {b.cgroup_id: b for b in bindings}
        if any(not b.path.strip("/") for b in wanted.values()):
            raise Unavailable("the root cgroup cannot be mapped")
        wanted.pop(self._agent or 0, None)
        present = self._present()
        missing = {n: b.slot for n, b in wanted.items() if present.get(n) != b.slot}
        gone = [n for n, slot in present.items() if n not in wanted and slot != layout.SLOT_AGENT]
        changed = bool(missing)
        try:
            for number, slot in missing.items():
                self._put(number, slot)
            changed |= self._unbind(gone, len(present))
            self._bound = wanted
        finally:
            if changed:
                self._control.raise_epoch()

    def bindings(self) -> list[Binding]:
        """Those that were asked for and that the kernel holds."""
        present = self._present()
        held = (b for b in self._bound.values() if present.get(b.cgroup_id) == b.slot)
        return sorted(held, key=lambda b: b.path)

    def paths_of(self, slot: int) -> list[Path]:
        return [self._root / b.path.strip("/") for b in self._bound.values() if b.slot == slot]

    def paths(self) -> list[Path]:
        return [self._root / b.path.strip("/") for b in self._bound.values()]

    def literals(self, paths: Mapping[str, int]) -> None:
        """See `Datapath.literals`."""
        self._put_literals({_literal_key(path): slot.to_bytes(4, "little") for path, slot in paths.items()})
        self._literals = {"/" + path.strip("/"): slot for path, slot in paths.items()}

    def mend(self) -> list[str]:
        """Put back what somebody changed in the lists, and take away mappings that nobody asked for."""
        found = []
        literals = {_literal_key(path): slot.to_bytes(4, "little") for path, slot in self._literals.items()}
        if self._put_literals(literals):
            found.append("literals")
        if (
            self._failsafe
            and libbpf.lookup(self._maps["failsafes"], bytes(4), FAILSAFE_SIZE) != self._failsafe
        ):
            libbpf.update(self._maps["failsafes"], bytes(4), self._failsafe)
            found.append("failsafe")
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

    def _put_literals(self, wanted: Mapping[bytes, bytes]) -> bool:
        fd, changed = self._maps["literals"], False
        for key in libbpf.keys(fd, layout.MAX_PATH):
            if key not in wanted:
                changed |= libbpf.delete(fd, key)
        for key, slot in wanted.items():
            if libbpf.lookup(fd, key, 4) != slot:
                libbpf.update(fd, key, slot)
                changed = True
        return changed

    def failsafe(self, rules: Iterable[FailsafeRule], agent_cgroup: str | None) -> None:
        """See `Datapath.failsafe`."""
        listed = tuple(rules)
        if len(listed) > layout.MAX_FAILSAFE:
            raise OverLimit("failsafe_rules", layout.MAX_FAILSAFE, len(listed), "failsafe list")
        raw = [self._rule(rule) for rule in listed]
        head = layout.FAILSAFE_LIST.pack(len(raw), sum(rule.cgroup is not None for rule in listed))
        self._failsafe = (head + b"".join(raw)).ljust(FAILSAFE_SIZE, b"\0")
        libbpf.update(self._maps["failsafes"], bytes(4), self._failsafe)
        self.rules = listed
        self._agent_is(agent_cgroup)
        self._control.raise_epoch()

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
        number = level = 0
        if rule.cgroup is not None:
            parts = rule.cgroup.strip("/")
            try:
                number, level = (self._root / parts).stat().st_ino, len(parts.split("/"))
            except OSError as err:
                raise Unavailable(f"failsafe: cgroup {rule.cgroup}: {err.strerror}") from None
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
        """Mappings of removed cgroups stay while sockets may live, unless there are very many."""
        if not gone:
            return False
        living = {Path(folder).stat().st_ino: folder for folder, _, _ in os.walk(self._root)}
        changed = False
        for number in gone:
            folder = living.get(number)
            if folder is None and total < MANY:
                continue
            if folder is not None and folder.removeprefix(str(self._root)) in self._literals:
                continue
            changed |= libbpf.delete(self._maps["cgroups"], number.to_bytes(8, "little"))
        return changed


def _literal_key(path: str) -> bytes:
    raw = ("/" + path.strip("/")).encode()
    if len(raw) >= layout.MAX_PATH - 1:  # a longer path, cut off by the kernel, must equal none
        raise Refused(f"cgroup path of {len(raw)} bytes: expected fewer than {layout.MAX_PATH - 1}")
    return raw.ljust(layout.MAX_PATH, b"\0")
