"""The agent reads own addresses as soon as it is told that they changed, and says what it cannot read."""

import asyncio
import os

import pytest

from aegisflux.agent import addresses
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.flow import Own
from aegisflux.domain.net import parse_address
from support.agents import AgentLab
from support.engines import eventually

NEW = parse_address("10.0.0.9")


@pytest.fixture
async def lab(monkeypatch):
    """An agent that lives, and is told through an eventfd."""
    monkeypatch.setattr(addresses, "GAP_SECONDS", 0.001)
    monkeypatch.setattr(addresses, "AGAIN_SECONDS", 0.01)
    lab = await AgentLab(addresses_seconds=3600).begin()
    lab.kernel.addresses_fd = os.eventfd(0, os.EFD_NONBLOCK)
    stop, ready = asyncio.Event(), asyncio.Event()
    life = asyncio.create_task(lab.runner.run(stop, ready.set))
    await ready.wait()
    yield lab
    stop.set()
    await life
    os.close(lab.kernel.addresses_fd)


def told(lab, *texts):
    lab.kernel.has = Own(frozenset(map(parse_address, texts)))
    os.eventfd_write(lab.kernel.addresses_fd, 1)


async def known(lab, *texts):
    wanted = frozenset(map(parse_address, texts))
    await eventually(lambda: set(lab.kernel.addresses()) == wanted, 5)


async def test_a_change_is_read_when_it_is_told(lab):
    told(lab, "10.0.0.9")
    await known(lab, "10.0.0.9")
    told(lab, "10.0.0.9", "10.0.0.10")
    await known(lab, "10.0.0.9", "10.0.0.10")
    assert "10.0.0.10" in lab.heartbeat().addresses


async def test_a_reading_that_fails_is_said_and_the_next_one_is_made(lab):
    lab.kernel.faults["refresh_addresses"] = Unavailable("netlink: no")
    told(lab, "10.0.0.9")
    await eventually(lambda: any("netlink: no" in line for line in lab.logs), 5)
    told(lab, "10.0.0.10")
    await known(lab, "10.0.0.10")


async def test_many_changes_are_few_readings(lab, monkeypatch):
    """As many as the gap between two allows, however often the kernel tells."""
    monkeypatch.setattr(addresses, "GAP_SECONDS", 0.2)
    calls = []
    heed = lab.kernel.heed_addresses
    monkeypatch.setattr(lab.kernel, "heed_addresses", lambda: calls.append(1) or heed())
    for i in range(200):
        told(lab, f"10.0.1.{i}")
        await asyncio.sleep(0)
    await known(lab, "10.0.1.199")
    assert len(calls) <= 4


async def test_a_cgroup_that_becomes_governed_is_looked_at_again_in_a_moment(lab, monkeypatch):
    """Its process, and so its network namespace, comes after the cgroup; many come together."""
    calls, look = [], lab.kernel.refresh_addresses
    monkeypatch.setattr(lab.kernel, "refresh_addresses", lambda: calls.append(1) or look())
    for _ in range(50):
        lab.runner.addresses.changed()
    lab.kernel.has = Own(frozenset({NEW}))
    await known(lab, "10.0.0.9")
    assert len(calls) == 1
    monkeypatch.setattr(lab.runner, "panic", object())
    lab.runner.addresses.changed()
    await eventually(lambda: not lab.runner.addresses._again.is_set(), 5)
    assert len(calls) == 1, "nothing is read while nothing is enforced"
    monkeypatch.undo()


async def test_a_trouble_is_said_once_and_again_when_it_returns_later(lab, monkeypatch):
    answers = [["a", "b"], ["a", "b"], ["b"], ["a", "b"], [f"n{i:02}" for i in range(40)]]
    lab.logs.clear()
    answers += [["b"], ["a", "b"]]  # within ten minutes: users can make it come and go
    for answer in answers:
        monkeypatch.setattr(lab.kernel, "refresh_addresses", lambda answer=answer: answer)
        await lab.runner.addresses.refresh()
        if answer == ["b"] and len(lab.logs) < 10:
            lab.runner.addresses._said["a"] -= addresses.QUIET_SECONDS
    said = [line for line in lab.logs if line in ("a", "b") or line.startswith(("n", "own"))]
    assert said == ["a", "b", "a", *(f"n{i:02}" for i in range(16)), "own addresses: 24 more of these"]


async def test_a_kernel_that_does_not_tell_ends_no_agent():
    lab = await AgentLab().begin()
    stop, ready = asyncio.Event(), asyncio.Event()
    life = asyncio.create_task(lab.runner.run(stop, ready.set))
    await ready.wait()
    done, _ = await asyncio.wait({life}, timeout=0.05)
    assert not done
    stop.set()
    await life
