"""What an unprivileged user does in a delegated subtree costs no service its enforcement, and gives no
process the rights of one. The agent is a process over the real kernel; the user is uid 65534.
"""

import asyncio
import os
from pathlib import Path

import pytest
import pytest_asyncio
from tests.support.netns import cgroup_root
from tests.support.unprivileged import delegate, drop

from support.agent_bench import content, enrolled_bench
from support.agent_process import fleet
from support.agents import body
from support.engines import eventually

pytestmark = [pytest.mark.bpf, pytest.mark.engines, pytest.mark.asyncio]
NAMES = [b"\xff", b"a\xc3(", b"\x1b]0;owned\x07", b"\xed\xa0\x80", "\u202eecivres".encode()]


@pytest_asyncio.fixture
async def bench(tmp_path):
    async with enrolled_bench(tmp_path) as found:
        try:
            yield found
        finally:
            print(found.agent.log())
            print(found.agent.call("status").stdout)


def as_user(act) -> None:
    """Do it in a child that is uid 65534 and holds no capability."""
    pid = os.fork()
    if not pid:
        try:
            drop()
            act()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def makes(*paths: bytes | Path) -> None:
    as_user(lambda: [os.mkdir(path) for path in paths])


async def test_names_that_are_no_text_cost_no_service_its_enforcement(bench):
    """Made while the agent runs, found by its scan, and found by the next agent."""
    user, glob = delegate(bench.cgroup("user")), ("job@*",)
    raw = [os.fsencode(user) + b"/" + name for name in NAMES]
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench), *glob))
        bench.agent.start()
        await control.acked(1)
        makes(*raw, raw[0] + b"/deeper")
        assert await asyncio.to_thread(bench.connect, bench.cgroup("job@1"), "192.0.2.1", "refused")
        assert await bench.refused(bench.cgroup("job@1"))
        beat = await eventually(lambda: told(control))
        assert beat.loss["skipped_cgroups"] >= len(NAMES)
        assert any(path.endswith(r"user/\xff") for path in beat.skipped_cgroups)
        shown = (await bench.agent.acall("status")).stdout
        assert r"user/\xff" in shown
        assert shown.replace("\n", "").isprintable()
        assert bench.agent.process.poll() is None
        bench.agent.kill()
        bench.agent.start()
        await eventually(bench.agent.status)
        new = bench.cgroup("job@2")
        assert (await asyncio.to_thread(bench.connect, new, "192.0.2.1", "refused"))[0] == "refused"
        for path in (raw[0] + b"/deeper", *raw):
            os.rmdir(path)


async def told(control):
    beat = await control.heartbeat()
    return beat if beat and beat.skipped_cgroups else None


async def test_a_name_below_a_delegated_directory_is_nobodys(bench):
    """By literal, glob or unit, before and after the directory is given away, with and without an agent."""
    user, job = bench.cgroup("user"), user_names(bench)
    (user / "early").mkdir()
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(
            bench.service(content(bench), "**/job@*", "user/early", "user/web", "user/x/*"),
            bench.plane.service(bench.plane.content(body_of(102)), name="u", selectors=("unit:job@*",)),
        )
        bench.agent.start()
        await control.acked(1)
        await eventually(lambda: bench.refused(user / "early"))
        delegate(user)
        await eventually(lambda: bench.is_open(user / "early"))
        makes(*job)
        for path in job:
            assert await bench.is_open(path)
        bench.agent.kill()
        as_user((user / "web").rmdir)
        makes(user / "web")
        assert await bench.is_open(user / "web"), "with the agent dead the kernel binds at birth"
        bench.agent.start()
        await eventually(bench.agent.status)
        for path in job:
            assert await bench.is_open(path)


def user_names(bench) -> list[Path]:
    return [bench.top / "user" / name for name in ("job@1", "web", "x", "x/a", "job@2.service")]


def body_of(service_id: int) -> dict:
    return body(1, service_id)


async def test_what_runs_below_belongs_to_the_nearest_selected_cgroup(bench):
    user = delegate(bench.cgroup("user"))
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench), "user", "user/out", "user/**"))
        bench.agent.start()
        await control.acked(1)
        makes(user / "out", user / "out" / "in")
        assert await bench.refused(user / "out" / "in")
        status = await bench.agent.status()
        assert status["services"][0]["cgroups"] == [str(user.relative_to(cgroup_root()))]


async def test_a_selector_that_is_none_costs_its_own_service_only(bench):
    web = bench.cgroup("web")
    bad = ("cgroup:" + "x" * 255, "cgroup:" + "é" * 127, "cgroup:[z-a]", "cgroup:" + "*" * 500 + "x")
    async with fleet(bench.lab, bench.plane) as control:
        other = bench.plane.content(body_of(102))
        await control.desire(
            bench.plane.service(other, name="bad", selectors=bad), bench.service(content(bench))
        )
        bench.agent.start()
        await control.acked(1)
        await eventually(lambda: bench.refused(web))
        reports = {r["service_id"]: r for r in (await bench.agent.status())["services"]}
        assert reports[101]["conflicts"] == []
        assert len(reports[102]["conflicts"]) == 3
        assert "selects nothing" in (await bench.agent.acall("status")).stdout
