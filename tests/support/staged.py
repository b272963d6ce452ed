"""Rollouts in stages over a whole AegisFlux: `Site` with a segmenter, a second person, and calls that count.

with Site(("alpha", "beta")) as site:
    staged = Staged(site)
    number = staged.begin(staged.plan(7001))
"""

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from demo.inside import Api

from aegisflux.settings import Settings
from tests.support import probes
from tests.support.site import UNIT, Site, until

SOON: Final = {"least_seconds": 0, "least_flows": 3, "fine": 0.01, "bad": 0.9, "silent_seconds": 20}
LIMITS: Final = {"most_of_fleet": 1.0, "most_of_service": 0.5, "changes_an_hour": 1000}
RECORDED: Final = 40.0


class Staged:
    """What an operator does, over HTTP; the service calls `peer` on ports that it serves."""

    def __init__(self, site: Site) -> None:
        self.site = site
        ports = Settings(port_base=site.fleet.port_base)
        self.segmenter = Api(site.fleet.netns, ports.segmenter_port, site.api.token)
        self.enrich = Api(site.fleet.netns, ports.enrich_port, site.api.token)
        self.ready()
        answer = site.api.post("/api/v1/tokens", {"name": "second", "role": "approver"})
        assert answer.status == 201, answer
        self.second = answer.body["token"]

    def ready(self) -> None:
        """Wait until the services answer."""
        for api in (self.segmenter, self.enrich):
            until(lambda api=api: _ready(api), 60, self.site.fleet.tail_of_log)

    def call(self, host: str, port: int) -> str:
        """The service's call, as its program sees it."""
        return self.site.machine(host).host.call(
            probes.tcp, self.site.address("peer"), port, cgroup=f"{UNIT}.service"
        )

    def calls(self, *ports: int, hosts: Iterable[str] = ()) -> list[str]:
        """One call to each port from each host."""
        return [self.call(host, port) for host in (hosts or self.site.hosts) for port in ports]

    def recorded(self, *ports: int) -> None:
        """Call until the store knows of each port from each host."""

        def seen() -> bool:
            self.calls(*ports)
            found = self.enrich.get(f"/api/v1/flows?filter=from%3D{UNIT}&limit=1000")
            assert found.status == 200, found
            rows = found.body["items"]
            return {(row["host_id"], row["port"]) for row in rows} >= {
                (host, port) for host in self.site.hosts for port in ports
            }

        until(seen, RECORDED, self.site.fleet.tail_of_log)

    def plan(self, *ports: int, accept: bool = False, gate: dict[str, float] | None = None) -> int:
        """A plan that lets the service call these ports, made by one and approved by another."""
        peer = self.site.address("peer")
        named = ", ".join(f"tcp/{port}" for port in ports)
        text = f"policy: 1\nttl_seconds: 600\nrules:\n  - {{from: {UNIT}, to: {peer}/32, ports: [{named}]}}\n"
        strategy = {"canary_hosts": [self.site.hosts[0]], "gate": SOON | (gate or {}), "limits": LIMITS}
        answer = self.segmenter.post("/segment/plan", {"policy": text, "strategy": strategy})
        assert answer.status == 202, answer

        def done() -> dict[str, Any] | None:
            found = self.segmenter.get(f"/segment/operations/{answer.body['id']}").body
            assert found["state"] in ("running", "done"), found
            return found if found["state"] == "done" else None

        path = until(done, 30)["result"]
        kept = self.segmenter.get(path).body
        said = {"digest": kept["digest"], "accept_blocked": accept}
        approved = self.segmenter.call("POST", f"{path}/approve", said, self.second)
        assert approved.status == 200, approved
        return int(kept["id"])

    def begin(self, plan: int) -> int:
        answer = self.site.api.post("/api/v1/rollouts", {"plan": plan})
        assert answer.status == 201, answer
        return int(answer.body["rollout"]["id"])

    def told(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = self.site.api.get(f"/api/v1/rollouts/{number}").body
        return found

    def stage(self, number: int) -> str:
        return str(self.told(number)["rollout"]["run"]["stage"])

    def reason(self, number: int) -> str:
        return str(self.told(number)["rollout"]["run"]["reason"])

    def move(self, number: int, verb: str) -> None:
        run = self.told(number)["rollout"]["run"]
        seen = {"stage": run["stage"], "turn": run["at"]}
        answer = self.site.api.post(f"/api/v1/rollouts/{number}/{verb}", seen)
        assert answer.status == 200, answer

    def goes_on(self, number: int, stage: str, *ports: int, seconds: float = 60) -> None:
        """Call until the rollout is at the stage."""

        def there() -> bool:
            self.calls(*ports)
            return self.stage(number) == stage

        try:
            until(there, seconds)
        except AssertionError:
            raise AssertionError(self.told(number)) from None

    def at(self, number: int, stage: str, seconds: float = 30) -> dict[str, Any]:
        """Wait until it is there, and call nothing."""
        try:
            until(lambda: self.stage(number) == stage, seconds)
        except AssertionError:
            raise AssertionError(self.told(number)) from None
        return self.told(number)

    def enforces(self, number: int) -> None:
        """Wait until the hosts of the turn hold it; nothing is called, lest they see that it is used."""

        def held() -> bool:
            told = self.told(number)["rollout"]
            fresh = told["looked_at"] > told["run"]["since"]
            return fresh and told["looked"]["in_force"] == told["looked"]["hosts"]

        until(held, 30, lambda: str(self.told(number)))

    def holds(self, host: str, port: int, word: str, seconds: float = 30) -> float:
        """Wait until the kernel of a host answers the call like this; seconds from now."""
        began = time.monotonic()
        until(lambda: self.call(host, port) == word, seconds, self.site.machine(host).tail_of_log)
        return time.monotonic() - began


def _ready(api: Api) -> bool:
    with suppress(OSError):
        return api.get("/readyz").status == 200
    return False
