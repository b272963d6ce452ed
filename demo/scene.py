"""What all chapters of the story share: the fleet, the API, the programs, and ways to observe."""

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo import product
from demo.account import Account
from demo.inside import Answer, Api
from demo.talking import REFUSED, WORKS, Attempts, Talking

WEB, DB, BATCH = 101, 102, 103
SQL, STATS, DROP, PAGES = 5432, 8125, 9999, 8080
HOSTS = ("web-1", "web-2", "db", "batch", "intruder")
SERVICES = {WEB: "web", DB: "db", BATCH: "batch"}
RUNS = {"web-1": "web", "web-2": "web", "db": "db", "batch": "batch"}


@dataclass(slots=True)
class Scene:
    """`programs` by host: what talks there. `forger` is whoever broke into the bus; `second` is
    the token of a second person."""

    account: Account
    fleet: Any
    api: Api
    data: Path
    port_base: int
    programs: dict[str, Attempts] = field(default_factory=dict)
    second: str = ""
    forger: Talking | None = None
    captured: list[bytes] = field(default_factory=list)

    def address(self, host: str) -> str:
        return str(self.fleet.machines[host].address)

    def works(self, source: str, target: str, proto: str, port: int, why: str = "") -> bool:
        """Expect that a program of `source` reaches `target`."""
        found = self.programs[source].attempt(proto, self.address(target), port)
        claim = f"{source} reaches {target} {proto}/{port}" + (f" ({why})" if why else "")
        return self.account.expect(claim, found["word"] in WORKS, found["word"], found["ms"])

    def refused(self, source: str, target: str, proto: str, port: int, why: str = "") -> bool:
        """Expect that it does not: EPERM at the call, or silence where the peer's host refuses."""
        found = self.programs[source].attempt(proto, self.address(target), port)
        claim = f"{source} does not reach {target} {proto}/{port}" + (f" ({why})" if why else "")
        return self.account.expect(claim, found["word"] in REFUSED, found["word"], found["ms"])

    def becomes(
        self,
        words: tuple[str, ...],
        source: str,
        target: str,
        proto: str,
        port: int,
        since: float,
        claim: str,
    ) -> bool:
        """Expect that attempts come to end in one of the words; the time since `since` is reported."""
        found = self.programs[source].until(words, proto, self.address(target), port, 8.0)
        return self.account.expect(claim, found["word"] in words, found["word"], (found["at"] - since) * 1000)

    def post(self, claim: str, path: str, body: object) -> tuple[Answer, float]:
        """A request that must be accepted; the answer, and when it was sent (CLOCK_MONOTONIC)."""
        sent = time.monotonic()
        answer = self.api.post(path, body)
        took = (time.monotonic() - sent) * 1000
        shown = answer.detail if answer.status >= 300 else str(answer.status)
        self.account.expect(claim, answer.status in (200, 201), shown, took)
        return answer, sent

    def explained(
        self, host: str, target: str, proto: str, port: int, wanted: str, *, ingress: bool = False
    ) -> bool:
        """Expect the reason that the host's kernel gives for a flow of its service."""
        machine, service = self.fleet.machines[host], RUNS[host]
        found = product.why(machine, service, proto, self.address(target), port, ingress=ingress)
        arrow = "<-" if ingress else "->"
        claim = f"aegisflux agent why on {host}: {service} {arrow} {target} {proto}/{port}"
        return self.account.expect(claim, found["reason"] == wanted, product.reason(found))

    def provoke(self, source: str, target: str, proto: str, port: int) -> None:
        """One more attempt, whatever comes of it."""
        self.programs[source].attempt(proto, self.address(target), port)

    def capture(self, host: str) -> bytes:
        """The desired state of a host as whoever owns the bus reads it; kept for later."""
        if self.forger is None:
            self.forger = self.fleet.forger(product.secrets(self.data), self.nats)
        payload = base64.b64decode(self.forger.ask(do="capture", host=host)["answer"])
        self.captured.append(payload)
        return payload

    def forge(self, host: str, payload: bytes) -> None:
        """Put bytes in the place of a host's desired state."""
        assert self.forger is not None
        self.forger.ask(do="publish", host=host, payload=base64.b64encode(payload).decode())

    @property
    def nats(self) -> str:
        return f"nats://{self.fleet.control_address}:{product.nats_port(self.port_base)}"

    def wait(self, what: str, seconds: float, look: Callable[[], Any]) -> Any:
        """Look until there is something, and give it; None when the time is over."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            found = look()
            if found:
                return found
            time.sleep(0.05)
        self.account.expect(what, False, f"not within {seconds:g} s")
        return None


def edge(address: str, proto: str, port: int) -> dict[str, Any]:
    return {"dst_cidr": f"{address}/32", "proto": proto, "port": port}


def source(address: str, proto: str, port: int) -> dict[str, Any]:
    return {"src_cidr": f"{address}/32", "proto": proto, "port": port}


def snapshot(service: int, version: int, **parts: Any) -> dict[str, Any]:
    """A MapSnapshot with an hour's TTL; leases.max_seconds makes its lease shorter."""
    return {"version": version, "service_id": service, "ttl_seconds": 3600, **parts}
