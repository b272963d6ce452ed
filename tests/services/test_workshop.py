"""Workers that many tokens share: a token waits for itself, what undoes waits for nobody's snapshots, panic
for nothing at all."""

import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support.engines import eventually

from aegisflux.domain.errors import Busy, Refused
from aegisflux.domain.snapshot import MapSnapshot
from aegisflux.runtime import asking
from aegisflux.services.orchestrator import prepare
from aegisflux.services.orchestrator.prepare import EACH, Workshop
from aegisflux.wire.canonical import canonical_json, digest_of

BODY = canonical_json(MapSnapshot(version=1, service_id=1, ttl_seconds=60))
DIGEST = digest_of(BODY)


def held(pipe):
    """What a worker does for ever: nobody writes into the pipe."""
    Path(f"{pipe}.begun").touch()
    return Path(pipe).read_text()


class Held:
    """A workshop whose workers are given work that never ends."""

    def __init__(self, folder: Path) -> None:
        self.workshop, self.pipe = Workshop(1), folder / "pipe"
        self.tasks: list[asyncio.Task[str]] = []
        os.mkfifo(self.pipe)

    async def hold(self, crew, token, count):
        async def one():
            asking.begin(token)
            return await crew.call(held, str(self.pipe))

        self.tasks += [asyncio.create_task(one()) for _ in range(count)]
        await asyncio.sleep(0)


@asynccontextmanager
async def working(folder):
    place = Held(folder)
    await place.workshop.warm()
    stored = (await place.workshop.prepare(BODY)).snapshot
    try:
        yield place, stored
    finally:
        place.pipe.unlink()
        for crew in place.workshop._crews():
            for process in (crew._pool._processes or {}).values():
                process.kill()
        place.workshop.close()
        for task in place.tasks:
            task.cancel()
        await asyncio.gather(*place.tasks, return_exceptions=True)


FREE = {  # what is done while workers are held
    "a rollback, snapshots": (("_usual",), lambda shop, stored: shop.copy(stored, DIGEST, 2)),
    "panic, snapshots": (("_usual",), lambda shop, stored: shop.observing(stored, 2)),
    "panic, rollbacks too": (("_usual", "_undoing"), lambda shop, stored: shop.observing(stored, 2)),
    "a snapshot, tries of panic": (("_undoing",), lambda shop, stored: shop.prepare(BODY)),
    "panic, tries of it": (("_undoing",), lambda shop, stored: shop.observing(stored, 2)),
}


@pytest.mark.parametrize("what", FREE)
async def test_it_does_not_wait_for_what_others_do(tmp_path, what):
    crews, done = FREE[what]
    async with working(tmp_path) as (place, stored):
        for crew in crews:
            await place.hold(getattr(place.workshop, crew), "the same", EACH)
        asking.begin("the same")
        async with asyncio.timeout(20):
            found = await done(place.workshop, stored)
        assert (found.service_id, found.version) in ((1, 2), (1, 1))


async def test_a_try_of_panic_has_the_worker_of_what_undoes(tmp_path):
    async with working(tmp_path) as (place, stored):
        await place.hold(place.workshop._panic, "a", 1)
        async with asyncio.timeout(20):
            assert (await place.workshop.observing(stored, 2, dry_run=True)).mode == "observe"


async def test_tokens_take_turns_and_one_has_no_more_than_its_share_of_the_queue(tmp_path):
    order = []

    async def one(crew, token):
        asking.begin(token)
        await crew.call(os.getpid)
        order.append(token)

    async with working(tmp_path) as (place, _):
        crew = place.workshop._undoing
        tasks = [asyncio.create_task(one(crew, "crowd")) for _ in range(EACH + 3)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(one(crew, "one")))
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert order.index("one") <= 2
        assert sum(isinstance(each, Busy) for each in found) == 2
        assert len(order) == EACH + 2


async def test_a_worker_that_works_for_nobody_any_more_is_not_given_more(tmp_path):
    async with working(tmp_path) as (place, _):
        crew = place.workshop._undoing
        await place.hold(crew, "a", 1)
        await eventually(Path(f"{place.pipe}.begun").exists)
        place.tasks[0].cancel()
        await asyncio.gather(*place.tasks, return_exceptions=True)
        waiting = asyncio.create_task(crew.call(os.getpid))
        await asyncio.sleep(0)
        assert crew._lane.waiting == 1
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_worker_that_was_killed_is_made_again_and_keeps_no_place(tmp_path):
    async with working(tmp_path) as (place, stored):
        for process in place.workshop._undoing._pool._processes.values():
            process.kill()
        assert (await place.workshop.copy(stored, DIGEST, 3)).version == 3
        await eventually(lambda: not place.workshop._undoing._lane._used)


def test_what_a_worker_does_first_is_to_give_way_to_what_undoes():
    crews = Workshop(2)
    assert crews._usual._nice > crews._undoing._nice == crews._panic._nice == 0
    assert prepare.EACH < prepare.IN_ALL


async def test_what_stands_behind_another_digest_is_not_brought_back(tmp_path):
    async with working(tmp_path) as (place, stored):
        with pytest.raises(Refused, match="not the one of sha256:0"):
            await place.workshop.copy(stored, "sha256:0", 2)
