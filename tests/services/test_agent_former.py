"""What judged before this agent began judges on until it is selected here too; else it is told by path."""

import pytest

from aegisflux.agent.former import SHOWN
from aegisflux.domain.selectors import parse_selector, unselected
from aegisflux.ports.datapath import Binding
from support.agents import AgentLab, body, edges

POD = "kubepods.slice/pod1.slice/web.scope"
WORDS = {
    "given away": ("cgroup:a/b/c", "a/b/c", {"a"}, "below a directory that others than root write (a): give"),
    "the root is": ("cgroup:a", "a", {""}, "below a directory that others than root write (/)"),
    "another slice": (
        "unit:web.scope",
        POD,
        (),
        "system.slice and machine.slice only: add kubepods.slice to",
    ),
    "no slice": ("unit:web", "my/web.service", (), "machine.slice only: select it by cgroup:my/web.service"),
    "inside a unit": ("unit:web", "system.slice/a.service/web.service", (), "looks below no other unit"),
    "other selectors": ("unit:db", "system.slice/web.service", (), "no selector of the service matches it"),
    "none": (None, "system.slice/web.service", (), "no selector of the service matches it"),
}


@pytest.mark.parametrize("case", WORDS)
def test_why_a_cgroup_is_not_selected_begins_with_its_path_and_says_what_to_do(case):
    selector, path, delegated, said = WORDS[case]
    found = unselected(path, [parse_selector(selector)] if selector else [], delegated)
    assert (found.startswith(f"{path}: "), said in found) == (True, True)


@pytest.fixture
async def lab():
    lab = await AgentLab().begin()
    await serve(lab)
    return lab


async def serve(lab, *, number=101):
    content = lab.plane.content(body(1, number, edges=edges("10.0.0.0/8 tcp/443")))
    await lab.desire(lab.plane.service(content, selectors=("unit:web.scope", "cgroup:web")))


async def upgraded(lab, *left):
    lab.kernel.left_judging = list(left)
    await lab.restart()


def troubles(lab):
    return " ".join(lab.heartbeat().troubles)


async def test_the_former_programs_stay_for_what_is_not_selected_any_more(lab):
    await upgraded(lab, Binding(11, "web", 0), Binding(77, POD, 0))
    assert lab.kernel.left_judging == [Binding(77, POD, 0)], "what is bound here is taken from them"
    assert f"service 101: {POD}: unit:web.scope looks in system.slice" in troubles(lab)
    assert [line for line in lab.logs if POD in line]
    lab.cgroups.tree |= {"machine.slice/web.scope": 77}
    await lab.runner.drift()
    assert (lab.kernel.left_judging, troubles(lab)) == ([], "")


async def test_they_end_where_all_is_bound(lab):
    await upgraded(lab, Binding(11, "web", 0))
    assert (lab.kernel.left_judging, troubles(lab)) == ([], "")


async def test_they_end_with_the_cgroup(lab):
    await upgraded(lab, Binding(77, POD, 0))
    lab.kernel.left_judging = []
    await lab.runner.drift()
    assert (troubles(lab), lab.runner.former.waits) == ("", False)


async def test_they_end_with_the_service(lab):
    await upgraded(lab, Binding(77, POD, 0))
    assert lab.kernel.left_judging
    await serve(lab, number=102)
    assert (lab.kernel.left_judging, troubles(lab)) == ([], "")


async def test_very_many_are_counted(lab):
    await upgraded(lab, *(Binding(100 + n, f"x.slice/{n}.scope", 0) for n in range(SHOWN + 5)))
    assert "5 more cgroups are judged by programs of before the upgrade alone" in troubles(lab)


async def test_a_restart_that_lets_a_living_cgroup_go_says_so_by_path(lab):
    lab.kernel.left_bound = [Binding(77, POD, 0), Binding(11, "web", 0)]
    lab.logs.clear()
    await lab.restart()
    said = [line for line in lab.logs if "no longer enforced" in line]
    assert len(said) == 1
    assert said[0].startswith(f"service 101: no longer enforced: {POD}: unit:web.scope looks in")


async def test_a_directory_that_is_given_away_lets_go_by_path(lab):
    lab.cgroups.tree = {"web": 11, "machine.slice/web.scope": 12}
    await lab.runner.bind()
    lab.cgroups.tree, lab.cgroups.delegated = {"web": 11}, frozenset({"machine.slice"})
    lab.logs.clear()
    await lab.runner.bind()
    assert [line for line in lab.logs if "no longer enforced: machine.slice/web.scope: it lies below" in line]


async def test_what_is_removed_or_withdrawn_is_no_news(lab):
    lab.cgroups.tree = {}
    lab.logs.clear()
    await lab.runner.bind()
    lab.cgroups.tree = {"web": 11}
    await lab.runner.bind()
    await lab.desire()
    assert not [line for line in lab.logs if "no longer enforced" in line]
