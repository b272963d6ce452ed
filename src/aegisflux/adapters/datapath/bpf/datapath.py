"""The kernel's datapath. See `ports.datapath.Datapath` for what each method promises."""

import os
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Final, TypeVar

from aegisflux.adapters.datapath.bpf import diag, former, libbpf
from aegisflux.adapters.datapath.bpf.addresses import Addresses
from aegisflux.adapters.datapath.bpf.control import PASS_LISTENERS, PASS_STAMP, Control
from aegisflux.adapters.datapath.bpf.denied import DeniedFlows, reason_of
from aegisflux.adapters.datapath.bpf.doctor import examine, own_addresses
from aegisflux.adapters.datapath.bpf.generations import UDP_FLOWS, Generations
from aegisflux.adapters.datapath.bpf.live import initiations
from aegisflux.adapters.datapath.bpf.mapping import CgroupMap
from aegisflux.adapters.datapath.bpf.namespaces import cookie, each_namespace, has_tcp, inside_each, processes
from aegisflux.adapters.datapath.bpf.owner import Marker, bind_owner
from aegisflux.adapters.datapath.bpf.pins import NO_PACKET, Pinned
from aegisflux.adapters.datapath.bpf.routes import read_own
from aegisflux.adapters.datapath.bpf.watches import Watches
from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.domain.flow import DEFAULT_FAILSAFE, FailsafeRule, Flow, Host, Own
from aegisflux.domain.net import TCP, UDP, Address
from aegisflux.domain.panic import Owner
from aegisflux.domain.verdict import Verdict
from aegisflux.domain.verdict_of_tables import judge_tables
from aegisflux.ports.datapath import Binding, Check, DeniedFlow, Generation, Held, Loaded, Role
from aegisflux.runtime.cgroupfs import numbered, v2_root
from aegisflux.wire import layout

T = TypeVar("T")
BPFFS: Final = Path("/sys/fs/bpf")


