"""A control plane with four scripted hosts of one service, a segmenter, and a writer of facts."""

import asyncio
import time
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from aegisflux.adapters.store.facts import PostgresFacts
from aegisflux.domain.enriched import Context
from aegisflux.domain.event import VerdictSeen
from aegisflux.domain.guardrails import Limits
from aegisflux.domain.plan import Strategy
from aegisflux.domain.roles import Principal
from aegisflux.domain.stages import Gate
from aegisflux.runtime.clock import WallClock
from aegisflux.services.orchestrator import pilot, renewals, snapshots
from aegisflux.services.orchestrator.core import Who
from aegisflux.services.orchestrator.rollouts import Move
from aegisflux.services.segmenter import plans
from aegisflux.services.segmenter.app import Parts, Segmenter
from aegisflux.services.segmenter.plans import PlanAsked
from tests.support.believing import Trusting
from tests.support.control import WHO, running_plane
from tests.support.engines import eventually
from tests.support.facts import SECOND, enriched, flow

HOSTS = ("w1", "w2", "w3", "w4")
GATE = Gate(least_seconds=0.0, least_flows=4, fine=0.01, bad=0.9, silent_seconds=30.0)
HALF = Limits(most_of_fleet=0.5, changes_an_hour=10_000)
APPROVER = Who(Principal("second", "approver"), "test", "req-2")


class Fleet:
    """A control plane with four hosts of one service, a segmenter, and a writer of facts."""

    def __init__(self, plane, facts, segmenter):
        self.plane, self.facts, self.segmenter = plane, facts, segmenter
        self.agents, self.beating, self.sequence, self.service = {}, {}, 0, 0

    @property
    def rollouts(self):
        return self.plane.orchestrator.rollouts

    async def serve(self, service):
        """Four hosts of a new service; whoever runs already is another service's, and stays."""
        self.service = service
        labels = {"role": f"s{service}"}
        await self.plane.orchestrator.registry.put(service, f"s{service}", [], labels, WHO)
        for n, host in enumerate(self.hosts):
            at = (f"10.{service // 250}.{service % 250}.{n + 2}",)
            agent = await self.plane.agent(host, labels, tables=Tables(self), addresses=at)
            self.agents[host] = agent
            self.beating[host] = asyncio.create_task(self._beats(agent))

        async def known():
            rows = await self.plane.store.rows("host_places")
            return all(row["addresses"] for row in rows if row["host_id"] in self.hosts)

        await eventually(known)
        return self

    @property
    def hosts(self):
        return [f"{host}-{self.service}" for host in HOSTS]

    async def _beats(self, agent):
        while True:
            with suppress(Exception):
                await agent.beat()
            await asyncio.sleep(0.1)

    def silence(self, host):
        """From now on it says nothing."""
        self.beating.pop(host).cancel()
        self.agents[host].answer = False

    async def calls(self, *hosts, port=5432, seconds_ago=0.0, count=4, **more):
        """Reports of flows that hosts of the service began."""
        for host in hosts or self.hosts:
            await self._commit(host, self._calls(port, seconds_ago, count, **more))

    def _calls(self, port, seconds_ago, count, **more):
        self.sequence += 1
        at = time.time_ns() - int(seconds_ago * SECOND)
        made = flow(self.sequence, at, **({"peer": "10.0.1.1", "port": port, "connections": count} | more))
        return msgspec.structs.replace(made, first_ns=at)

    async def denied(self, host, digest, port, candidate=False, count=1, ingress=False, peer="10.0.1.1"):
        """The host's kernel denied initiations, or would have."""
        for _ in range(count):
            self.sequence += 1
            await self._commit(
                host,
                VerdictSeen(
                    seq=self.sequence, time_ns=time.time_ns(), service_id=self.service, proto=6, peer=peer,
                    direction="ingress" if ingress else "egress", reason="default_deny",
                    verdict="would block" if candidate else "blocked", digest=digest, candidate=candidate,
                    **{"local_port" if ingress else "peer_port": port},
                ),
            )  # fmt: skip

    async def _commit(self, host, event):
        context = Context(service_id=self.service, service=f"s{self.service}", peer_class="private")
        await self.facts.commit([enriched(event, host=host, boot=f"boot-{host}", context=context)])

    async def planned(self, *ports, approve=True, accept=False, gate=GATE, rules="", **more):
        """A plan that lets the service call these ports, approved by somebody else."""
        rules = rules or "".join(
            f"\n  - {{from: s{self.service}, to: 10.0.1.0/24, ports: [tcp/{port}]}}" for port in ports
        )
        strategy = Strategy(**({"canary_hosts": (self.hosts[0],), "gate": gate, "limits": HALF} | more))
        plans = self.segmenter.plans
        asked = PlanAsked(policy=f"policy: 1\nttl_seconds: 600\nrules:{rules}\n", strategy=strategy)
        number = await plans.make(*await plans.settled(asked), WHO, lambda *_: None)
        if approve:
            await plans.approve(number, (await plans.one(number)).digest, accept, APPROVER)
        return number

    async def begun(self, *ports, **more):
        """A rollout that just began; its candidate is judged on all hosts."""
        moved = await self.rollouts.begin(await self.planned(*ports, **more), WHO)
        return moved.rollout

    async def at(self, number, stage, turn=None):
        """Wait until the rollout is there; then what is known of it."""

        async def there():
            found = await self.rollouts.one(number)
            run = found.rollout.run
            return found if run.stage == stage and turn in (None, run.at) else None

        try:
            return await eventually(there, 15)
        except AssertionError:
            raise AssertionError(await self.rollouts.one(number)) from None

    async def goes_on(self, number, stage, *hosts, turn=None):
        """Give flows until the rollout is there; none of them counts for the stage where it is then, although
        the pilot may move it at any moment.
        """

        async def there():
            looked = time.time()
            run = (await self.rollouts.one(number)).rollout.run
            if run.stage == stage and turn in (None, run.at):
                return True
            await self.calls(*hosts, seconds_ago=time.time() - looked)
            return False

        try:
            await eventually(there, 15)
        except AssertionError:
            raise AssertionError(await self.rollouts.one(number)) from None

    async def promoted(self, *ports, **more):
        """A rollout that went through all its stages."""
        rollout = await self.begun(*ports, **more)
        await self.goes_on(rollout.id, "promoted")
        return await self.at(rollout.id, "promoted")

    def versions(self):
        """What each host holds."""
        held = {host: self.agents[host].in_force.get(self.service) for host in self.hosts}
        return [ref.version if ref else None for ref in held.values()]

    def move(self, rollout, verb, who=WHO, why="", stage=None, turn=None):
        """A verb, as somebody says it who saw the rollout like this."""
        seen = Move(stage=stage or rollout.run.stage, turn=rollout.run.at if turn is None else turn, why=why)
        return self.rollouts.move(rollout.id, verb, seen, who)


