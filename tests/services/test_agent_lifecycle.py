"""Agents told as transcripts: trials and their end, death and birth, panic."""

import contextlib
import random

import pytest

from aegisflux.agent import remember
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.flow import Flow
from aegisflux.domain.net import TCP, parse_address
from aegisflux.domain.panic import Panic
from support.agents import WALL, AgentLab, body, edges


def tcp(peer: str, port: int) -> Flow:
    return Flow("egress", TCP, parse_address(peer), port, 40_000)


ALLOWED, OTHER = tcp("10.0.0.1", 443), tcp("192.0.2.1", 443)


@pytest.fixture
async def lab():
    return await AgentLab().begin()


def content(lab, version=1, service_id=101, **fields):
    return lab.plane.content(body(version, service_id, edges=edges("10.0.0.0/8 tcp/443"), **fields))


# Commit-confirm


async def test_what_is_confirmed_stays(lab):
    made = content(lab)
    await lab.desire(lab.plane.service(made, confirm=30))
    assert lab.said() == ["ack 101 v1 awaits confirm"]
    assert await lab.runner.confirm(lab.plane.confirm(made))
    lab.clocks.advance(31)
    await lab.runner.tick()
    assert (lab.held(), lab.said()) == (["active 101 v1"], [])


async def test_what_is_not_confirmed_goes_back_and_is_not_tried_again(lab):
    one, two, three = content(lab), content(lab, 2), content(lab, 3)
    await lab.desire(lab.plane.service(one))
    trial = lab.plane.service(two, confirm=30)
    await lab.desire(trial)
    assert lab.said() == ["ack 101 v1", "ack 101 v2 awaits confirm"]
    lab.clocks.advance(30)
    await lab.runner.tick()
    assert lab.said() == ["nack not_confirmed 101 v2"]
    assert lab.held() == ["active 101 v1"]
    assert lab.heartbeat().services[0].state == "reverted"
    await lab.desire(trial)
    await lab.runner.converge()
    assert (lab.held(), lab.said()) == (["active 101 v1"], [])
    await lab.desire(lab.plane.service(three))
    assert lab.held() == ["active 101 v3"]


async def test_the_first_snapshot_that_is_not_confirmed_leaves_nothing(lab):
    await lab.desire(lab.plane.service(content(lab), confirm=30))
    lab.clocks.advance(30)
    await lab.runner.tick()
    assert lab.held() == []


async def test_two_trials_in_a_row_go_back_to_the_last_confirmed(lab):
    await lab.desire(lab.plane.service(content(lab)))
    await lab.desire(lab.plane.service(content(lab, 2), confirm=30))
    await lab.desire(lab.plane.service(content(lab, 3), confirm=30))
    lab.clocks.advance(30)
    await lab.runner.tick()
    assert lab.held() == ["active 101 v1"]


async def test_an_older_confirmation_of_the_same_digest_is_not_enough(lab):
    made = content(lab)
    await lab.desire(lab.plane.service(made, confirm=30))
    assert not await lab.runner.confirm(lab.plane.confirm(made, serial=0))
    assert not await lab.runner.confirm(lab.plane.confirm(content(lab, 2)))
    assert lab.runner.applier.on_trial()


async def test_a_trial_goes_on_across_a_restart_of_the_agent(lab):
    await lab.desire(lab.plane.service(content(lab)))
    await lab.desire(lab.plane.service(content(lab, 2), confirm=30))
    lab.clocks.advance(20)
    await lab.restart()
    assert lab.held() == ["active 101 v2"]
    lab.clocks.advance(9)
    await lab.runner.tick()
    assert lab.held() == ["active 101 v2"]
    lab.clocks.advance(1)
    await lab.runner.tick()
    assert lab.held() == ["active 101 v1"]


async def test_a_trial_ends_with_a_reboot(lab):
    await lab.desire(lab.plane.service(content(lab)))
    await lab.desire(lab.plane.service(content(lab, 2), confirm=30))
    lab.answers()
    await lab.restart(reboot=True)
    assert lab.held() == ["active 101 v1"]
    assert lab.said()[0] == "nack not_confirmed 101 v2"


