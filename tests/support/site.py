"""A whole AegisFlux on one machine: `aegisflux up` in the hub of a lab, hosts with agents and kernels.

    with Site(("alpha", "beta")) as site:
        site.post(1, [site.allow("peer", "tcp", 7001)])

Selectors are literal paths, so that a cgroup is governed from its first moment on.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from demo import product
from demo.fleet import Machine, RealFleet
from demo.inside import Answer, Api

from aegisflux.adapters.bus.accounts import NatsAccounts
from aegisflux.adapters.bus.nats import NatsBus, NatsOptions
from aegisflux.adapters.secrets.file import FileSecrets
from aegisflux.adapters.secrets.pki import CA_CERT
from aegisflux.domain.errors import Unavailable
from aegisflux.ports.bus import Message
from aegisflux.wire import subjects
from tests.support.netns import cgroup_root

SERVICE, UNIT = 201, "app"
ENGINES = {
    "nats": "nats-server",
    "postgres": "bin/postgres",
    "orchestrator": "aegisflux orchestrator",
    "ingest": "aegisflux ingest",
    "enrich": "aegisflux enrich",
    "segmenter": "aegisflux segmenter",
}


class Site:
    """Hosts run service 201 in the cgroup app.service; `peer` has no agent and answers on ports."""

    def __init__(self, hosts: Sequence[str], lease: int = 0) -> None:
        self.hosts, self.lease = tuple(hosts), lease
        self.fleet = RealFleet((*hosts, "peer"))
        self.data = self.fleet.folder / "control"
        self.api = Api(None, product.api_port(self.fleet.port_base))

    def __enter__(self) -> Self:
        try:
            self.fleet.open()
            self.api.netns = self.fleet.netns
            self.start_control()
            self.api.token = product.admin_token(self.data)
            for host in self.hosts:
                self._enrol(host)
            self._register()
        except BaseException:
            self.fleet.close()
            raise
        return self

    def __exit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.fleet.close()

    def start_control(self) -> None:
        """`aegisflux up`, until it is ready."""
        argv, settings = product.up(self.data, self.fleet.control_address, self.fleet.port_base, self.lease)
        self.fleet.start_control(argv, settings)
        until(self.ready, 60, self.fleet.tail_of_log)

    def ready(self) -> bool:
        """Whether all that the control plane needs is reachable."""
        with suppress(OSError):
            return self.api.get("/readyz").status == 200
        return False

    def machine(self, host: str) -> Machine:
        return self.fleet.machines[host]

    def address(self, host: str) -> str:
        return self.machine(host).address

    def cgroup(self, host: str) -> Path:
        """Where the service runs on a host."""
        return self.machine(host).attach / f"{UNIT}.service"

    def allow(self, host: str, proto: str, port: int) -> dict[str, Any]:
        return {"dst_cidr": f"{self.address(host)}/32", "proto": proto, "port": port}

    def body(self, version: int, edges: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"version": version, "service_id": SERVICE, "ttl_seconds": 3600, "edges": edges, **more}

    def post(self, version: int, edges: list[dict[str, Any]], **more: Any) -> Answer:
        """Post a snapshot to all hosts of the service."""
        return self.api.post("/seg/maps", self.body(version, edges, **more))

    def next_version(self) -> int:
        answer = self.api.get(f"/seg/maps/{SERVICE}")
        return int(answer.body["next_version"]) if answer.status == 200 else 1

    def status(self, host: str) -> dict[str, Any]:
        """The control plane's word about the service on a host."""
        hosts = self.api.get(f"/seg/maps/{SERVICE}/status").body["hosts"]
        return next((h for h in hosts if h["host_id"] == host), {})

    def in_force(self, host: str, version: int) -> bool:
        """Whether the host's kernel holds the version, as the control plane knows from an ack."""
        found = self.status(host)
        return found.get("state") == "in_force" and found["observed"]["version"] == version

    def confirmed(self, host: str, version: int) -> bool:
        """Whether the host need not go back any more: the control plane confirmed what it acked."""
        return self.in_force(host, version) and self.status(host)["confirmed"] is not False

    def reported(self, host: str) -> dict[str, Any]:
        """What the host's own agent says of the service; empty while it says nothing."""
        found = self.machine(host).ask("status") or {}
        return next(iter(found.get("services", [])), {})

    def start_agent(self, host: str) -> None:
        self.machine(host).start_agent([product.AEGISFLUX, "agent", "run"])

    def end_agent(self, host: str) -> None:
        """kill -9 of an agent."""
        agent = self.machine(host).agent
        assert agent is not None
        agent.send_signal(signal.SIGKILL)
        agent.wait()

    def pids(self, engine: str) -> list[int]:
        """Processes of one of ENGINES below the control plane's cgroup, lowest first."""
        found = []
        for listing in self.fleet.lab.hub.below("control.service").rglob("cgroup.procs"):
            for pid in map(int, listing.read_text().split()):
                with suppress(OSError):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if ENGINES[engine] in command:
                        found.append(pid)
        return sorted(found)

    def kill(self, engine: str) -> None:
        """kill -9 of an engine's first process."""
        for pid in self.pids(engine)[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def announced(self, service_id: int = SERVICE) -> list[int]:
        """Versions of a service as actions.seg.maps holds them, in the order of the stream."""
        url = f"nats://{self.fleet.control_address}:{product.nats_port(self.fleet.port_base)}"
        secrets = product.secrets(self.data)
        found = self.fleet.lab.hub.call(_announcements, secrets, url, timeout=40)
        return [version for service, version in found if service == service_id]

    def desired(self, host: str) -> bytes | None:
        """The manifest of a host that the bus holds now."""
        url = f"nats://{self.fleet.control_address}:{product.nats_port(self.fleet.port_base)}"
        return self.fleet.lab.hub.call(_last, product.secrets(self.data), url, subjects.desired(host))

    def _enrol(self, host: str) -> None:
        machine = self.machine(host)
        answer = self.api.post("/api/v1/hosts/tokens", {"labels": {"role": UNIT}})
        assert answer.status in (200, 201), answer
        done = product.agent(machine, "enroll", "--host-id", host, stdin=answer.body["token"] + "\n")
        assert done.returncode == 0, done.stderr
        self.start_agent(host)

    def _register(self) -> None:
        selectors = [f"cgroup:{self.cgroup(h).relative_to(cgroup_root())}" for h in self.hosts]
        body = {"id": SERVICE, "name": UNIT, "selectors": selectors, "host_labels": {"role": UNIT}}
        answer = self.api.post("/api/v1/services", body)
        assert answer.status in (200, 201), answer


def _announcements(secrets: Path, url: str) -> list[tuple[int, int]]:
    """(service, version) of all that the stream holds; runs in the hub's namespace."""

    async def read() -> list[tuple[int, int]]:
        bus = await _bus(secrets, url)
        found: list[tuple[int, int]] = []
        last = await bus.last(subjects.MAPS)
        say(f"announcements: the last one is {last.sequence if last else 0}")
        done = asyncio.Event()

        async def told(batch: Sequence[Message]) -> None:
            for message in batch:
                told_of = json.loads(message.payload)
                found.append((told_of["service_id"], told_of["version"]))
                if last is None or message.sequence >= last.sequence:
                    done.set()

        await bus.consume("MAPS", f"reader-{os.getpid()}", told)
        try:
            await asyncio.wait_for(done.wait(), 10)
        finally:
            say(f"announcements: read {len(found)}")
            await bus.close()
        return found

    return asyncio.run(read())


async def _bus(secrets: Path, url: str) -> NatsBus:
    accounts = FileSecrets(secrets)
    credentials = NatsAccounts(accounts, int(time.time())).control_creds(int(time.time()))
    authority = accounts.path(CA_CERT).read_text()
    bus = NatsBus(NatsOptions(urls=[url], credentials=credentials, ca_pem=authority, trouble=say))
    bus.open()
    await bus.ready()
    return bus


def _last(secrets: Path, url: str, subject: str) -> bytes | None:
    """The last value of a subject; None while there is none, or no bus; runs in the hub's namespace."""

    async def read() -> bytes | None:
        try:
            bus = await _bus(secrets, url)
        except Unavailable:
            return None
        try:
            found = await bus.last(subject)
        except Unavailable:
            return None
        finally:
            await bus.close()
        return found.payload if found else None

    return asyncio.run(read())


def until(look: Callable[[], Any], seconds: float = 20, why: Callable[[], str] = str) -> Any:
    """Poll until there is something and give it; AssertionError with `why` after `seconds`."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s: {why() or getattr(look, '__name__', look)}")


def say(text: str) -> None:
    """A line that pytest shows when the test fails."""
    print(text, file=sys.stderr, flush=True)