class BpfDatapath:
    """Programs attached at the cgroup `attach` (default: the v2 root), pinned under `instance`."""

    name = "bpf"

    def __init__(
        self,
        attach: Path | None = None,
        instance: str = "default",
        bpffs: Path = BPFFS,
        object_path: Path | None = None,
        state_dir: str = "",
    ) -> None:
        """`state_dir` is told to whoever finds the programs, see `owner`."""
        self._root = v2_root()
        self._named = (instance, str(bpffs), state_dir)
        self._pins = Pinned(attach or self._root, instance, bpffs, object_path)
        self._control: Control | None = None
        self._generations: Generations | None = None
        self._mapping: CgroupMap | None = None
        self._denied: DeniedFlows | None = None
        self._failsafe: tuple[tuple[FailsafeRule, ...], str | None] = (DEFAULT_FAILSAFE, None)
        self._addresses: Addresses | None = None
        self._watch: Watches | None = None

    # life

    def open(self) -> None:
        """See `Datapath.open`. Raises Unavailable with the verifier's last lines."""
        if self._pins.is_open:
            return
        fresh = self._pins.open(self._prepare)
        if fresh:
            self._stamp_existing()

    def _prepare(self) -> None:
        maps, attach = self._pins.maps, self._pins.attach
        owner = Owner(*self._named, attach.stat().st_ino, str(attach))
        bind_owner(owner, list(self._pins.programs.values()))
        self._control = Control(maps["controls"])
        self._generations = Generations(maps, self._control)
        self._mapping = CgroupMap(maps, self._control, self._root)
        self._denied = DeniedFlows(maps["events"])
        self._mapping.failsafe(*self._failsafe)
        self.watch_addresses()
        by_all = self._pins.attach == self._root
        self._addresses = Addresses(maps["own"], self._pids, by_all, self._watch)

    def mend(self) -> list[str]:
        """See `Datapath.mend`."""
        mapping = self._need(self._mapping)
        return [*self._pins.mend(self._may_attach), *mapping.mend()]

    def _may_attach(self) -> bool:
        """Whether no panic is marked in the kernel: what is missing may have been taken away by one."""
        marker = Marker(self._named[0], Path(self._named[1])).read(True)
        return marker is None or marker.ended

    def retire(self) -> bool:
        """See `Datapath.retire`."""
        self._need(self._control)
        return self._pins.retire()

    def former(self, other: bool) -> list[Binding]:
        """See `Datapath.former`."""
        mapping, homes = self._need(self._mapping), self._pins.others()
        if not other:
            return mapping.strangers()
        return mapping.living(former.bound(homes)) if homes else []

    def hand_over(self, left: Iterable[Binding]) -> None:
        """See `Datapath.hand_over`."""
        mapping, homes, listed = self._need(self._mapping), self._pins.others(), list(left)
        if homes:
            ids = former.bound(homes).keys() - {binding.cgroup_id for binding in listed}
            former.hand_over(homes, ids & mapping.ids(), [binding.path for binding in listed])

    def close(self) -> None:
        """See `Datapath.close`."""
        for part in (self._denied, self._generations, self._control):
            if part is not None:
                part.close()
        self._denied = self._generations = self._control = self._mapping = self._addresses = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._pins.close()

    def panic(self) -> None:
        """See `Datapath.panic`; works also where another process attached it."""
        for part in (self._denied, self._generations, self._control):
            if part is not None:
                part.close()
        self._denied = self._generations = self._control = self._mapping = self._addresses = None
        self._pins.remove()

    def doctor(self) -> list[Check]:
        """See `Datapath.doctor`."""
        return [*examine(self._pins), own_addresses()]

    def boot_ns(self) -> int:
        """See `Datapath.boot_ns`."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    @property
    def denied_fd(self) -> int | None:
        """See `Datapath.denied_fd`."""
        return self._need(self._denied).fd

    # generations

    def load(self, slot: int, role: Role, generation: Generation) -> Loaded:
        """See `Datapath.load`."""
        return self._need(self._generations).load(slot, role, generation)

    def flip(self, loaded: Loaded) -> None:
        """See `Datapath.flip`."""
        self._need(self._generations).flip(loaded)
        if loaded.role == "active":
            self.rejudge(loaded.slot)

    def flip_back(self, slot: int) -> bool:
        """See `Datapath.flip_back`."""
        if not self._need(self._generations).flip_back(slot):
            return False
        self.rejudge(slot)
        return True

    def forget(self, slot: int) -> None:
        """See `Datapath.forget`."""
        self._need(self._generations).forget(slot)

    def discard(self, loaded: Loaded) -> None:
        """See `Datapath.discard`."""
        self._need(self._generations).discard(loaded)

    def renew(self, slot: int, deadline_ns: int) -> None:
        """See `Datapath.renew`."""
        self._need(self._generations).renew(slot, deadline_ns)

    def remove(self, slot: int, role: Role) -> None:
        """See `Datapath.remove`."""
        self._need(self._generations).remove(slot, role)
        self._drop_flows()

    def held(self) -> list[Held]:
        """See `Datapath.held`."""
        return self._need(self._generations).held()

    # flows

    def rejudge(self, slot: int) -> None:
        """Judge every live flow of the service once by what is in force now. Best effort: namespaces
        without a process are not reached; their flows are judged at their next packet.

        The kernel's iterator is of one namespace, and each walks through the table of all of them, for about
        two milliseconds; so only namespaces that have sockets are looked into.
        """
        self._need(self._control).begin_pass(slot)
        self._each_namespace(slot, self._pass_tcp)
        with suppress(OSError):
            libbpf.run_program(self._pins.programs["aegis_pass_flows"], NO_PACKET)

    def _pass_tcp(self) -> None:
        if has_tcp():
            libbpf.run_iterator(self._pins.program("aegis_pass_tcp"))

    def cut(self, slot: int) -> int:
        """See `Datapath.cut`: TCP and connected UDP, in the namespaces of the service's processes."""
        if not self._pins.cutters:
            return self._cut_by_diag(slot)
        self._need(self._control).begin_pass(slot)

        def destroy() -> int:
            return sum(
                len(libbpf.run_iterator(self._pins.program(name)))
                for name in ("aegis_cut_tcp", "aegis_cut_udp")
            )

        return sum(self._each_namespace(slot, destroy))

    def _cut_by_diag(self, slot: int) -> int:
        """The same where the kernel has no bpf_sock_destroy."""
        self.rejudge(slot)
        flows = self._need(self._generations).flows_fd(slot)
        states = self._pins.maps["states"]
        tops = self._need(self._mapping).paths_of(slot)
        cgroups = {number for top in tops for number, _ in numbered(top)}

        def refused(found: diag.Found) -> bool:
            if found.proto == TCP:
                return found.slot == slot and found.refused
            if found.cgroup_id not in cgroups:
                return False
            key = found.udp_key(cookie())
            flow = libbpf.lookup(flows, key, layout.UDP_FLOW.size) if flows is not None else None
            return flow is not None and bool(layout.UDP_FLOW.unpack(flow)[0] & layout.W_REFUSED)

        def destroy() -> int:
            found = [s for proto in (TCP, UDP) for s in diag.sockets(proto, states) if refused(s)]
            return sum(map(diag.destroy, found))

        try:
            return sum(self._each_namespace(slot, destroy))
        finally:
            if flows is not None:
                os.close(flows)

    def live(self, slot: int) -> list[Flow]:
        """See `Datapath.live`: TCP and connected UDP, in the namespaces of the service's processes."""
        tops = self._need(self._mapping).paths_of(slot)
        cgroups = {
            number: str(Path(at).relative_to(self._root)) for top in tops for number, at in numbered(top)
        }
        states = self._pins.maps["states"]
        found = self._each_namespace(slot, lambda: initiations(cgroups, read_own().own(), states))
        return [flow for flows in found for flow in flows]

    def _each_namespace(self, slot: int, call: Callable[[], T]) -> list[T]:
        paths = self._need(self._mapping).paths_of(slot)
        return self._visited((pid for path in paths for pid in processes(path)), call)

    def _visited(self, pids: Iterable[int], call: Callable[[], T]) -> list[T]:
        """What each namespace of these processes answers; one that cannot be entered (it went, or we may not)
        is left out."""
        answers = []
        for answer in inside_each(each_namespace(pids), call):
            if not isinstance(answer, Exception):
                answers.append(answer)
            elif not isinstance(answer, OSError):
                raise answer
        return answers

    def _stamp_existing(self) -> None:
        """Sockets that live at the first attachment existed before; the listeners of their namespace, which
        nobody asks for later, tell who began them."""
        control, listeners = self._need(self._control), self._pins.maps["listeners"]

        def stamp() -> None:
            for kind in (PASS_LISTENERS, PASS_STAMP):
                control.begin_pass(0, kind)
                libbpf.run_iterator(self._pins.program("aegis_pass_tcp"))
            for key in libbpf.keys(listeners, layout.LISTENER_KEY.size):
                libbpf.delete(listeners, key)

        try:
            self._visited(processes(self._pins.attach), stamp)
        finally:
            control.begin_pass(0)

    # identity

    def bind(self, bindings: Iterable[Binding]) -> None:
        """See `Datapath.bind`."""
        wanted = list(bindings)
        try:
            self._need(self._mapping).bind(wanted, self._without_flows({b.slot for b in wanted}))
        finally:
            self._drop_flows()

    def bindings(self) -> list[Binding]:
        """See `Datapath.bindings`."""
        return self._need(self._mapping).bindings()

    def literals(self, paths: Mapping[str, int]) -> None:
        """See `Datapath.literals`."""
        self._need(self._mapping).literals(paths, self._without_flows(set(paths.values())))

    def refusals(self) -> Mapping[str, str]:
        """See `Datapath.refusals`."""
        return self._need(self._mapping).refusals()

    def _drop_flows(self) -> None:
        self._need(self._generations).drop_flows(self._need(self._mapping).slots())

    def _without_flows(self, slots: set[int]) -> dict[int, AegisError]:
        """The slots whose UDP flows have no room; the others have it now."""
        failed: dict[int, AegisError] = {}
        for slot in sorted(slots):
            try:
                self._need(self._generations).need_flows(slot)
            except OSError as error:
                failed[slot] = Unavailable(f"slot {slot}: no room for its UDP flows: {error.strerror}")
        return failed

    def failsafe(self, rules: Iterable[FailsafeRule], agent_cgroup: str | None) -> None:
        """See `Datapath.failsafe`."""
        self._failsafe = tuple(rules), agent_cgroup
        self._need(self._mapping).failsafe(*self._failsafe)

    def refresh_addresses(self) -> list[str]:
        """See `Datapath.refresh_addresses`."""
        addresses = self._need(self._addresses)
        addresses.refresh()
        return addresses.troubles()

    def watch_addresses(self) -> int | None:
        """See `Datapath.watch_addresses`."""
        if self._watch is None:
            with suppress(OSError):
                self._watch = Watches()
        return None if self._watch is None else self._watch.fd

    def heed_addresses(self) -> list[str]:
        """See `Datapath.heed_addresses`."""
        if self._addresses is None:
            if self._watch is not None:
                self._watch.drain()
                self._watch.drain_users()
            return []
        self._addresses.heed()
        return self._addresses.troubles()

    def addresses(self) -> tuple[Address, ...]:
        """See `Datapath.addresses`."""
        return () if self._addresses is None else self._addresses.reached

    def namespaces_unknown(self) -> int:
        """See `Datapath.namespaces_unknown`."""
        return 0 if self._addresses is None else self._addresses.unknown()

    def own(self, slot: int) -> Own:
        """See `Datapath.own`."""
        return reduce(Own.joined, (read.own() for read in self._each_namespace(slot, read_own)), Own())

    def _pids(self) -> Iterator[int]:
        """Processes whose namespaces matter: of what is governed, or of all that could be."""
        if self._pins.attach == self._root:
            paths = self._need(self._mapping).paths()
            return (pid for path in paths for pid in processes(path))
        return processes(self._pins.attach)

    # what it tells

    def counters(self, slot: int) -> Mapping[str, int]:
        """See `Datapath.counters`; they count from the first attachment, over restarts of the agent."""
        rows = [self._counter(slot, i) for i in range(layout.COUNTERS)]
        found: Counter[str] = Counter()
        for number in layout.REASONS:
            found[reason_of(number)] += rows[number]
        found["kept"] = rows[10]
        found["would_block"] = rows[layout.C_WOULD_BLOCK]
        found["lost_events"] = rows[layout.C_LOST_EVENTS] + (self._denied.lost if self._denied else 0)
        found["evicted_flows"] = self._evicted(slot, rows[layout.C_UDP_CREATED])
        return dict(found)

    def _counter(self, slot: int, index: int, role: int = 0) -> int:
        row = (role * layout.SLOT_ROWS + slot) * layout.COUNTERS + index
        size = 8 * libbpf.lib().libbpf_num_possible_cpus()
        raw = libbpf.lookup(self._pins.maps["counters"], row.to_bytes(4, "little"), size) or b""
        return sum(n for (n,) in struct.iter_unpack("<Q", raw))

    def _evicted(self, slot: int, created: int) -> int:
        if created <= UDP_FLOWS // 2:
            return 0
        fd = self._need(self._generations).flows_fd(slot)
        if fd is None:
            return 0
        try:
            return max(0, created - len(libbpf.keys(fd, layout.UDP_KEY.size)))
        finally:
            os.close(fd)

    def drain_denied(self, limit: int) -> list[DeniedFlow]:
        """See `Datapath.drain_denied`."""
        return self._need(self._denied).drain(limit, self._need(self._generations).known)

    def why(self, slot: int, flow: Flow, role: Role = "active") -> Verdict:
        """See `Datapath.why`. Raises Unavailable where the kernel's tables are broken."""
        generations = self._need(self._generations)
        found = generations.read(slot, role)
        if found is None:
            return Verdict("allow", "unmanaged", mode="observe")
        head, tables, _ = found
        if tables is None:
            raise Unavailable(f"slot {slot}: the tables in the kernel are broken")
        own = self.own(slot)
        expired = role == "active" and self.boot_ns() >= generations.deadline(head)
        host = Host(own.addresses, self._need(self._mapping).rules(), expired, own.prefixes)
        return judge_tables(tables, head, flow, host, head.digest)

    def test_run(
        self, program: str, packet: bytes, cb: tuple[int, ...] = (), repeat: int = 1
    ) -> tuple[int, int]:
        """(return value, ns a run) of a program over an Ethernet frame with these words in skb->cb."""
        context = bytearray(192)
        struct.pack_into(f"<{len(cb)}I", context, 48, *cb)
        with suppress(KeyError):
            return libbpf.run_program(self._pins.programs[program], packet, bytes(context), repeat)
        raise Unavailable(f"no program {program}")

    def _need(self, part: T | None) -> T:
        if part is None:
            raise Unavailable("the datapath is not open")
        return part
