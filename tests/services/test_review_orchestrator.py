"""What a sceptical reader found in the orchestrator: each a test of its own."""

import msgspec
import pytest
import pytest_asyncio
from tests.support.control import WHO, body, running_plane
from tests.support.engines import eventually

from aegisflux.domain.errors import Invalid, NotFound, Unavailable
from aegisflux.domain.manifest import HostManifest
from aegisflux.wire import envelope, subjects

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory):
    async with running_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


async def last_serial(plane, host):
    """The serial of the manifest that lies on the bus."""
    held = await plane.bus.last(subjects.desired(host))
    sealed = envelope.decode_manifest_message(held.payload, 1 << 20)
    return msgspec.msgpack.decode(sealed.manifest.payload, type=HostManifest).serial


async def test_a_compare_never_puts_an_older_manifest_over_a_newer_one(plane, monkeypatch):
    agent = await plane.agent("compare-1")
    await plane.orchestrator.snapshots.post(body(301, 1), ["compare-1"], "", WHO)
    await eventually(lambda: 301 in agent.in_force)
    relay, looked = plane.orchestrator.relay, []

    async def slow(rows):
        """While the compare looks, a newer manifest is stored and published."""
        if not looked:
            looked.append(True)
            before = await last_serial(plane, "compare-1")
            await plane.orchestrator.snapshots.post(body(301, 2), ["compare-1"], "", WHO)

            async def newer():
                return await last_serial(plane, "compare-1") > before

            await eventually(newer)
        return [row["host_id"] != "compare-1" for row in rows]

    monkeypatch.setattr(relay, "_held", slow)
    await relay.compare()
    row = await plane.store.row("host", "compare-1")
    assert await last_serial(plane, "compare-1") == row["serial"]


@pytest.mark.parametrize("text", ["a\0", "a\nb", "a\x7f"])
async def test_text_that_cannot_be_stored_is_refused_by_its_path(plane, text):
    parts = plane.orchestrator
    for labels in ({text: "x"}, {"x": text}):
        with pytest.raises(Invalid, match="labels"):
            await parts.hosts.token(labels, None, 60, WHO)
        with pytest.raises(Invalid, match="host_labels"):
            await parts.registry.put(302, "text", [], labels, WHO)
    for call in (
        parts.hosts.one(text),
        parts.hosts.release(text, WHO),
        parts.hosts.relabel(text, {}, WHO),
        parts.access.revoke(text, WHO),
    ):
        with pytest.raises(NotFound):
            await call


@pytest.mark.parametrize(
    "selector", ["cgroup:/", "cgroup:", "cgroup:../../x", "cgroup:a//b", "unit:a/b", "pod:x"]
)
async def test_a_selector_that_no_host_takes_is_refused_by_its_path(plane, selector):
    with pytest.raises(Invalid, match=r"selectors\[1\]"):
        await plane.orchestrator.registry.put(303, "selected", ["unit:fine", selector], {}, WHO)


async def test_a_release_whose_revocation_fails_can_be_tried_again(plane, monkeypatch):
    await plane.enroll("release-1")
    accounts = plane.orchestrator.core.accounts

    async def failing(_host, _public, _now):
        raise Unavailable("the bus is away")

    with monkeypatch.context() as patched:
        patched.setattr(accounts, "revoke_agent", failing)
        with pytest.raises(Unavailable):
            await plane.orchestrator.hosts.release("release-1", WHO)
    assert (await plane.orchestrator.hosts.one("release-1")).host_id == "release-1"
    await plane.orchestrator.hosts.release("release-1", WHO)
    with pytest.raises(NotFound):
        await plane.orchestrator.hosts.one("release-1")
