"""A user gives cgroups of their own the names of a service that may do more, and gets none of its rights.

The agent is the real one, over the real kernel and the real tree of cgroups: `postgresql` may reach the
denied host, the user's slice may not. What the user makes belongs to the slice, whenever it is made.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from aegisflux.agent.cgroups import CgroupTree
from tests.bpf.adversary.escapes import home, move, send
from tests.bpf.adversary.trick import DB4
from tests.support.netns import cgroup_root
from tests.support.unprivileged import FREE, SLICE, Arena, Run, Steps

from support.agents import AgentLab, body  # isort: skip - one module, by the name that it has for others

pytestmark = [pytest.mark.bpf, pytest.mark.netns, pytest.mark.asyncio(loop_scope="module")]
NAMES = (
    "postgresql.service", "postgresql.socket", "postgresql@1.service", "system.slice/postgresql.service",
    "machine.slice/postgresql.service", "a.slice/a-b.slice/postgresql.service", "pg-one",
    "x/y/postgresql.service", "_postgresql.service", "\udcff/postgresql.service",
)  # fmt: skip


class Host:
    """An agent with two services on `app`."""

    def __init__(self, arena: Arena) -> None:
        self.arena, self.top = arena, str(arena.app.cgroup.relative_to(cgroup_root()))
        self.slice, self.users = f"{self.top}/{SLICE}", f"{self.top}/{SLICE}/user@65534.service"
        self.lab = AgentLab(unit_slices=(f"{self.top}/system.slice", f"{self.top}/user.slice"))
        self.lab.kernel, self.lab.cgroups = arena.kernel.datapath, CgroupTree()
        self.lab.runner = self.lab.agent()

    async def begin(self) -> "Host":
        await self.lab.begin()
        plane, to_db = self.lab.plane, {"dst_cidr": f"{DB4}/32", "proto": "any", "port": 0}
        postgresql = plane.service(
            plane.content(body(1, 101, edges=[to_db])),
            selectors=(
                "unit:postgresql", "unit:postgresql@1", "unit:pg-*",
                f"cgroup:{self.top}/*/postgresql.service", f"cgroup:{self.users}/pg-one",
                f"cgroup:{self.users}/**/postgresql.service",
                *(f"cgroup:{self.users}/{name}" for name in NAMES if name.isprintable()),
            ),
        )  # fmt: skip
        users = plane.service(
            plane.content(body(1, 102, edges=[])), selectors=(f"cgroup:{self.slice}",), name="users"
        )
        await self.lab.desire(postgresql, users)
        return self

    async def look(self) -> None:
        """The agent reads the tree of cgroups, whatever events told."""
        await self.lab.cgroups.rescan()
        await self.lab.runner.bind()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[Host]:
    with Arena() as arena:
        yield await Host(arena).begin()


def impostor(name: str, leaves: bool) -> Steps:
    """Becomes a member of a cgroup of that name; sends before and after the agent looked."""
    start = home()
    path = start / name
    parts = name.split("/")
    for n in range(len(parts)):
        (start / "/".join(parts[: n + 1])).mkdir(exist_ok=True)
    move(path)
    words = [attempt()]
    yield
    words.append(attempt())
    if leaves:
        move(start)
        os.rmdir(path)
        path.mkdir()
        move(path)
        words.append(attempt())
    return " ".join(words)


def attempt() -> str:
    try:
        return send()
    except PermissionError:
        return "EPERM"


async def stepped(host: Host, cgroup: Path, name: str, leaves: bool) -> tuple[str, int]:
    """What the user saw, and how much reached the denied host."""
    host.arena.settle()
    run = Run(host.arena.app, cgroup, lambda: impostor(name, leaves))
    try:
        while run.step():
            await host.look()
            run.resume()
        word = run.word()
    finally:
        run.end()
    seen = host.arena.settle()
    return word, len([p for p in seen["db"] if p.tells and p.dest == DB4])


@pytest.mark.parametrize("leaves", [False, True], ids=["once", "made again"])
@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[1:-1] for name in NAMES])
async def test_a_name_gives_a_user_no_rights(host: Host, name: str, leaves: bool) -> None:
    word, arrived = await stepped(host, host.arena.governed, name, leaves)
    assert arrived == 0
    assert set(word.split()) == {"EPERM"}, "and it belongs to the user's slice"


async def test_the_real_one_has_its_rights(host: Host) -> None:
    """From its birth on: the row above is no accident."""
    app = host.arena.app
    for name in ("system.slice/postgresql.service", "system.slice/pg-one"):
        assert app.call(send, cgroup=name) == "10"
        await host.look()
        assert app.call(send, cgroup=name) == "10"


async def test_what_runs_in_no_slice_of_a_service_is_nobodys(host: Host) -> None:
    """A user of whom no service says anything does not become one by a name."""
    word, arrived = await stepped(host, host.arena.free, "postgresql.service", False)
    assert (word, arrived > 0) == ("10 10", True)
    bound = {b.path for b in host.arena.kernel.datapath.bindings()}
    assert not any(FREE in path for path in bound)
