"""Many agents in one process: real runner, trust code, key and connection of each; a simulated datapath.

Reads lines `host token` from stdin up to an empty one, enrols, prints `ready` once all are connected, and
lives until stdin ends.
"""

import asyncio
import sys
import threading
import time
from contextlib import suppress

import uvloop

from aegisflux import __version__
from aegisflux.adapters.bus.nats import NatsBus, NatsOptions
from aegisflux.adapters.datapath.simulated import SimulatedDatapath
from aegisflux.agent.cgroups import FixedCgroups
from aegisflux.agent.enroll import enroll
from aegisflux.agent.identity import first_trust, read_identity, signer, verify
from aegisflux.agent.parts import AgentSettings, Parts, inline
from aegisflux.agent.runner import Runner
from aegisflux.agent.state import MemoryStore
from aegisflux.wire.natsjwt import Credentials

CONNECTS_AT_ONCE = 50


async def main() -> None:
    stores = [(host, _enrolled(host, token)) for host, token in _asked()]
    stop, room = asyncio.Event(), asyncio.Semaphore(CONNECTS_AT_ONCE)
    buses = [_bus(store) for _, store in stores]

    async def connected(bus: NatsBus) -> None:
        async with room:
            bus.open()
            await bus.ready(60)

    await asyncio.gather(*map(connected, buses))
    runners = [_runner(host, store, bus) for (host, store), bus in zip(stores, buses, strict=True)]
    tasks = [asyncio.create_task(runner.run(stop)) for runner in runners]
    print("ready", flush=True)
    threading.Thread(target=_until_the_end, args=(asyncio.get_running_loop(), stop), daemon=True).start()
    await asyncio.gather(*tasks)
    await asyncio.gather(*(bus.close() for bus in buses), return_exceptions=True)


def _asked() -> list[tuple[str, str]]:
    found = []
    while line := sys.stdin.readline().split():
        found.append((line[0], line[1]))
    return found


def _enrolled(host: str, token: str) -> MemoryStore:
    store = MemoryStore()
    enroll(token, host, store)
    return store


def _bus(store: MemoryStore) -> NatsBus:
    identity, seed = read_identity(store)
    return NatsBus(
        NatsOptions(
            urls=identity.nats_urls,
            credentials=Credentials(identity.user_jwt, seed),
            ca_pem=identity.ca_pem,
            trouble=_say,
        )
    )


def _runner(host: str, store: MemoryStore, bus: NatsBus) -> Runner:
    identity, seed = read_identity(store)

    async def no_probe(cgroup: str, target: str) -> str:
        return f"{target}: not from the simulated {cgroup}"

    parts = Parts(
        host_id=host,
        boot_id=host,
        version=__version__,
        bus=bus,
        datapath=SimulatedDatapath(lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)),
        store=store,
        cgroups=FixedCgroups({"many/app.service": 1}),
        sign=signer(seed),
        verify=verify,
        wall=time.time,
        blocking=inline,
        prober=no_probe,
        trim=lambda: None,
        log=lambda text: _say(f"{host}: {text}"),
        settings=AgentSettings(),
    )
    return Runner(parts, first_trust(identity))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _until_the_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with suppress(OSError):
        sys.stdin.read()
    loop.call_soon_threadsafe(stop.set)


if __name__ == "__main__":
    uvloop.run(main())
