"""An agent's telemetry as it really runs: a process, a real NATS, and kills."""

import threading
from collections import Counter

import pytest
import pytest_asyncio

from aegisflux.wire import events as wire
from aegisflux.wire import subjects
from support.agent_process import AgentProcess, EnrollServer
from support.agents import Plane
from support.engines import eventually, running_nats

pytestmark = [pytest.mark.engines, pytest.mark.asyncio]

# In the agent's process: its events are lines of a file, as a kernel would hold them.
FILE_SOURCE = """
import sys; sys.path.insert(0, "{tests}"); sys.path.insert(0, "{tests}/..")
from pathlib import Path
from aegisflux import agent_bootstrap
from aegisflux.agent.parts import Feed
from support.sources import FileSource
agent_bootstrap.make_feeds = lambda config: (Feed(FileSource(Path("{path}")), "events"),)
"""


@pytest_asyncio.fixture
async def lab(tmp_path):
    async with running_nats(tmp_path / "nats") as found:
        yield found


@pytest.fixture
def agent(tmp_path, lab, repository):
    found = AgentProcess(tmp_path, datapath="simulated")
    found.prelude = FILE_SOURCE.format(tests=repository / "tests", path=tmp_path / "kernel")
    server = EnrollServer(lab, Plane())
    done = found.call("enroll", "--host-id", "web1", AEGISFLUX_ENROLL_TOKEN=server.token())
    assert done.returncode == 0, done.stderr
    yield found
    found.close()
    server.close()


class Kernel:
    """Appends numbers to a file at a rate, from a thread, until it is stopped."""

    def __init__(self, path, rate: int) -> None:
        self.path, self.rate, self.count = path, rate, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def happen(self, count: int) -> None:
        with self.path.open("ab") as out:
            out.write(b"".join(b"%d\n" % n for n in range(self.count, self.count + count)))
        self.count += count

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            self.happen(self.rate // 100)


class Ingest:
    """What came to TELEMETRY, by sequence as the store knows it: a batch may come twice, as it was."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, int], str] = {}
        self.lost: dict[str, int] = {}

    async def take(self, messages) -> None:
        for message in messages:
            batch = wire.decode_batch(message.payload)
            for event in batch.events:
                assert self.events.setdefault((batch.boot_id, event.seq), event.path) == event.path
            self.lost = batch.lost

    def has(self, count: int) -> bool:
        return len(self.events) >= count

    def assert_each_once(self, count: int) -> None:
        assert Counter(self.events.values()) == Counter(f"/bin/{n}" for n in range(count))


async def test_events_reach_the_stream_once_over_five_kills_under_load(lab, agent, tmp_path):
    ingest = Ingest()
    async with lab.control() as bus:
        await bus.ensure_streams()
        await bus.consume(subjects.stream_of(subjects.ALL_TELEMETRY).name, "ingest", ingest.take)
        with Kernel(tmp_path / "kernel", 4000) as kernel:
            for kill in range(5):
                agent.start()
                await eventually(lambda n=kernel.count + 500 * (kill + 1): ingest.has(n), 20)
                agent.kill()
        agent.start()
        await eventually(lambda: ingest.has(kernel.count), 20)
        ingest.assert_each_once(kernel.count)
        assert not ingest.lost


async def test_a_bus_that_is_away_is_waited_for_and_all_is_there_after_it(lab, agent, tmp_path):
    ingest = Ingest()
    kernel = Kernel(tmp_path / "kernel", 0)
    async with lab.control() as bus:
        await bus.ensure_streams()
        await bus.consume(subjects.stream_of(subjects.ALL_TELEMETRY).name, "ingest", ingest.take)
        agent.start()
        kernel.happen(100)
        await eventually(lambda: ingest.has(100), 20)
        await lab.process.stop()
        kernel.happen(20_000)
        status = await eventually(lambda: waiting(agent, 200), 20)
        assert not status["connected"]
        assert (await agent.acall("status")).stdout.splitlines()[-1].startswith("telemetry: 1 sources")
        agent.kill()
        kernel.happen(20_000)
        agent.start()
        await lab.process.start()
        await eventually(lambda: ingest.has(kernel.count), 30)
    ingest.assert_each_once(kernel.count)
    assert not ingest.lost


async def waiting(agent, batches: int) -> dict | None:
    status = await agent.status()
    return status if status and status["telemetry"]["batches_waiting"] >= batches else None


async def test_a_stream_that_is_full_refuses_and_the_host_keeps_what_it_cannot_take(lab, agent, tmp_path):
    kernel = Kernel(tmp_path / "kernel", 0)
    agent.prelude += "from aegisflux.adapters.bus import nats; nats.PUBLISH_SECONDS = 1.0"
    async with lab.control() as bus:
        await bus.ensure_streams()
        await limited(bus, 20_000)
        agent.start()
        kernel.happen(10_000)
        await eventually(lambda: "events wait in the spool" in agent.log(), 20)
        doctor = (await agent.acall("doctor")).stdout
        assert "the bus takes nothing now" in doctor
        await limited(bus, 1 << 30)
        ingest = Ingest()
        await bus.consume(subjects.stream_of(subjects.ALL_TELEMETRY).name, "ingest", ingest.take)
        await eventually(lambda: ingest.has(kernel.count), 20)
    ingest.assert_each_once(kernel.count)


async def limited(bus, max_bytes: int) -> None:
    """Let the TELEMETRY stream hold no more."""
    js = bus._nc.jetstream()
    config = (await js.stream_info(subjects.stream_of(subjects.ALL_TELEMETRY).name)).config
    config.max_bytes = max_bytes
    await js.update_stream(config)


async def test_telemetry_at_its_rate_needs_little_memory(lab, agent, tmp_path):
    """`agent_rss_mb` under 5,000 events a second is at most 80; the sources are not the kernel's here."""
    ingest = Ingest()
    async with lab.control() as bus:
        await bus.ensure_streams()
        await bus.consume(subjects.stream_of(subjects.ALL_TELEMETRY).name, "ingest", ingest.take)
        agent.start()
        with Kernel(tmp_path / "kernel", 5000) as kernel:
            await eventually(lambda: ingest.has(25_000), 30)
            rss, cpu, count = agent.rss_mb("VmHWM"), agent.cpu_seconds(), kernel.count
        print(f"agent_rss_mb {rss:.1f}, cpu {cpu:.2f} s for {count} events")
        assert rss <= 80
