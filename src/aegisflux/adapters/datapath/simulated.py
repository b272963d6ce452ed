"""A datapath in Python: the same promises as the kernel's, judged by `domain.verdict_of_tables`.

It runs where BPF is refused and in tests, which inject faults through `faults` and judge flows through
`judge`. What it holds survives `close`, as pins do. One thread at a time.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.domain.flow import DEFAULT_FAILSAFE, FailsafeRule, Flow, Host, Own
from aegisflux.domain.net import Address
from aegisflux.domain.tables import Tables
from aegisflux.domain.verdict import Verdict
from aegisflux.domain.verdict_of_tables import judge_tables
from aegisflux.ports.datapath import MAX_SLOTS, Binding, Check, DeniedFlow, Generation, Held, Loaded, Role

DENIED_KEPT: Final = 4096
UNMANAGED: Final = Verdict("allow", "unmanaged", mode="observe")


@dataclass(slots=True)
class _Held:
    generation_id: int
    generation: Generation


@dataclass(slots=True)
class _Slot:
    roles: dict[Role, _Held] = field(default_factory=dict)
    replaced: _Held | None = None
    can_go_back: bool = False
    counters: Counter[str] = field(default_factory=Counter)


class SimulatedDatapath:
    """See `Datapath`. `clock` is the boot clock in ns.

    faults: method name -> the error that its next call raises, once
    has: what the host owns at its next reading
    """

    name = "simulated"

    def __init__(self, clock: Callable[[], int], addresses: Iterable[Address] = ()) -> None:
        self._clock = clock
        self._own = self.has = Own(frozenset(addresses))
        self.addresses_fd: int | None = None
        self._rules: tuple[FailsafeRule, ...] = DEFAULT_FAILSAFE
        self._slots: dict[int, _Slot] = {}
        self._loaded: dict[int, Generation] = {}
        self._bound: dict[int, Binding] = {}
        self._literals: dict[str, int] = {}
        self._refused: dict[str, str] = {}
        self._denied: deque[DeniedFlow] = deque(maxlen=DENIED_KEPT)
        self._next_id = 1
        self.connections: dict[int, list[Flow]] = {}
        self.left_judging: list[Binding] = []
        self.left_bound: list[Binding] = []
        self.is_open = False
        self.epoch = 0
        self.cuts: list[int] = []
        self.faults: dict[str, AegisError] = {}

    def open(self) -> None:
        """See `Datapath.open`."""
        self._fault("open")
        self.is_open = True

    def mend(self) -> list[str]:
        """See `Datapath.mend`: nobody can take anything away."""
        self._need_open()
        return []

    def retire(self) -> bool:
        """See `Datapath.retire`."""
        self._need_open()
        retired, self.left_judging = bool(self.left_judging), []
        return retired

    def former(self, other: bool) -> list[Binding]:
        """See `Datapath.former`: what a test put there."""
        return list(self.left_judging if other else self.left_bound)

    def hand_over(self, left: Iterable[Binding]) -> None:
        """See `Datapath.hand_over`."""
        self.left_judging = list(left)

    def close(self) -> None:
        """See `Datapath.close`."""
        self.is_open = False

    def load(self, slot: int, role: Role, generation: Generation) -> Loaded:
        """See `Datapath.load`."""
        self._need_open()
        self._fault("load")
        if not 0 <= slot < MAX_SLOTS:
            raise Unavailable(f"slot {slot}: expected 0 to {MAX_SLOTS - 1}")
        number, self._next_id = self._next_id, self._next_id + 1
        self._loaded[number] = generation
        return Loaded(slot, role, number, generation.tables.digest(), number)

    def flip(self, loaded: Loaded) -> None:
        """See `Datapath.flip`."""
        self._need_open()
        self._fault("flip")
        generation = self._loaded.pop(loaded.handle)
        slot = self._slots.setdefault(loaded.slot, _Slot())
        if loaded.role == "active":
            slot.replaced, slot.can_go_back = slot.roles.get("active"), True
        slot.roles[loaded.role] = _Held(loaded.generation_id, generation)

    def flip_back(self, slot: int) -> bool:
        """See `Datapath.flip_back`."""
        self._need_open()
        self._fault("flip_back")
        found = self._slots.get(slot)
        if found is None or not found.can_go_back:
            return False
        if found.replaced is None:
            found.roles.pop("active", None)
        else:
            found.roles["active"] = found.replaced
        found.replaced, found.can_go_back = None, False
        return True

    def forget(self, slot: int) -> None:
        """See `Datapath.forget`."""
        self._need_open()
        if slot in self._slots:
            self._slots[slot].replaced, self._slots[slot].can_go_back = None, False

    def discard(self, loaded: Loaded) -> None:
        """See `Datapath.discard`."""
        self._loaded.pop(loaded.handle, None)

    def renew(self, slot: int, deadline_ns: int) -> None:
        """See `Datapath.renew`."""
        self._need_open()
        self._fault("renew")
        held = self._slots.get(slot, _Slot()).roles.get("active")
        if held is None:
            raise Unavailable(f"slot {slot}: nothing to renew")
        held.generation = replace(held.generation, deadline_ns=deadline_ns)

    def remove(self, slot: int, role: Role) -> None:
        """See `Datapath.remove`."""
        self._need_open()
        self._fault("remove")
        found = self._slots.get(slot, _Slot())
        found.roles.pop(role, None)
        if role == "active":
            found.replaced, found.can_go_back = None, False
        if not found.roles:
            self._slots.pop(slot, None)

    def held(self) -> list[Held]:
        """See `Datapath.held`."""
        self._need_open()
        self._fault("held")
        return [
            _told(number, role, held)
            for number, slot in sorted(self._slots.items())
            for role, held in sorted(slot.roles.items())
        ]

    def cut(self, slot: int) -> int:
        """See `Datapath.cut`; there are no sockets here."""
        self._need_open()
        self._fault("cut")
        self.cuts.append(slot)
        return 0

    def live(self, slot: int) -> list[Flow]:
        """See `Datapath.live`; a test says what there is."""
        self._need_open()
        self._fault("live")
        return list(self.connections.get(slot, ()))

    def bind(self, bindings: Iterable[Binding]) -> None:
        """See `Datapath.bind`."""
        self._need_open()
        self._fault("bind")
        given = list(bindings)
        wanted = {b.cgroup_id: b for b in given if b.path.strip("/")}
        if wanted != self._bound:
            self._bound, self.epoch = wanted, self.epoch + 1
        self._refused = {b.path: "the root cgroup cannot be mapped" for b in given if not b.path.strip("/")}
        for why in self._refused.values():
            raise Unavailable(why)

    def literals(self, paths: Mapping[str, int]) -> None:
        """See `Datapath.literals`."""
        self._need_open()
        self._fault("literals")
        self._literals = dict(paths)

    def refusals(self) -> Mapping[str, str]:
        """See `Datapath.refusals`."""
        return dict(self._refused)

    def bindings(self) -> list[Binding]:
        """See `Datapath.bindings`."""
        self._need_open()
        return sorted(self._bound.values(), key=lambda b: b.path)

    def failsafe(self, rules: Iterable[FailsafeRule], agent_cgroup: str | None) -> None:  # noqa: ARG002
        """See `Datapath.failsafe`."""
        self._need_open()
        self._rules = tuple(rules)

    def refresh_addresses(self) -> list[str]:
        """See `Datapath.refresh_addresses`: from now on what is in `has` is own."""
        self._need_open()
        self._fault("refresh_addresses")
        self._own = self.has
        return []

    def watch_addresses(self) -> int | None:
        """See `Datapath.watch_addresses`; a test may give an eventfd."""
        return self.addresses_fd

    def heed_addresses(self) -> list[str]:
        """See `Datapath.heed_addresses`."""
        if self.addresses_fd is not None:
            with suppress(BlockingIOError):
                os.eventfd_read(self.addresses_fd)
        return self.refresh_addresses() if self.is_open else []

    def addresses(self) -> tuple[Address, ...]:
        """See `Datapath.addresses`."""
        return tuple(sorted(self._own.addresses))

    def namespaces_unknown(self) -> int:
        """See `Datapath.namespaces_unknown`: none here."""
        return 0

    def own(self, slot: int) -> Own:  # noqa: ARG002
        """See `Datapath.own`; there is one network namespace here."""
        return self._own

    def counters(self, slot: int) -> Mapping[str, int]:
        """See `Datapath.counters`."""
        found = self._slots.get(slot)
        return dict(found.counters) if found else {}

    denied_fd = None

    def drain_denied(self, limit: int) -> list[DeniedFlow]:
        """See `Datapath.drain_denied`."""
        self._need_open()
        return [self._denied.popleft() for _ in range(min(limit, len(self._denied)))]

    def why(self, slot: int, flow: Flow, role: Role = "active") -> Verdict:
        """See `Datapath.why`."""
        self._need_open()
        held = self._slots.get(slot, _Slot()).roles.get(role)
        return UNMANAGED if held is None else self._verdict(held, flow)

    def panic(self) -> None:
        """See `Datapath.panic`."""
        self._fault("panic")
        self._slots.clear()
        self._loaded.clear()
        self._bound.clear()
        self._literals.clear()
        self.is_open = False

    def boot_ns(self) -> int:
        """See `Datapath.boot_ns`."""
        return self._clock()

    def doctor(self) -> list[Check]:
        """See `Datapath.doctor`."""
        return [Check("datapath", False, "simulated: nothing on this host is enforced", required=False)]

    # For tests and the demo without root: what a kernel is asked by its own hooks.

    def created(self, cgroup_id: int, path: str) -> None:
        """A cgroup was made: bound at once when it is a literal."""
        slot = self._literals.get(path.strip("/"))
        if slot is not None:
            self._bound[cgroup_id], self.epoch = Binding(cgroup_id, path.strip("/"), slot), self.epoch + 1

    def slot_of(self, path: str) -> int | None:
        """The slot of the deepest mapped cgroup at or above `path`."""
        parts, by_path = path.strip("/").split("/"), {b.path: b.slot for b in self._bound.values()}
        heads = ("/".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next((by_path[head] for head in heads if head in by_path), None)

    def judge(self, cgroup: str, flow: Flow) -> Verdict:
        """What happens to an initiation by or to a socket of the cgroup; counted and reported."""
        number = self.slot_of(cgroup)
        slot = self._slots.get(-1 if number is None else number)
        if number is None or slot is None or not slot.roles:
            return UNMANAGED
        verdicts = {role: self._verdict(held, flow) for role, held in slot.roles.items()}
        for role, verdict in verdicts.items():
            if verdict.action == "deny":
                self._report(number, role, slot.roles[role], flow, verdict)
        verdict = verdicts.get("active", UNMANAGED)
        slot.counters[verdict.reason] += 1
        slot.counters["would_block"] += verdict.action == "deny" and verdict.mode == "observe"
        return verdict

    def _report(self, slot: int, role: Role, held: _Held, flow: Flow, verdict: Verdict) -> None:
        egress = flow.direction == "egress"
        mode = "observe" if role == "candidate" else verdict.mode
        if len(self._denied) == DENIED_KEPT:
            self._slots[slot].counters["lost_events"] += 1
        self._denied.append(
            DeniedFlow(
                self._clock(),
                slot,
                held.generation.service_id,
                role,
                mode,
                flow.direction,
                flow.proto,
                None,
                flow.source_port if egress else flow.port,
                flow.peer,
                flow.port if egress else flow.source_port,
                verdict.reason,
                verdict.rule,
                held.generation.digest,
            )
        )

    def _verdict(self, held: _Held, flow: Flow) -> Verdict:
        generation = held.generation
        expired = self._clock() >= generation.deadline_ns
        host = Host(self._own.addresses, self._rules, expired, self._own.prefixes)
        return judge_tables(generation.tables, generation, flow, host, generation.digest)

    def _fault(self, method: str) -> None:
        error = self.faults.pop(method, None)
        if error is not None:
            raise error

    def _need_open(self) -> None:
        if not self.is_open:
            raise Unavailable("the datapath is not open")

    def tamper(self, slot: int, tables: Tables) -> None:
        """Somebody else wrote into what the slot judges by: drift."""
        held = self._slots[slot].roles["active"]
        held.generation = replace(held.generation, tables=tables)


def _told(slot: int, role: Role, held: _Held) -> Held:
    g = held.generation
    return Held(
        slot,
        role,
        held.generation_id,
        g.service_id,
        g.version,
        g.digest,
        g.tables.digest(),
        g.mode,
        g.on_expiry,
        g.established,
        g.deadline_ns,
    )
