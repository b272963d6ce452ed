"""What an agent tells of its host: from sources to the spool, from the spool to the bus."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from aegisflux.agent.collector import BATCH_BYTES, Bucket, Collector
from aegisflux.agent.doctor import telemetry_text
from aegisflux.agent.parts import Feed, Senses, TelemetrySettings, inline
from aegisflux.agent.runner import Runner
from aegisflux.agent.spool import Spool
from aegisflux.agent_bootstrap import load_config
from aegisflux.domain.errors import Forbidden, Invalid, Refused, Unavailable
from aegisflux.domain.event import MAX_TEXT, EventBatch, VerdictSeen
from aegisflux.domain.flow import Flow, Own
from aegisflux.domain.net import TCP, parse_address
from aegisflux.ports.sensor import Reading
from aegisflux.wire import events as wire
from aegisflux.wire import subjects
from support.agents import WALL, AgentLab, body, edges
from support.engines import eventually
from support.sources import FakeSoftware, FakeSource, Kernel

pytestmark = pytest.mark.asyncio
SECOND = 10**9
AWAY = Unavailable("ring: not there")


class Bench:
    """A collector on a spool, with a clock moved by hand; `again` is the next process on the same host."""

    def __init__(self, folder: Path, *sources: FakeSource, rate: int = 100_000, **feeds) -> None:
        self.folder, self.rate, self.now = folder, rate, 0.0
        self.kernel = Kernel()
        self.sources = sources or (FakeSource(self.kernel),)
        self.logs: list[str] = []
        self.lanes = feeds
        self.begin()

    def begin(self) -> None:
        self.spool = Spool(self.folder, "web1", "boot-1", 64 << 20)
        feeds = [Feed(s, "flows" if s.name == "traffic" else "events") for s in self.sources]
        self.collector = Collector(feeds, self.spool, "web1", "boot-1", self.rate, self.logs.append)

    def again(self) -> None:
        """kill -9, and a new agent."""
        self.sources = tuple(FakeSource(s.kernel, s.name) for s in self.sources)
        self.begin()

    def step(self, seconds: float = 1.0) -> float:
        self.now += seconds
        return self.collector.step(self.now, WALL * SECOND)

    def batches(self) -> list[EventBatch]:
        found, given = [], []
        while given := self.spool.exchange(given, 8):
            found += given
        return [wire.decode_batch(record.batch) for record in found]

    def paths(self) -> list[str]:
        return [event.path for batch in self.batches() for event in batch.events]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "spool")


def numbered(count: int, start: int = 0) -> list[str]:
    return [f"/bin/{n}" for n in range(start, start + count)]


async def test_events_are_cut_into_batches_with_rising_sequences(bench):
    bench.kernel.happen(250)
    bench.step()
    batches = bench.batches()
    assert [len(batch.events) for batch in batches] == [100, 100, 50]
    assert [event.seq for batch in batches for event in batch.events] == list(range(1, 251))
    assert {(batch.host_id, batch.boot_id, batch.sent_ns) for batch in batches} == {
        ("web1", "boot-1", WALL * SECOND)
    }


async def test_a_source_hears_that_it_is_done_only_after_the_spool_has_it(bench):
    bench.kernel.happen(3)
    at_done = []
    source = bench.sources[0]
    source.done = lambda cursor: at_done.append(
        (cursor, bench.spool.cursors["processes"], bench.spool.waiting)
    )
    bench.step()
    assert at_done == [(3, 3, 1)]


async def test_nothing_is_done_while_the_spool_cannot_be_written(bench, monkeypatch):
    bench.kernel.happen(3)
    monkeypatch.setattr(bench.spool, "append", lambda *_: (_ for _ in ()).throw(Unavailable("disk full")))
    with pytest.raises(Unavailable, match="disk full"):
        bench.step()
    assert "done" not in bench.sources[0].calls
    monkeypatch.undo()
    bench.step()
    assert bench.paths() == numbered(3)


async def test_a_killed_agent_reads_on_behind_what_is_in_its_spool(bench):
    bench.kernel.happen(120)
    bench.sources[0].done = lambda cursor: (_ for _ in ()).throw(SystemExit)  # killed between spool and done
    with pytest.raises(SystemExit):
        bench.step()
    assert bench.kernel.done == 0
    bench.again()
    bench.kernel.happen(5)
    bench.step()
    assert bench.paths() == numbered(125)


async def test_sequences_never_come_twice_over_kills(bench):
    seen: list[int] = []
    for _ in range(5):
        bench.kernel.happen(7)
        bench.step()
        seen += [event.seq for batch in bench.batches() for event in batch.events]
        bench.again()
    assert seen == sorted(set(seen))
    assert len(seen) == 35


async def test_large_events_go_in_smaller_batches(bench):
    bench.kernel.happen(100, args=("x" * MAX_TEXT,) * 4)
    bench.step()
    records = bench.spool.exchange([], 100)
    assert all(len(record.batch) <= BATCH_BYTES for record in records)
    events = [e.path for record in records for e in wire.decode_batch(record.batch).events]
    assert events == numbered(100)


async def test_an_event_that_no_batch_can_hold_is_counted_and_holds_up_nothing(bench):
    bench.kernel.happen(1, args=("x" * MAX_TEXT,) * 200)
    bench.kernel.happen(3)
    bench.step()
    assert bench.paths() == numbered(3, 1)
    assert bench.collector.lost == {"oversized.exec": 1}


async def test_a_source_that_cannot_be_opened_is_tried_again_and_holds_up_no_other(tmp_path):
    good, bad = FakeSource(Kernel()), FakeSource(Kernel(), "traffic")
    bench = Bench(tmp_path, good, bad)
    bad.refuse["open"] = AWAY
    good.kernel.happen(2)
    bad.kernel.happen(2)
    for _ in range(10):
        bench.step()
    assert bench.paths() == numbered(2)
    assert bench.logs == ["telemetry: traffic: ring: not there"], "said once"
    assert bench.collector.report["sources"] == {"processes": "open", "traffic": "ring: not there"}
    assert bad.calls.count("open") < 6, "less and less often"
    bad.refuse.clear()
    bench.step(60)
    assert bench.paths() == numbered(2)
    assert bench.collector.report["sources"]["traffic"] == "open"


@pytest.mark.parametrize("method", ["read", "done"])
async def test_a_source_that_fails_is_opened_again_where_the_spool_is(bench, method):
    bench.kernel.happen(2)
    bench.step()
    bench.sources[0].refuse[method] = AWAY
    bench.kernel.happen(2)
    bench.step()
    bench.sources[0].refuse.clear()
    bench.step(60)
    assert bench.paths() == numbered(4)
    assert bench.sources[0].calls.count("resume") == 1


async def test_more_events_than_the_rate_wait_where_they_are(tmp_path):
    bench = Bench(tmp_path, rate=1000)
    bench.kernel.happen(10_000)
    for _ in range(20):
        bench.step(0)
    assert 1900 <= len(bench.paths()) <= 2000
    assert bench.collector.report["throttled"] > 0
    for _ in range(100):
        bench.step(0.1)
    assert bench.kernel.done == 10_000
    assert bench.collector.lost == {}


async def test_under_the_rate_all_sources_have_their_turn(tmp_path):
    loud, other = FakeSource(Kernel()), FakeSource(Kernel(), "traffic")
    bench = Bench(tmp_path, loud, other, rate=200)
    for source in (loud, other):
        source.kernel.happen(5000)
    for _ in range(40):
        bench.step(0.5)
    assert loud.kernel.done == pytest.approx(other.kernel.done, abs=200)


async def test_a_small_rate_gets_on_too(tmp_path):
    bench = Bench(tmp_path, rate=3)
    bench.kernel.happen(20)
    for _ in range(10):
        bench.step(1)
    assert bench.kernel.done + 0 >= 20
    assert bench.paths() == numbered(20)


async def test_an_idle_host_is_looked_at_once_a_second_and_writes_nothing(bench):
    bench.step()
    size = bench.spool.size
    assert [bench.step() for _ in range(5)] == [1.0] * 5
    assert bench.spool.size == size


async def test_a_busy_host_is_looked_at_as_often_as_batches_fill(bench):
    pauses = []
    for _ in range(10):
        bench.kernel.happen(500)
        pauses.append(bench.step())
    assert pauses[-1] == pytest.approx(0.05)
    assert [bench.step() for _ in range(10)][-1] == 1.0


class Turns(FakeSource):
    """What happens while a turn is read belongs to the next."""

    turn = 0

    def read(self, first_seq: int, limit: int) -> Reading:
        if self._at >= self.turn:
            self.turn = len(self.kernel.events)
        found = super().read(first_seq, min(limit, self.turn - self._at))
        return Reading(found.events, found.cursor, found.cursor < self.turn)


async def test_a_reading_that_takes_long_does_not_put_off_the_next(tmp_path):
    """At its highest rate a feed would fall behind for ever, by its period each time."""
    source = Turns(Kernel(), "traffic")
    bench = Bench(tmp_path, source)
    feeds = [Feed(source, "flows", 5.0)]
    bench.collector = Collector(feeds, bench.spool, "web1", "boot-1", 100, bench.logs.append)
    for _ in range(200):
        source.kernel.happen(100)
        bench.step()
    assert len(source.kernel.events) - source.kernel.done <= 1500


async def test_a_feed_with_a_period_is_read_by_it(tmp_path):
    bench = Bench(tmp_path, FakeSource(Kernel(), "traffic"))
    bench.collector = Collector(
        [Feed(bench.sources[0], "flows", 5.0)], bench.spool, "web1", "boot-1", 1000, bench.logs.append
    )
    for _ in range(10):
        bench.step()
    assert bench.sources[0].calls.count("read") == 2


async def test_what_sources_lost_never_falls_and_goes_on_where_they_begin_anew(bench):
    bench.kernel.lost = {"ring": 5}
    bench.step()
    bench.kernel.lost = {"ring": 2}
    bench.kernel.happen(1)
    bench.step(2)
    assert bench.collector.lost == {"processes.ring": 7}
    bench.kernel.lost = {"ring": 3}
    bench.kernel.happen(1)
    bench.step(2)
    assert bench.collector.lost == {"processes.ring": 8}
    assert [batch.lost["processes.ring"] for batch in bench.batches()] == [5, 7]


async def test_a_bucket_holds_two_seconds():
    bucket = Bucket(100)
    assert bucket.room(0) == 200
    bucket.take(200)
    assert [bucket.room(at) for at in (0, 0.5, 1, 50)] == [0, 50, 100, 200]


# With an agent around it, on a bus


class TelemetryLab(AgentLab):
    """An agent with a simulated kernel and sources; `start` lets its telemetry run."""

    def __init__(self, folder: Path, **telemetry) -> None:
        self.folder, self.events = folder, Kernel()
        self.software: FakeSoftware | None = None
        super().__init__(telemetry=TelemetrySettings(**telemetry))

    def agent(self) -> Runner:
        parts = super().agent().parts
        spool = Spool(
            self.folder,
            parts.host_id,
            parts.boot_id,
            self.settings.telemetry.spool_bytes,
            segment_bytes=50_000,
        )
        self.source = FakeSource(self.events)
        senses = Senses(
            feeds=(Feed(self.source, "events"),),
            spool=spool,
            blocking=inline,
            software=self.software,
            background=inline,
        )
        return Runner(replace(parts, senses=senses), self.plane.trusted())

    @property
    def telemetry(self):
        return self.runner.telemetry

    def arrived(self) -> list[EventBatch]:
        log = self.broker.logs[subjects.stream_of(subjects.ALL_TELEMETRY).name]
        return [wire.decode_batch(message.payload) for message in log.messages.values()]

    def paths(self) -> list[str]:
        return sorted(
            (event.path for batch in self.arrived() for event in batch.events),
            key=lambda path: int(path.rpartition("/")[2]),
        )

    @asynccontextmanager
    async def running(self):
        tasks = [asyncio.create_task(task) for task in self.telemetry.tasks()]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def lab(tmp_path):
    return await TelemetryLab(tmp_path / "spool").begin()


async def test_events_of_a_host_without_any_manifest_arrive(lab):
    lab.events.happen(1000)
    async with lab.running():
        await eventually(lambda: len(lab.paths()) == 1000)
        await eventually(lambda: lab.telemetry.report()["batches_waiting"] == 0)
    assert lab.paths() == numbered(1000)


async def test_nothing_is_lost_or_doubled_while_the_bus_is_away(lab):
    lab.broker.down = True
    async with lab.running():
        lab.events.happen(3000)
        await eventually(lambda: lab.telemetry.report()["batches_waiting"] == 30)
        await eventually(lambda: lab.telemetry.report()["trouble"] == "the bus takes nothing now")
        await lab.broker.recover()
        await eventually(lambda: len(lab.paths()) == 3000)
        await eventually(lambda: not lab.telemetry.report()["trouble"])
    assert lab.paths() == numbered(3000)
    assert len([line for line in lab.logs if "events wait" in line]) == 1


async def test_a_batch_is_sent_again_as_it_was_and_without_an_id(lab, monkeypatch):
    """The bus stored it, and the agent died before it heard so. The store knows its sequences; an id is what
    another host could choose too."""
    lab.events.happen(50)
    sent = []

    async def stored(subject, payload, **more):
        sent.append((subject, payload, *more))
        raise Unavailable("no answer within 2 s")

    monkeypatch.setattr(lab.bus, "publish", stored)
    async with lab.running():
        await eventually(lambda: len(sent) == 1)
    await lab.restart()
    async with lab.running():
        await eventually(lambda: len(sent) >= 2)
    assert len(set(sent)) == 1
    assert sent[0][0] == subjects.telemetry("web1")
    assert len(sent[0]) == 2


@pytest.mark.parametrize(
    "error", [Unavailable("not stored: maximum bytes exceeded"), Forbidden("no permission")]
)
async def test_what_is_not_the_batchs_fault_is_tried_again(lab, monkeypatch, error):
    lab.events.happen(10)
    real, tries = lab.bus.publish, []

    async def refuse_once(subject, payload):
        tries.append(payload)
        if len(tries) == 1:
            raise error
        return await real(subject, payload)

    monkeypatch.setattr(lab.bus, "publish", refuse_once)
    async with lab.running():
        await eventually(lambda: len(lab.paths()) == 10)
    assert len(tries) == 2
    assert lab.telemetry.lost() == {}


async def test_a_batch_that_is_refused_is_dropped_counted_and_said(lab, monkeypatch):
    lab.events.happen(150)
    real = lab.bus.publish

    async def refuse(subject, payload):
        if wire.decode_batch(payload).events[0].seq == 1:
            raise Refused("over the limit message")
        return await real(subject, payload)

    monkeypatch.setattr(lab.bus, "publish", refuse)
    async with lab.running():
        await eventually(lambda: lab.telemetry.lost() == {"refused.exec": 100})
        await eventually(lambda: len(lab.paths()) == 50)
    assert any("100 events were refused: over the limit" in line for line in lab.logs)


async def test_a_spool_that_is_full_says_what_it_gave_up_everywhere(tmp_path):
    lab = await TelemetryLab(tmp_path / "spool", spool_bytes=100_000).begin()
    lab.broker.down = True
    async with lab.running():
        lab.events.happen(6000)
        await eventually(lambda: lab.events.done == 6000)
        lost = await eventually(lambda: lab.telemetry.lost().get("spool.exec"))
        lab.events.happen(1)
        await eventually(lambda: lab.events.done == 6001)
        await lab.broker.recover()
        await eventually(lambda: "/bin/6000" in lab.paths())
    assert len(lab.paths()) + lost >= 6001
    newest = max(lab.arrived(), key=lambda batch: batch.events[-1].seq)  # they arrive in any order
    assert newest.lost["spool.exec"] == lost
    assert lab.heartbeat().loss["spool.exec"] == lost
    assert f"lost spool.exec: {lost}" in telemetry_text(lab.telemetry.report())


async def test_a_denied_flow_is_an_event_and_stays_in_the_ring(lab):
    content = lab.plane.content(body(1, edges=edges("10.0.0.0/8 tcp/443"), mode="enforce"))
    await lab.desire(lab.plane.service(content))
    lab.clocks.advance(5)
    lab.kernel.judge("web", Flow("egress", TCP, parse_address("192.0.2.1"), 443))
    lab.clocks.advance(2)
    await lab.runner.tick()
    assert [flow.peer_port for _, flow in lab.runner.reporter.denied] == [443]
    async with lab.running():
        (batch,) = await eventually(lab.arrived)
    (event,) = batch.events
    assert isinstance(event, VerdictSeen)
    assert (event.verdict, event.reason, event.peer, event.peer_port) == (
        "blocked",
        "no_match",
        "192.0.2.1",
        443,
    )
    assert event.service_id == 101
    assert not event.candidate
    assert event.time_ns == int((lab.clocks.wall - 2) * SECOND)
    assert event.digest == content.digest


async def test_denied_flows_above_the_rate_are_lost_and_counted(tmp_path):
    lab = await TelemetryLab(tmp_path / "spool", events_per_second=50).begin()
    content = lab.plane.content(body(1, edges=edges("10.0.0.0/8 tcp/443"), mode="enforce"))
    await lab.desire(lab.plane.service(content))
    for port in range(1, 151):
        lab.kernel.judge("web", Flow("egress", TCP, parse_address("192.0.2.1"), port))
    await lab.runner.tick()
    assert len(lab.runner.reporter.denied) == 150
    assert lab.telemetry.lost() == {"rate.verdict": 50}


async def test_processes_are_told_of_in_a_panic(lab):
    from aegisflux.agent import remember
    from aegisflux.domain.panic import Panic

    remember.write_panic(lab.store, Panic(0.0, "test"))
    await lab.runner.tick()
    assert lab.runner.panic is not None
    lab.events.happen(5)
    async with lab.running():
        await eventually(lambda: len(lab.paths()) == 5)


async def test_a_defect_in_a_source_ends_neither_agent_nor_telemetry(lab):
    lab.source.lost = lambda: 1 // 0
    lab.events.happen(5)
    async with lab.running():
        await eventually(lambda: "ZeroDivisionError" in lab.telemetry.report()["trouble"])
        lab.source.lost = dict
        await eventually(lambda: not lab.telemetry.report()["trouble"])
        await eventually(lambda: len(lab.paths()) == 5)


async def test_the_heartbeat_says_the_hosts_addresses_but_not_those_that_every_host_has(lab):
    texts = ["127.0.0.1", "::1", "fe80::1", "169.254.1.1", "10.0.0.5", "2001:db8::5"]
    lab.kernel.has = Own(frozenset(map(parse_address, texts)))
    lab.kernel.refresh_addresses()
    assert lab.heartbeat().addresses == ("10.0.0.5", "2001:db8::5")
    lab.kernel.has = Own(frozenset(parse_address(f"10.0.{n}.1") for n in range(100)))
    lab.kernel.refresh_addresses()
    assert len(lab.heartbeat().addresses) == 64


async def test_without_telemetry_nothing_is_told(tmp_path):
    plain = await AgentLab().begin()
    assert plain.runner.telemetry is None
    assert plain.heartbeat().loss == {}


# Settings


async def test_settings_come_from_the_file_and_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "agent.toml"
    path.write_text("[telemetry]\nspool_bytes = 1000\nflow_seconds = 2\n")
    monkeypatch.setenv("AEGISFLUX_AGENT_TELEMETRY_SPOOL_BYTES", "2000")
    monkeypatch.setenv("AEGISFLUX_AGENT_TELEMETRY_ENABLED", "false")
    found = load_config(path).settings().telemetry
    assert (found.spool_bytes, found.flow_seconds, found.enabled) == (2000, 2.0, False)
    path.write_text("[telemetry]\nspool = 1000\n")
    with pytest.raises(Invalid, match="spool"):
        load_config(path)


# Software


@pytest.fixture
async def packages(tmp_path):
    lab = TelemetryLab(tmp_path / "spool")
    lab.software = FakeSoftware()
    lab.runner = lab.agent()
    return await lab.begin()


def inventory_of(lab):
    from aegisflux.wire.inventory import decode_inventory

    log = lab.broker.logs[subjects.stream_of(subjects.ALL_INVENTORIES).name]
    return [[p.name for p in decode_inventory(m.payload).packages] for m in log.messages.values()]


async def test_packages_are_sent_and_again_only_when_they_changed(packages):
    inventory = packages.telemetry.packages
    assert await inventory.look()
    assert inventory_of(packages) == [["bash"]]
    assert not await inventory.look()
    assert packages.software.taken == 1, "nothing was touched, so nothing is read"
    packages.software.is_changed = True
    assert not await inventory.look(), "touched, and the same"
    packages.software.names.append("zsh")
    assert await inventory.look()
    assert inventory_of(packages) == [["bash", "zsh"]]


async def test_a_new_agent_does_not_send_what_was_sent(packages):
    await packages.telemetry.packages.look()
    await packages.restart()
    assert not await packages.telemetry.packages.look()
    assert packages.software.taken == 2


async def test_a_bus_that_forgot_is_told_again_after_the_connect(packages):
    await packages.telemetry.packages.look()
    packages.telemetry.connected()
    assert not await packages.telemetry.packages.look(), "it is still there"
    packages.broker.forget()
    await packages.bus.ensure_streams()
    packages.telemetry.connected()
    assert await packages.telemetry.packages.look()
    assert inventory_of(packages) == [["bash"]]


async def test_packages_that_could_not_be_sent_are_owed(packages):
    packages.broker.down = True
    with pytest.raises(Unavailable):
        await packages.telemetry.packages.look()
    packages.broker.down = False
    assert await packages.telemetry.packages.look()


async def test_an_inventory_that_no_message_can_hold_is_refused_once_and_said(packages):
    import secrets

    inventory = packages.telemetry.packages
    packages.software.names = [secrets.token_hex(100) for _ in range(15_000)]
    assert await inventory._looked(), "nothing to try again soon"
    assert packages.heartbeat().loss == {"inventory.refused": 1}
    assert "over the limit" in packages.telemetry.report()["inventory"]
    assert await inventory._looked()
    assert packages.software.taken == 1
