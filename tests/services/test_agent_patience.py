"""How long an agent asks for a chunk: whoever is busy or hears nothing for a moment is not away."""

from types import SimpleNamespace

import msgspec
import pytest

from aegisflux.agent import contents
from aegisflux.agent.contents import Contents
from aegisflux.domain.errors import Busy, Refused, Unavailable, Unheard
from aegisflux.domain.manifest import ContentChunk

DIGEST = "sha256:" + "1" * 64
CHUNK = ContentChunk(3, b"abc")


class Bus:
    """Raises what it is given, one after the other, then answers."""

    def __init__(self, errors, connected=True):
        self._errors, self.connected, self.asked = iter(errors), connected, 0

    async def request(self, _subject, _payload, timeout):
        self.asked += 1
        if (error := next(self._errors, None)) is not None:
            raise error("text of the bus")
        return msgspec.msgpack.encode(CHUNK)


@pytest.fixture
def pauses(monkeypatch):
    taken = []

    async def sleep(seconds):
        taken.append(seconds)

    monkeypatch.setattr(contents.asyncio, "sleep", sleep)
    return taken


async def chunk(errors, **given):
    bus = Bus(errors, **given)
    parts = SimpleNamespace(bus=bus, host_id="web1")
    return await Contents(parts, SimpleNamespace())._chunk(DIGEST, 0), bus.asked


@pytest.mark.parametrize(
    ("errors", "pause"),
    [
        ([Unheard] * 79, (0.05, 0.2)),
        ([Busy] * 29, (0.5, 1.5)),
        ([Unavailable] * 3, (0.0, 0.0)),
    ],
)
async def test_it_asks_again(pauses, errors, pause):
    assert await chunk(errors) == (CHUNK, len(errors) + 1)
    assert all(pause[0] <= taken <= pause[1] for taken in pauses)


async def test_one_kind_does_not_count_for_another(pauses):
    assert (await chunk([Unavailable] * 3 + [Unheard] * 50 + [Busy] * 20))[0] == CHUNK
    assert len(pauses) == 73


@pytest.mark.parametrize(
    ("errors", "says"),
    [
        ([Unheard] * 80, "is away"),
        ([Busy] * 30, "is busy"),
        ([Unavailable] * 4, "does not answer"),
        ([Refused], "refuses"),
    ],
)
async def test_it_ends_without_a_text_of_the_bus(pauses, errors, says):
    with pytest.raises(Unavailable, match=says) as told:
        await chunk(errors)
    assert "text of the bus" not in str(told.value)


async def test_without_a_connection_it_ends_at_once(pauses):
    with pytest.raises(Unavailable):
        await chunk([Unheard], connected=False)
    assert pauses == []
