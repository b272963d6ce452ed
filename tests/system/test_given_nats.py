"""A real NATS server that somebody configured otherwise than ours: what it lets happen is said."""

from types import SimpleNamespace

import pytest

from aegisflux import bootstrap
from aegisflux.adapters.bus.accounts import pusher
from aegisflux.adapters.engines.nats import NatsEngine
from aegisflux.runtime.supervise import Process
from support.engines import NatsLab

pytestmark = [pytest.mark.engines, pytest.mark.asyncio]


class Otherwise(NatsEngine):
    """Our server with lines of somebody else."""

    changes: dict[str, str] = {}  # noqa: RUF012 - each test has a class of its own

    def _text(self) -> str:
        text = NatsEngine._text(self)
        for ours, theirs in self.changes.items():
            assert ours in text
            text = text.replace(ours, theirs)
        return text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({', min_version: "1.3"': ""}, ["TLS 1.2"]),
        ({f"max_pending: {16 << 20}\n": ""}, ["max_pending: expected at most 16777216, got 67108864"]),
        ({'write_deadline: "5s"\n': ""}, ["write_deadline: expected at most 5 s, got 10 s"]),
        ({'ping_interval: "10s"\nping_max: 2\n': ""}, ["expected at most 30 s, got 360 s"]),
    ],
)  # fmt: skip
async def test_what_a_real_server_says_of_itself(tmp_path, changes, said):
    lab = NatsLab.make(tmp_path)
    kind = type("Changed", (Otherwise,), {"changes": changes})
    fields = {name: getattr(lab.engine, name) for name in NatsEngine.__dataclass_fields__}
    lab.engine = kind(**fields)
    lab.process = Process(lab.engine.child(), tmp_path / "run")
    await lab.process.start()
    try:
        async with lab.system() as system:
            for jwt in lab.accounts.account_jwts().values():
                await pusher(system)(jwt)
            core = SimpleNamespace(bus_remarks=("of before",))
            await bootstrap._compared([lab.engine.url], system, core)()
    finally:
        await lab.process.stop()
    assert len(core.bus_remarks) == len(said)
    assert all(part in text for part, text in zip(said, core.bus_remarks, strict=True))
