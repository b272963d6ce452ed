"""Joins each event with what is known at that time. Nothing here asks anybody: it is told, and remembers.

What it is told: hosts, services, inventories, listeners, open vulnerabilities and indicators (`learn`), and
the events themselves, in their order: processes from exec, listeners from listen, callers from flows. Each
memory has a bound. A join that should have found something and did not is counted in `misses`, not guessed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from aegisflux.domain.address_class import address_class
from aegisflux.domain.enriched import (
    Context,
    Enriched,
    EnrichedBatch,
    Indicator,
    OpenVulnerability,
    PackageRef,
)
from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import (
    Ancestor,
    Auth,
    Event,
    EventBatch,
    Exec,
    Exit,
    File,
    FlowSeen,
    Listen,
    Log,
    VerdictSeen,
)
from aegisflux.domain.inventory import PackageInventory
from aegisflux.domain.known import Known, KnownHost, KnownListener, KnownService, KnownVulnerability
from aegisflux.domain.selectors import Selector, owners, parse_stored_selector

MAX_PROCESSES: Final = 16_384  # of a host and boot, and of all its earlier boots together
MAX_PROCESS_BYTES: Final = 16 << 20  # of the paths of a host's processes and what stands above them
ANCESTOR_BYTES: Final = 160
MAX_BOOTS: Final = 16  # of a host whose processes are known; each request of a third party is one
MAX_LISTENERS, MAX_ADDRESSES = 4096, 64  # ports of a host that somebody listens at, addresses of a port
MAX_LISTENING: Final = 8192  # addresses of all ports of a host
MAX_CALLERS: Final = 8192  # of a host: whom it calls
MAX_CACHED: Final = 16_384  # contexts of a host
MAX_CGROUPS: Final = 4096
SEVERAL: Final = -1


class Program(NamedTuple):
    """What a process runs, and what stands above it. `number` is its own: contexts are kept by it."""

    number: int
    path: str
    ancestors: tuple[Ancestor, ...]


class Owner(NamedTuple):
    """Whose a listener is: the service that the kernel named, else that of the cgroup when it is asked.
    `told` is what was said of it last.
    """

    service_id: int | None
    cgroup: str
    told: int | None


class _Host:
    """One host: what the registry says, and what its events taught.

    `epoch` rises when who listens here, or who calls here, changes: contexts made before are not used again.
    """

    def __init__(self, host_id: str) -> None:
        self.host_id = host_id
        self.labels: dict[str, str] = {}
        self.addresses: frozenset[str] = frozenset()
        self.packages: dict[str, PackageRef] = {}
        self.vulnerabilities: dict[PackageRef | None, tuple[OpenVulnerability, ...]] = {}
        self.listeners: dict[tuple[int, int], dict[str, Owner]] = {}
        self.processes: dict[str, dict[tuple[int, int], Program]] = {}
        self.cgroups: dict[str, int | None] = {}
        self.contexts: dict[tuple[object, ...], Context] = {}
        self.callers: dict[tuple[str, int, int], int] = {}
        self.listening = 0
        self.process_bytes = 0
        self.epoch = 0


class Joins:
    """`enrich` is the whole of it; everything else is how it learns."""

    def __init__(self) -> None:
        self.misses: Counter[str] = Counter()
        self._hosts: dict[str, _Host] = {}
        self._addresses: dict[str, str | None] = {}
        self._names: dict[int, str] = {}
        self._services: dict[int, tuple[tuple[Selector, ...], Mapping[str, str]]] = {}
        self._indicators: dict[str, tuple[Indicator, ...]] = {}
        self._programs = 0

    # what is known

    def learn(self, known: Known) -> None:
        """Everything that the registry knows, instead of what it knew before."""
        self.learn_services(known.services)
        self.learn_hosts(known.hosts)
        for inventory in known.inventories:
            self.learn_inventory(inventory)
        for listener in known.listeners:
            given = None if listener.cgroup else listener.service_id
            owner = Owner(given, listener.cgroup, listener.service_id)
            at = listener.proto, listener.port
            self._listens(self._host(listener.host_id), at, listener.address, owner)
        self.learn_vulnerabilities(known.vulnerabilities)
        self.learn_indicators(known.indicators)

    def learn_hosts(self, hosts: Iterable[KnownHost]) -> None:
        """All hosts. An address that two hosts claim belongs to none."""
        addresses: dict[str, str | None] = {}
        for host in self._hosts.values():  # who was released is none any more
            host.labels, host.addresses = {}, frozenset()
        for known in hosts:
            host = self._host(known.host_id)
            host.labels, host.addresses = dict(known.labels), frozenset(known.addresses)
            for address in known.addresses:
                addresses[address] = None if address in addresses else known.host_id
        self._addresses = addresses
        self._forget()

    def learn_services(self, services: Iterable[KnownService]) -> None:
        """All services; a selector that cannot be read selects nothing."""
        self._names, self._services = {}, {}
        for known in services:
            self._names[known.service_id] = known.name
            self._services[known.service_id] = (tuple(_selectors(known.selectors)), known.host_labels)
        self._forget()

    def learn_inventory(self, inventory: PackageInventory) -> None:
        """The packages of a host."""
        host = self._host(inventory.host_id)
        host.packages = {
            path: PackageRef(package.type, package.name, package.version, package.source)
            for package in inventory.packages
            for path in package.binaries
        }
        host.contexts.clear()

    def learn_vulnerabilities(self, found: Iterable[KnownVulnerability]) -> None:
        """All open ones of all hosts."""
        for host in self._hosts.values():
            host.vulnerabilities.clear()
        for known in found:
            open_ones = self._host(known.host_id).vulnerabilities
            open_ones[known.package] = (*open_ones.get(known.package, ()), known.vulnerability)
        self._forget()

    def learn_indicators(self, indicators: Iterable[Indicator]) -> None:
        """All indicators, by the address or path that they name."""
        self._indicators = {}
        for indicator in indicators:
            self._indicators[indicator.value] = (*self._indicators.get(indicator.value, ()), indicator)
        self._forget()

    def moved_listeners(self) -> list[KnownListener]:
        """Those of another service than was said last; each is named once."""
        found = []
        for host in self._hosts.values():
            for (proto, port), at in host.listeners.items():
                for address, owner in at.items():
                    service = self._service_of(host, owner.cgroup, owner.service_id)
                    if service != owner.told:
                        at[address] = owner._replace(told=service)
                        found.append(KnownListener(host.host_id, proto, address, port, service, owner.cgroup))
        return found

    def _forget(self) -> None:
        for host in self._hosts.values():
            host.cgroups.clear()
            host.contexts.clear()
            host.callers.clear()

    # events

    def enrich(self, batch: EventBatch, received_ns: int, offset_ns: int = 0) -> EnrichedBatch:
        """Each event with its context, in order. Later events of a batch know the earlier ones."""
        host = self._host(batch.host_id)
        programs = self._programs_of(host, batch.boot_id)
        if not host.labels and not host.addresses:
            self.misses["host"] += len(batch.events)
        joined = tuple([Enriched(event, self._context(host, programs, event)) for event in batch.events])
        return EnrichedBatch(
            host_id=batch.host_id,
            boot_id=batch.boot_id,
            received_ns=received_ns,
            events=joined,
            labels=host.labels,
            offset_ns=offset_ns,
            lost=batch.lost,
        )

    def _context(self, host: _Host, programs: dict[tuple[int, int], Program], event: Event) -> Context:
        if isinstance(event, FlowSeen):
            return self._of_flow(host, programs, event)
        if isinstance(event, Exec):
            return self._of_exec(host, programs, event)
        if isinstance(event, Exit):
            program = programs.pop((event.pid, event.start_ns), None)
            _gone(host, program)
            path = event.path or (program.path if program else "")
            return self._of_program(host, "", path, program)
        if isinstance(event, Listen):
            return self._of_listen(host, programs, event)
        if isinstance(event, VerdictSeen):
            return self._of_verdict(host, event)
        return self._of_foreign(host, event)

    def _of_exec(self, host: _Host, programs: dict[tuple[int, int], Program], event: Exec) -> Context:
        host.process_bytes += _size(event.path, event.ancestors)
        while programs and (len(programs) >= MAX_PROCESSES or host.process_bytes > MAX_PROCESS_BYTES):
            _gone(host, programs.pop(next(iter(programs))))
        self._programs += 1
        _gone(host, programs.pop((event.pid, event.start_ns), None))
        programs[event.pid, event.start_ns] = Program(self._programs, event.path, event.ancestors)
        return self._of_program(host, event.cgroup, event.path, None)

    def _of_program(self, host: _Host, cgroup: str, path: str, program: Program | None) -> Context:
        key = (cgroup, path, program.number if program else 0)
        found = host.contexts.get(key)
        if found is None:
            service = self._service_of(host, cgroup, None)
            package = host.packages.get(path)
            found = self._kept(
                host,
                key,
                Context(
                    service_id=service,
                    service=self._name(service),
                    path=program.path if program else "",
                    ancestors=program.ancestors if program else (),
                    package=package,
                    vulnerabilities=host.vulnerabilities.get(package, ()),
                    indicators=self._indicators.get(path, ()),
                ),
            )
        if found.package is None and path and host.packages:
            self.misses["package"] += 1
        return found

    def _of_flow(self, host: _Host, programs: dict[tuple[int, int], Program], event: FlowSeen) -> Context:
        callee = self._hosts.get(self._addresses.get(event.peer) or "")
        program = programs.get((event.pid, event.start_ns)) if event.pid else None
        key = (
            event.direction, event.proto, event.local, event.peer, event.port, event.service_id, event.cgroup,
            event.path, program.number if program else 0, host.epoch, callee.epoch if callee else 0,
        )  # fmt: skip
        found = host.contexts.get(key)
        if found is None:
            service = self._service_of(host, event.cgroup, event.service_id)
            path = event.path or (program.path if program else "")
            found = self._kept(host, key, self._peered(host, event, service, path, program))
        if event.direction == "egress":
            self._calls(host, callee, event, found.service_id)
        if event.pid and not found.ancestors:
            self.misses["process"] += 1
        if not found.peer_host:
            self.misses["peer_host"] += 1
        return found

    def _peered(
        self,
        host: _Host,
        event: FlowSeen | VerdictSeen,
        service: int | None,
        path: str,
        program: Program | None,
    ) -> Context:
        peer_host = host.host_id if event.peer in host.addresses else self._addresses.get(event.peer) or ""
        peer_service = self._peer_service(peer_host, event)
        package = host.packages.get(path)
        return Context(
            service_id=service,
            service=self._name(service),
            peer_class="own" if event.peer in host.addresses else address_class(event.peer),
            peer_host=peer_host,
            peer_service_id=peer_service,
            peer_service=self._name(peer_service),
            path=path if path != getattr(event, "path", "") else "",
            ancestors=program.ancestors if program else (),
            package=package,
            vulnerabilities=host.vulnerabilities.get(package, ()),
            indicators=self._indicators.get(event.peer, ()) + self._indicators.get(path, ()),
        )

    def _peer_service(self, peer_host: str, event: FlowSeen | VerdictSeen) -> int | None:
        """Of the callee who listens there, or of the caller by its own host's report of the same flow."""
        egress = event.direction == "egress"
        if isinstance(event, FlowSeen):
            port = event.port
        else:
            port = (event.peer_port if egress else event.local_port) or 0
        if egress:
            return self._listener(peer_host, event.proto, event.peer, port)
        peer = self._hosts.get(peer_host)
        caller = peer.callers.get((event.local or "", event.proto, port)) if peer else None
        return None if caller == SEVERAL else caller

    def _of_listen(self, host: _Host, programs: dict[tuple[int, int], Program], event: Listen) -> Context:
        program = programs.get((event.pid, event.start_ns)) if event.pid else None
        owner = Owner(event.service_id, event.cgroup, self._service_of(host, event.cgroup, event.service_id))
        self._listens(host, (event.proto, event.port), event.address, owner, event.closed)
        path = event.path or (program.path if program else "")
        return self._of_program(host, event.cgroup, path, program)

    def _of_verdict(self, host: _Host, event: VerdictSeen) -> Context:
        return self._peered(host, event, event.service_id, "", None)

    def _of_foreign(self, host: _Host, event: Auth | File | Log) -> Context:
        if isinstance(event, Auth):
            if event.address is None:
                return _NOTHING
            peer = self._addresses.get(event.address) or ""
            indicators = self._indicators.get(event.address, ())
            return Context(peer_class=address_class(event.address), peer_host=peer, indicators=indicators)
        return self._of_program(host, "", event.exe, None) if event.exe else _NOTHING

    # memories

    def _host(self, host_id: str) -> _Host:
        found = self._hosts.get(host_id)
        if found is None:
            found = self._hosts[host_id] = _Host(host_id)
        return found

    def _programs_of(self, host: _Host, boot_id: str) -> dict[tuple[int, int], Program]:
        """Those of a boot, which is now the newest. The oldest goes: of a third party's before the host's."""
        boots = host.processes
        found = boots.pop(boot_id, None)
        crowded = found is None and len(boots) >= MAX_BOOTS
        while boots and (crowded or sum(map(len, boots.values())) > MAX_PROCESSES):
            oldest = next((boot for boot in boots if boot.startswith("http:")), next(iter(boots)))
            for program in boots.pop(oldest).values():
                _gone(host, program)
            crowded = False
        boots[boot_id] = found = {} if found is None else found
        return found

    def _kept(self, host: _Host, key: tuple[object, ...], context: Context) -> Context:
        if len(host.contexts) >= MAX_CACHED:
            host.contexts.clear()
        host.contexts[key] = context
        return context

    def _listens(
        self, host: _Host, port: tuple[int, int], address: str, owner: Owner, closed: bool = False
    ) -> None:
        if port not in host.listeners and len(host.listeners) >= MAX_LISTENERS:
            host.listening -= len(host.listeners.pop(next(iter(host.listeners))))
        at = host.listeners.setdefault(port, {})
        before = at.get(address)
        if closed:
            at.pop(address, None)
        elif address in at or (len(at) < MAX_ADDRESSES and host.listening < MAX_LISTENING):
            at[address] = owner
        host.listening += (address in at) - (before is not None)
        host.epoch += at.get(address) != before

    def _listener(self, host_id: str, proto: int, address: str, port: int) -> int | None:
        host = self._hosts.get(host_id)
        at = host.listeners.get((proto, port)) if host else None
        if host is None or not at:
            return None
        any_address = at.get("0.0.0.0", at.get("::")) if "." in address else at.get("::")  # noqa: S104
        owner = at.get(address, any_address)
        return None if owner is None else self._service_of(host, owner.cgroup, owner.service_id)

    def _calls(self, host: _Host, callee: _Host | None, event: FlowSeen, service: int | None) -> None:
        """Who calls what, for the other side's sight of the same flow; two services of one host: nobody's."""
        key = (event.peer, event.proto, event.port)
        said = SEVERAL if service is None else service
        known = host.callers.get(key)
        if known is not None and known in (said, SEVERAL):
            return
        if len(host.callers) >= MAX_CALLERS:
            del host.callers[next(iter(host.callers))]
        host.callers[key] = said if known is None else SEVERAL
        if callee is not None:
            callee.epoch += 1

    def _name(self, service: int | None) -> str:
        return "" if service is None else self._names.get(service, f"service-{service}")

    def _service_of(self, host: _Host, cgroup: str, service: int | None) -> int | None:
        if service is not None or not cgroup:
            return service
        if cgroup not in host.cgroups:
            if len(host.cgroups) >= MAX_CGROUPS:
                host.cgroups.clear()
            host.cgroups[cgroup] = self._selected(host, cgroup)
        return host.cgroups[cgroup]

    def _selected(self, host: _Host, cgroup: str) -> int | None:
        """The service of the deepest selected cgroup above or at the path; a user's directory selects none
        below it."""
        wanted = {
            number: selectors
            for number, (selectors, labels) in self._services.items()
            if labels.items() <= host.labels.items()
        }
        parts = cgroup.strip("/").split("/")
        given = next((n for n, part in enumerate(parts) if _USER_MANAGER.fullmatch(part)), len(parts))
        paths = ["/".join(parts[:n]) for n in range(min(len(parts), given + 1), 0, -1)]
        won = owners(paths, wanted).services
        return next((won[path] for path in paths if path in won), None)


def _size(path: str, ancestors: tuple[Ancestor, ...]) -> int:
    return len(path) + ANCESTOR_BYTES * len(ancestors)


def _gone(host: _Host, program: Program | None) -> None:
    if program is not None:
        host.process_bytes -= _size(program.path, program.ancestors)


_NOTHING: Final = Context()
# systemd gives its directory to the user; the host knows of other delegated ones, and says whose flows are
_USER_MANAGER: Final = re.compile(r"user@[0-9]+\.service")


def _selectors(texts: Iterable[str]) -> Iterable[Selector]:
    for text in texts:
        try:
            yield parse_stored_selector(text)
        except Invalid:
            continue