async def test_a_probe_that_fails_ends_the_trial_at_once(lab):
    await lab.desire(lab.plane.service(content(lab)))
    lab.answers()
    lab.probe_answers["127.0.0.1:5432"] = "refused"
    await lab.desire(lab.plane.service(content(lab, 2), confirm=30, probes=("127.0.0.1:5432",)))
    assert lab.probed == [("web", "127.0.0.1:5432")]
    assert lab.said() == ["nack not_confirmed 101 v2"]
    assert lab.held() == ["active 101 v1"]


# Death and birth


async def test_a_restart_takes_over_what_the_kernel_holds_and_loads_nothing(lab):
    await lab.desire(lab.plane.service(content(lab)))
    first = lab.kernel.held()
    lab.kernel.load = None
    await lab.restart()
    assert lab.kernel.held() == first


async def test_a_death_between_intent_and_flip_applies_once(lab):
    await lab.desire(lab.plane.service(content(lab)))
    made = content(lab, 2)
    flip, lab.kernel.flip = lab.kernel.flip, lambda loaded: (_ for _ in ()).throw(SystemExit)
    with pytest.raises(SystemExit):
        await lab.desire(lab.plane.service(made))
    lab.kernel.flip = flip
    await lab.restart()
    assert lab.held() == ["active 101 v2"]


async def test_a_death_between_flip_and_book_is_seen_in_the_kernel(lab):
    await lab.desire(lab.plane.service(content(lab)))
    made = content(lab, 2)
    flip = lab.kernel.flip

    def dies(loaded):
        flip(loaded)
        raise SystemExit

    lab.kernel.flip = dies
    with pytest.raises(SystemExit):
        await lab.desire(lab.plane.service(made, confirm=30))
    lab.kernel.flip, lab.kernel.load = flip, None
    await lab.restart()
    assert lab.held() == ["active 101 v2"]
    assert lab.runner.applier.on_trial(), "the window runs although the agent died in it"


async def test_boot_without_control_plane(lab):
    await lab.desire(lab.plane.service(content(lab)))
    lab.broker.down = True
    lab.clocks.advance(100)
    await lab.restart(reboot=True)
    assert lab.held() == ["active 101 v1"]
    assert lab.kernel.held()[0].deadline_ns == lab.clocks.boot_ns + 500 * 10**9
    assert [b.path for b in lab.kernel.bindings()] == ["web"]


async def test_boot_after_the_lease_holds_what_on_expiry_says(lab):
    await lab.desire(lab.plane.service(content(lab, on_expiry="closed")))
    lab.clocks.advance(1000)
    await lab.restart(reboot=True)
    assert lab.kernel.judge("web", ALLOWED).reason == "expired_closed"


async def test_boot_with_a_clock_that_was_set_back_still_ends_the_lease(lab):
    await lab.desire(lab.plane.service(content(lab)))
    lab.clocks.advance(550)
    await lab.runner._persist_clock()
    lab.clocks.wall = WALL - 10_000.0
    await lab.restart(reboot=True)
    assert lab.kernel.held()[0].deadline_ns == lab.clocks.boot_ns + 50 * 10**9


async def test_a_cached_content_that_was_changed_on_disk_is_fetched_again(lab):
    made = content(lab)
    await lab.desire(lab.plane.service(made))
    lab.store.contents[made.digest] = lab.store.contents[made.digest][:-70] + b"x" * 70
    await lab.restart(reboot=True)
    assert lab.held() == ["active 101 v1"]


async def test_content_that_nobody_has_yet_is_asked_for_again(lab):
    made = content(lab)
    sealed = lab.plane.sealed.pop(made.digest)
    assert await lab.runner.receive(lab.plane.desired(lab.plane.service(made)))
    assert not await lab.runner.converge()
    assert (lab.held(), lab.said()) == ([], [])
    assert lab.heartbeat().services[0].state == "pending"
    lab.plane.sealed[made.digest] = sealed
    assert await lab.runner.converge()
    assert lab.said() == ["ack 101 v1"]


