"""What an agent claims is what binds: services that match nothing, and a second agent with its identity."""

import pytest
import pytest_asyncio

from support.agents import AgentLab

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


async def test_what_stands_in_the_way_comes_before_what_matches_nothing(lab):
    made = lab.one_edge()
    await lab.desire(lab.plane.service(made, selectors=("cgroup:other",)))
    lab.clocks.advance(601)
    assert states(lab) == ["expired"]


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