class Tables(dict):
    """The digest of the tables of each content, as the store has it."""

    def __init__(self, fleet):
        super().__init__()
        self.fleet = fleet

    def get(self, digest, default=None):
        return KNOWN.get(digest, default)


KNOWN = {}


async def inline(function, *values):
    """Computed here: a process of its own takes a second to start."""
    return function(*values)


@asynccontextmanager
async def running_world(folder):
    """Plane, facts, segmenter; what is compiled is known to the scripted agents."""
    async with running_plane(folder, confirm_seconds=30) as plane:
        facts = PostgresFacts(plane.dsn)
        await facts.open_writer()
        segmenter = Segmenter(Parts(store=plane.store, facts=facts, clock=WallClock(), believer=Trusting()))
        kept = snapshots.store_content

        async def remembered(db, prepared, *rest):
            KNOWN[prepared.digest] = prepared.tables_digest
            return await kept(db, prepared, *rest)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(snapshots, "store_content", remembered)
            for module in (plans, renewals):
                patched.setattr(module, "computed", inline)
            patched.setattr(pilot, "EVERY", 0.05)
            yield plane, facts, segmenter
        await segmenter.close()
        await facts.close()


async def modes(fleet):
    """What each host judges by: the mode of the version that it holds."""
    found = []
    for version in fleet.versions():
        row = await fleet.plane.store.row("content", fleet.service, version) if version else None
        found.append(row["mode"] if row else None)
    return found


@asynccontextmanager
async def running_fleet(world, service):
    """Four hosts of a new service, whose calls are known; released in the end."""
    fleet = await Fleet(*world).serve(service)
    await fleet.calls(seconds_ago=3600)
    yield fleet
    for task in fleet.beating.values():
        task.cancel()
    for host, agent in fleet.agents.items():
        await agent.bus.close()  # a released host would try to connect again and again, for all tests to come
        await fleet.plane.orchestrator.hosts.release(host, WHO)
