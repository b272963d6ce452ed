"""What an agent claims is what binds: services that match nothing, and a second agent with its identity."""

import msgspec
import pytest
import pytest_asyncio

from aegisflux.agent import binder
from aegisflux.agent.cli import _skipped_lines
from aegisflux.domain.converge import Holding, InForce
from aegisflux.domain.errors import OverLimit
from aegisflux.wire import subjects
from support.agents import AgentLab, body

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def lab():
    return await AgentLab().begin()


def states(lab) -> list[str]:
    return [service.state for service in lab.heartbeat().services]


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize(
    "selectors", [("cgroup:other",), ("unit:absent.service",), ("cgroup:we",), ("cgroup:other/**",), ()]
)
async def test_a_service_that_matches_no_cgroup_is_not_in_force(lab, mode, selectors):
    await lab.desire(lab.plane.service(lab.one_edge(mode=mode), selectors=selectors))
    assert states(lab) == ["matches nothing"]
    (ack,) = lab.answers()
    assert not ack.matches
    lab.cgroups.tree = {"web": 11, "other": 13, "other/1": 14, "we": 15, "system.slice/absent.service": 16}
    lab.cgroups.changed()
    await lab.runner.bind()
    expected = "in_force" if mode == "enforce" else "observing"
    assert states(lab) == [expected if selectors else "matches nothing"]
    lab.cgroups.tree = {}
    await lab.runner.bind()
    assert states(lab) == ["matches nothing"]


def refusing(lab, monkeypatch, refused):
    """Let the datapath refuse these paths, as a kernel without room does."""
    bind = lab.kernel.bind

    def some(bindings):
        given = list(bindings)
        bind([b for b in given if b.path not in refused])
        found = {b.path: "no space left" for b in given if b.path in refused}
        lab.kernel._refused = found
        if found:
            raise OverLimit("cgroups", 1, 2, "no space left")

    monkeypatch.setattr(lab.kernel, "bind", some)


MANY = {f"pods/{n}": 100 + n for n in range(10)}


@pytest.mark.parametrize(
    ("tree", "refused", "most", "expected"),
    [
        ({"web": 11, "db": 12}, (), 99, {101: ("in_force", 1, 0), 102: ("in_force", 1, 0)}),
        ({"web": 11, "db": 12}, ("web",), 99, {101: ("matches nothing", 0, 1), 102: ("in_force", 1, 0)}),
        ({**MANY, "db": 12}, ("pods/3",), 99, {101: ("in_force", 9, 1), 102: ("in_force", 1, 0)}),
        ({**MANY, "db": 12}, MANY, 99, {101: ("matches nothing", 0, 10), 102: ("in_force", 1, 0)}),
        ({**MANY, "db": 12}, (), 5, {101: ("in_force", 4, 6), 102: ("in_force", 1, 0)}),
        ({**MANY, "db": 12}, ("pods/0",), 5, {101: ("in_force", 3, 7), 102: ("in_force", 1, 0)}),
        (
            {**MANY, **{f"jobs/{n}": 200 + n for n in range(10)}},
            (),
            6,
            {101: ("in_force", 3, 7), 102: ("in_force", 3, 7)},
        ),
        ({**MANY, "jobs/1": 200}, (), 6, {101: ("in_force", 5, 5), 102: ("in_force", 1, 0)}),
        ({"web": 11, "db": 12}, (), 1, {101: ("matches nothing", 0, 1), 102: ("in_force", 1, 0)}),
    ],
)
async def test_what_is_claimed_is_what_is_bound(lab, monkeypatch, tree, refused, most, expected):
    """By service: its state, how many cgroups are bound, and how many are selected and not bound."""
    monkeypatch.setattr(binder, "MAX_BINDINGS", most)
    refusing(lab, monkeypatch, refused)
    lab.cgroups.tree = dict(tree)
    plane, other = lab.plane, lab.plane.content(body(1, service_id=102))
    for _ in range(2):
        lab.clocks.advance(1)
        await lab.desire(
            plane.service(lab.one_edge(), selectors=("cgroup:web*", "cgroup:pods/*")),
            plane.service(other, name="db", selectors=("cgroup:db", "cgroup:jobs/*")),
        )
        beat, bound = lab.heartbeat(), {b.cgroup_id for b in lab.kernel.bindings()}
        found = {}
        for report in beat.services:
            assert {tree[path] for path in report.cgroups} <= bound
            lacking = lab.runner.binder.unbound.get(report.service_id, 0)
            found[report.service_id] = (report.state, len(report.cgroups), lacking)
            assert bool(report.conflicts) == bool(lacking)
        assert found == expected
        lacking = sum(count for *_, count in expected.values())
        assert beat.loss.get("unbound_cgroups", 0) == lacking
        assert any("not every cgroup" in text for text in beat.troubles) == bool(lacking)
        acks = {ack.service_id: ack.matches for ack in lab.answers()}
        assert acks == {service: bool(count) for service, (_, count, _) in expected.items()}
        lines = len(lab.logs)
        lab.cgroups.changed()
        await lab.runner.bind()
        assert lab.logs[lines:] == [], "it is logged once"
    lab.cgroups.tree = {"web": 11}
    monkeypatch.undo()
    await lab.runner.bind()
    beat = lab.heartbeat()
    assert (beat.troubles, beat.loss.get("unbound_cgroups")) == ((), None)


