"""Heartbeats that are handled again: after a failure of the store, a late ack, our own restart."""

from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest
import pytest_asyncio
from tests.support.control import WHO, running_plane

from aegisflux.domain.errors import Unavailable
from aegisflux.domain.manifest import Heartbeat
from aegisflux.ports.bus import Message
from aegisflux.services.orchestrator.answers import Answers
from aegisflux.wire import envelope, subjects

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
BEGUN = {"a": ("boot", 1), "b": ("boot", 2), "c": ("clone", 1)}
RESTART = "restart"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory):
    async with running_plane(tmp_path_factory.mktemp("again"), renew_every=3600.0) as running:
        yield running


class Failing:
    """The store, where the next storing of heartbeats fails."""

    def __init__(self, store):
        self._store, self.fails = store, False

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def run(self, query, *values):
        if query == "store_heartbeats" and self.fails:
            self.fails = False
            raise Unavailable("a deadlock")
        await self._store.run(query, *values)

    def change(self):
        if self.fails:
            self.fails = False
            raise Unavailable("a deadlock")
        return self._store.change()


class Handled:
    """A host whose heartbeats are handed over by hand, at the seconds that a case says."""

    def __init__(self, plane, agent):
        self.plane, self.agent, self.now = plane, agent, 1000.0
        self.store = Failing(plane.store)
        self.restart()

    def restart(self):
        clock = SimpleNamespace(now=lambda: self.now)
        self.core = replace(self.plane.orchestrator.core, store=self.store, clock=clock, runs={})
        self.answers = Answers(self.core)

    def message(self, name):
        """`a3`: sent by the process a in the second 3."""
        boot, started = BEGUN[name[0]]
        sent = 1000.0 + int(name[1:])
        beat = Heartbeat(
            self.agent.host, boot, "0", (1,), (), 1, (), sent, False, "simulated", started=started
        )  # fmt: skip
        sign = self.agent.key.sign
        sealed = envelope.seal(
            envelope.HEARTBEAT,
            msgspec.msgpack.encode(beat),
            self.agent.host,
            lambda data: sign(data).signature,
        )
        return Message(subjects.heartbeat(self.agent.host), envelope.encode(sealed), {}, 1)

    async def deliver(self, batches):
        """Batches, one a second; `!` before one: storing it fails."""
        for batch in batches:
            self.now += 1.0
            if batch == RESTART:
                self.restart()
                continue
            self.store.fails = batch.startswith("!")
            try:
                await self.answers.on_heartbeats([self.message(name) for name in batch.strip("!").split()])
            except Unavailable:
                continue

    async def clashes(self):
        rows = await self.plane.store.rows("audit_newest", 2**62, 500)
        ours = [row for row in rows if row["object"] == f"host/{self.agent.host}"]
        lines = [row for row in ours if row["action"] == "host.clash"]
        return len(lines), bool(self.core.troubles(self.agent.host, None))


@pytest.mark.parametrize(
    ("batches", "found"),
    [
        (["a1", "b2"], 0),
        (["!a1 b1", "a1", "b1", "b4"], 0),
        (["a1", "!a2 b2", "a2", "b2", "b6"], 0),
        (["a1 b1", "a1 b1", "b3"], 0),
        (["a1", "b2", "a1", "b4"], 0),
        (["a1", "!a2", "b3", "a2", "b5"], 0),
        (["a1", "b2", RESTART, "a1", "b5"], 0),
        (["a1", "b2", RESTART, "a1 b2", "b5"], 0),
        (["a1", "b2", "a3"], 1),
        (["a1", "c2", "a3", "c4", "a5"], 1),
        (["a1", "c2", RESTART, "a4"], 1),
        (["a1", "c2", "a3", "a3", "c2", RESTART, "a3", "c2"], 1),
        (["a1", "c2", "!a3", "a3"], 1),
    ],
    ids=str,
)
async def test_two_agents_are_alive_by_what_they_sent_and_not_by_how_it_was_delivered(
    plane, request, batches, found
):
    handled = Handled(plane, await plane.enroll(f"again-{request.node.callspec.indices['batches']}"))
    await handled.deliver(batches)
    assert await handled.clashes() == (found, found > 0)


async def test_a_released_host_is_compared_with_nothing(plane):
    handled = Handled(plane, await plane.enroll("again-released"))
    await handled.deliver(["a1", "c2"])
    await plane.orchestrator.hosts.release("again-released", WHO)
    handled.agent = await plane.enroll("again-released")
    handled.restart()
    await handled.deliver(["a4"])
    assert await handled.clashes() == (0, False)
