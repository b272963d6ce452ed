"""A unit that is restarted, so that its cgroup is removed and made again, runs open at no time."""

import asyncio

import pytest

from aegisflux.agent import binder
from aegisflux.domain.selectors import owners, parse_selector, unborn_paths
from support.agents import AgentLab, body, edges

SELECTORS = [
    ("cgroup:unit-*", "unit-1"),
    ("cgroup:a/**", "a/b/c"),
    ("unit:web@*", "system.slice/system-web.slice/web@1.service"),
    ("unit:web@[0-9]", "machine.slice/web@7.service"),
    ("unit:web", "machine.slice/web.service"),
    ("cgroup:literal", "literal"),
]


@pytest.fixture
async def lab():
    return await AgentLab().begin()


async def serve(lab: AgentLab, *selectors: str) -> None:
    content = lab.plane.content(body(1, 101, edges=edges("10.0.0.0/8 tcp/443")))
    await lab.desire(lab.plane.service(content, selectors=selectors))


@pytest.mark.parametrize(("selector", "path"), SELECTORS)
async def test_what_was_selected_once_is_bound_at_birth(lab, selector, path):
    lab.cgroups.tree = {path: 11}
    await serve(lab, selector)
    lab.cgroups.tree = {}
    await lab.runner.bind()
    lab.kernel.created(99, path)
    assert {b.slot for b in lab.kernel.bindings() if b.cgroup_id == 99} == {0}


async def test_what_another_service_took_over_is_not_bound_by_the_first(lab):
    wanted = {1: [parse_selector("cgroup:unit-*")], 2: [parse_selector("cgroup:unit-1")]}
    unborn = unborn_paths(wanted, ["unit-1", "unit-2", "else"])
    assert owners(unborn, wanted).services == {"unit-1": 2, "unit-2": 1}
    assert owners(unborn, {2: wanted[2]}).services == {"unit-1": 2}


async def test_so_many_paths_are_remembered_and_the_oldest_goes(lab, monkeypatch):
    monkeypatch.setattr(binder, "SEEN_KEPT", 3)
    lab.cgroups.tree = {"unit-0": 10}
    await serve(lab, "cgroup:unit-*")
    for number in range(1, 6):
        lab.cgroups.tree = {f"unit-{number}": 10 + number}
        await lab.runner.bind()
    assert sorted(lab.kernel._literals) == ["unit-3", "unit-4", "unit-5"]


async def test_what_runs_is_bound_before_what_may_come(lab, monkeypatch):
    await serve(lab, "cgroup:unit-*")
    called = []
    for name in ("bind", "literals"):
        real = getattr(lab.kernel, name)
        monkeypatch.setattr(lab.kernel, name, lambda given, n=name, r=real: (called.append(n), r(given))[1])
    lab.cgroups.tree = {"unit-1": 11}
    await lab.runner.bind()
    assert called == ["bind", "literals"]


async def test_no_binding_waits_for_the_addresses_of_the_one_before(lab, monkeypatch):
    await serve(lab, "cgroup:unit-*")
    never = asyncio.Event()
    monkeypatch.setattr(lab.runner.addresses, "refresh", never.wait)
    for number in range(3):
        lab.cgroups.tree = {f"unit-{number}": 20 + number}
        await asyncio.wait_for(lab.runner.bind(), 1)
        assert 20 + number in {b.cgroup_id for b in lab.kernel.bindings()}