async def test_what_stands_in_the_way_comes_before_what_matches_nothing(lab):
    made = lab.one_edge()
    await lab.desire(lab.plane.service(made, selectors=("cgroup:other",)))
    lab.clocks.advance(601)
    assert states(lab) == ["expired"]


@pytest.mark.parametrize("letter", ["a", "\u20ac"])
@pytest.mark.parametrize(
    ("services", "lines", "size"),
    [(1, 10, 20), (1, 65, 20), (32, 64, 319), (256, 8, 319), (256, 64, 4000), (1, 64, 60_000), (2, 64, 4000)],
)
async def test_a_heartbeat_is_one_message_and_counts_what_it_cuts(lab, services, lines, size, letter):
    """One that is too large is dropped: the host is silent then, and its trials end badly."""
    texts = tuple(f"{n}:".ljust(size, letter) for n in range(lines))
    names = range(101, 101 + services)
    reporter, every = lab.runner.reporter, dict.fromkeys(names, texts)
    counts = dict.fromkeys((f"verdict {n}" for n in range(32)), 2**60)
    reporter.verdicts = dict.fromkeys(names, counts)
    reporter.bound(every, {}, every)
    active = InForce(1, "sha256:" + "0" * 64, "sha256:" + "1" * 64, 1, 0, 0, 60, "enforce", "open", "keep")
    holdings = {i: Holding(i, i - 101, active) for i in names}
    beat = reporter.heartbeat(None, holdings, {}, set(), 1, False)
    await reporter.beat(beat)
    (message,) = [m for m in [await lab.bus.last(subjects.heartbeat("web1"))] if m]
    assert len(message.payload) <= subjects.MAX_LETTER
    for what in ("cgroups", "conflicts"):
        told = [getattr(report, what) for report in beat.services]
        assert len(told) == services
        assert all(found == texts[: len(found)] for found in told)
        missing = services * lines - sum(map(len, told))
        assert beat.loss.get(f"{what}.cut", 0) == missing
        assert bool(missing) == ((services, lines) != (1, 10))
    said = "\n".join(_skipped_lines(msgspec.to_builtins(beat)))
    assert ("more cgroups are not listed" in said) == ("cgroups.cut" in beat.loss)


async def test_a_second_agent_with_this_identity_is_reported_until_it_ends(lab):
    await lab.desire(lab.plane.service(lab.one_edge()))
    await lab.runner.beat()
    await lab.runner.refresh()
    assert lab.heartbeat().troubles == ()
    lab.clocks.advance(5)
    first, clone = lab.runner, lab.agent()
    await clone.beat()
    await first.refresh()
    (text,) = first.heartbeat().troubles
    assert "another agent answers as web1" in text
    assert states(lab) == ["in_force"], "neither stops to enforce"
    await first.beat()
    await clone.refresh()
    assert "another agent answers as web1" in clone.heartbeat().troubles[0]
    await first.refresh()
    assert first.heartbeat().troubles, "of two, each is the last one now and then"
    lab.clocks.advance(181)
    await first.beat()
    await first.refresh()
    assert first.heartbeat().troubles == ()


async def test_a_restarted_agent_is_no_second_one(lab):
    await lab.runner.beat()
    lab.clocks.advance(5)
    await lab.restart()
    await lab.runner.refresh()
    assert lab.heartbeat().troubles == ()
    await lab.runner.beat()
    await lab.runner.refresh()
    assert lab.heartbeat().troubles == ()
