"""The tree of cgroups from events: it holds what a new reading finds, and an event costs what it changes."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegisflux.agent.cgroups import CgroupTree
from aegisflux.agent.nested import Nested

PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
STEPS = st.lists(st.tuples(st.sampled_from(["make", "remove", "give", "take", "odd"]), PATHS), max_size=12)


def prune(folder: Path) -> None:
    for root, folders, _ in os.walk(os.fsencode(folder), topdown=False):
        for name in folders:
            os.rmdir(os.path.join(root, name))


def step(root: Path, kind: str, path: str) -> None:
    folder = root / path
    if kind == "make":
        folder.mkdir(parents=True, exist_ok=True)
    elif kind == "odd" and folder.is_dir():
        os.makedirs(os.fsencode(folder) + b"/\xff", exist_ok=True)
    elif kind == "remove" and folder.is_dir():
        prune(folder)
        folder.rmdir()
    elif folder.is_dir():
        folder.chmod(0o777 if kind == "give" else 0o755)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(STEPS, st.booleans())
def test_events_lead_where_a_new_reading_leads(tmp_path, steps, between):
    async def live() -> None:
        tree = CgroupTree(tmp_path)
        assert tree.on_change(lambda: None)
        await tree.scan()
        try:
            for kind, path in steps:
                step(tmp_path, kind, path)
                if between:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
            for _ in range(4):
                await asyncio.sleep(0)
            fresh = CgroupTree(tmp_path)
            assert dict(await tree.scan()) == dict(await fresh.scan())
            assert tree.delegated == fresh.delegated
            now = tree._now
            assert set(now.tree) <= set(now.numbers), "all that is known is watched"
            assert {now.numbers[path]: path for path in now.numbers} == now.watches
        finally:
            tree.close()
            prune(tmp_path)

    asyncio.run(live())


class Unwalked(dict[Any, Any]):
    """A dict in which one may look up, but through which nobody may walk."""

    def _no(self) -> Any:
        raise AssertionError("one event walked over the whole tree")

    __iter__ = keys = values = items = _no


@pytest.mark.parametrize("removed", ["a/b/c", "a/b/d"])
async def test_a_removed_cgroup_costs_its_own_subtree(tmp_path, removed):
    for path in ("a/b/c", "a/b/d", "e"):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
    tree = CgroupTree(tmp_path)
    assert tree.on_change(lambda: None)
    try:
        await tree.scan()
        now = tree._now
        now.tree, now.watches, now.skipped = Unwalked(now.tree), Unwalked(now.watches), Unwalked(now.skipped)
        parent, _, name = removed.rpartition("/")
        assert now.event(now.numbers[parent], 0x40000200, name), "IN_DELETE | IN_ISDIR"
        assert removed not in now.tree
        assert removed not in now.numbers
    finally:
        tree.close()


NOTED = st.lists(st.lists(st.sampled_from("ab"), max_size=4).map("/".join), max_size=20)


@given(NOTED, NOTED)
def test_nested_paths_are_what_starts_with_their_directory(added, taken):
    nested, known = Nested(), set()
    for path in added:
        nested.add(path)
        known |= {"/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)} - {""}
    for path in taken:
        inside = {p for p in known if p.startswith(path + "/") or path == ""}
        assert set(nested.below(path)) == inside
        assert nested.take(path)[-1] == path
        known -= inside | {path}
    assert set(nested.below("")) == known