# Panic


async def test_panic_removes_all_at_once_and_lasts(lab):
    await lab.desire(lab.plane.service(content(lab)))
    lab.answers()
    remember.write_panic(lab.store, Panic(float(WALL), "locked out"))
    await lab.runner.tick()
    assert not lab.kernel.is_open
    assert lab.heartbeat().panicked
    assert lab.heartbeat().services[0].state == "panicked"
    await lab.desire(lab.plane.service(content(lab, 2)))
    await lab.runner.drift()
    assert "nack panicked" in lab.said()
    await lab.restart(reboot=True)
    assert not lab.kernel.is_open
    lab.store.delete(remember.PANIC)
    await lab.runner.tick()
    assert lab.held() == ["active 101 v2"]
    assert not lab.heartbeat().panicked


async def test_a_damaged_panic_file_is_a_panic(lab):
    lab.store.write(remember.PANIC, b"\xff")
    await lab.runner.tick()
    assert lab.heartbeat().panicked


async def test_good_that_the_kernel_lost_is_loaded_again_when_a_trial_fails(lab):
    await lab.desire(lab.plane.service(content(lab)))
    await lab.desire(lab.plane.service(content(lab, 2), confirm=30))
    lab.kernel.forget(0)
    lab.answers()
    lab.clocks.advance(30)
    await lab.runner.tick()
    assert lab.held() == ["active 101 v1"]
    assert lab.said() == ["nack not_confirmed 101 v2", "ack 101 v1"]


@pytest.mark.parametrize("seed", range(60))
async def test_after_any_troubles_the_kernel_holds_what_is_wanted(lab, seed):
    """Random manifests, faults, deaths, reboots and missing confirmations; then quiet."""
    rng, version, wanted = random.Random(seed), 0, {}
    for _ in range(25):
        action = rng.choice(
            ("post", "post", "fault", "restart", "reboot", "wait", "confirm", "drift", "drop")
        )
        if action == "post":
            version += 1
            number = rng.choice((101, 102, 103))
            made = content(lab, version, number, mode=rng.choice(("enforce", "observe")))
            wanted[number] = lab.plane.service(made, confirm=rng.choice((0, 0, 5)), lease=WALL + 2_000_000)
            await lab.desire(*wanted.values())
        elif action == "drop" and wanted:
            del wanted[rng.choice(list(wanted))]
            await lab.desire(*wanted.values())
        elif action == "fault":
            method = rng.choice(("load", "flip", "flip_back", "remove", "bind", "renew"))
            lab.kernel.faults[method] = Unavailable(method)
        elif action in ("restart", "reboot"):
            lab.kernel.faults.clear()
            await lab.restart(reboot=action == "reboot")
        elif action == "wait":
            lab.clocks.advance(rng.choice((1, 6)))
            with contextlib.suppress(Unavailable):
                await lab.runner.tick()
        elif action == "confirm":
            for holding in lab.runner.applier.on_trial():
                await lab.runner.confirm(lab.plane.confirm(lab.plane.known[holding.active.digest]))
        elif action == "drift":
            with contextlib.suppress(Unavailable):
                await lab.runner.drift()
    lab.kernel.faults.clear()
    lab.clocks.advance(6)
    await lab.runner.tick()
    await lab.runner.converge()
    await lab.runner.drift()
    book = lab.runner.applier.book.services
    held = {h.service_id: h.digest for h in lab.kernel.held() if h.role == "active"}
    for number, service in wanted.items():
        refused = book[number].refused
        if refused is None:
            assert held[number] == service.active.digest
        else:
            good = book[number].good
            assert (refused.digest, held.get(number)) == (service.active.digest, good and good.digest)
    assert set(held) <= set(wanted)
    assert set(book) == set(wanted)
