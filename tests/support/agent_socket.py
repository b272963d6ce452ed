"""The socket of an agent of a lab, as its command line asks over it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aegisflux.agent.control import SOCKET, Control, ask
from aegisflux.agent.runner import Runner


@asynccontextmanager
async def listening(runner: Runner, folder: Path) -> AsyncIterator[Path]:
    """The path of a socket in this folder on which the agent answers meanwhile."""
    control = Control(runner, folder / SOCKET)
    await control.open()
    try:
        yield folder / SOCKET
    finally:
        await control.close()


async def asked(path: Path, **question: object) -> list[dict]:
    """Ask over the socket, and wait for all that is answered."""
    return await asyncio.to_thread(lambda: list(ask(path, question, 5)))
