"""A database of before, put back below a control plane: nothing that ended lives again, the operator sees it,
and hosts take manifests again once it is accepted. On a real PostgreSQL and NATS."""

import asyncpg
import httpx
import msgspec
import pytest
import pytest_asyncio
from tests.support.backups import Backup
from tests.support.control import WHO, body, core_of, running_plane
from tests.support.engines import eventually

from aegisflux.adapters.secrets.file import FileSecrets
from aegisflux.domain import agreement
from aegisflux.domain.errors import Conflict, Forbidden, Unavailable
from aegisflux.domain.manifest import KeySet
from aegisflux.runtime.health import Degraded
from aegisflux.runtime.register import MARK, Register, reaches
from aegisflux.services.orchestrator.acceptance import SERIAL_JUMP, Acceptance
from aegisflux.services.orchestrator.api import application
from aegisflux.services.orchestrator.app import Orchestrator
from aegisflux.services.orchestrator.rotation import RotateRequest
from aegisflux.services.orchestrator.standing import unkept
from aegisflux.wire import envelope, subjects
from aegisflux.wire.token import RENEW_PATH, RenewRequest, b64, renewal_bytes

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
SERVICE = 7


class Known:
    """The control plane, and what there was before its database was exchanged."""

    def __init__(self, plane, owner):
        self.plane, self.owner = plane, owner
        self.secrets = FileSecrets(plane.lab.directory / "secrets")

    @property
    def core(self):
        return self.plane.orchestrator

    async def posted(self):
        """One more change of h1, and its manifest there."""
        version = len(self.h1.manifests) + 1
        serial = self.h1.serial
        await self.core.snapshots.post(body(SERVICE, version), ["h1"], "", WHO)
        await eventually(lambda: self.h1.serial > serial, 40)
        await self.h1.beat()

    async def rotated(self):
        await self.core.rotation.rotate(RotateRequest(), WHO)

        async def over():
            await self.h1.beat()
            return (await self.core.rotation.state()).phase == "none"

        await eventually(over, 30)

    async def restarted(self):
        """As a new process has it."""
        await self.core.close()
        system = await self.plane.stack.enter_async_context(self.plane.lab.system())
        core = core_of(self.plane.lab, self.plane.store, self.plane.bus, system)
        self.plane.orchestrator = Orchestrator(core)
        await self.core.start()

    async def renewed(self, agent):
        """The status of a renewal over HTTP, with the key of its enrolment."""
        proof = b64(agent.key.sign(renewal_bytes(agent.host)).signature)
        transport = httpx.ASGITransport(application(self.core))
        async with httpx.AsyncClient(transport=transport, base_url="http://plane") as client:
            content = msgspec.json.encode(RenewRequest(agent.host, proof))
            headers = {"Content-Type": "application/json"}
            return (await client.post(RENEW_PATH, content=content, headers=headers)).status_code

    def accepts(self):
        return Acceptance(self.plane.store, self.secrets, self.plane.lab.accounts.revoke)

    async def verified(self):
        """As `aegisflux audit verify` has it."""
        mark = Register(self.plane.store, self.secrets).read()
        head, lines = await self.plane.store.audit_log()
        return [reaches(mark, head, lines), *await unkept(self.plane.store, mark)]

    async def key_set(self):
        """The version of the key set that lies on the bus beside the manifest of h1."""
        last = await self.plane.bus.last(subjects.desired("h1"))
        sealed = envelope.decode_manifest_message(last.payload, 1 << 20)
        return msgspec.msgpack.decode(sealed.keys.payload, type=KeySet)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def known(tmp_path_factory):
    async with running_plane(tmp_path_factory.mktemp("older")) as plane:
        owner = await asyncpg.connect(plane.dsn)
        found = Known(plane, owner)
        try:
            found.h1, found.h2 = await plane.agent("h1"), await plane.agent("h2")
            await found.core.access.seal()
            found.revoked = await found.core.access.issue("ended", "admin", None, WHO)
            await found.posted()
            backup = await Backup.taken(owner)
            found.old_key = found.core.core.keys.signing
            await found.core.hosts.release("h2", WHO)
            await found.core.access.revoke(found.revoked.id, WHO, force=True)
            await found.rotated()
            await found.posted()
            await found.core.close()  # a clean stop writes the mark
            found.last = (await plane.store.audit_log())[0].seq
            found.serial, found.keys = found.h1.serial, found.core.core.keys.version
            await backup.restore()
            await found.restarted()
            yield found
        finally:
            await owner.close()


async def test_a_clean_stop_left_the_mark_at_the_last_line(known):
    assert Register(known.plane.store, known.secrets).read().seq == known.last


async def test_a_host_that_was_released_stays_out(known):
    assert await known.renewed(known.h2) == 403
    with pytest.raises(Forbidden):
        await known.core.credentials._key("h2")

    async def gone():
        return [host.host_id for host in await known.core.hosts.all()] == ["h1"]

    await eventually(gone, 40)
    _, lines = await known.plane.store.audit_log()
    (line,) = [line.entry for line in lines if line.entry.action == "host.release"]
    assert line.object == "host/h2"
    assert "released before" in line.reason
    assert await known.renewed(known.h1) == 200


async def test_readyz_keys_and_hosts_say_that_the_database_is_older(known):
    with pytest.raises(Degraded, match=f"line {known.last} was there before.*audit accept"):
        await known.core.standing.said()
    state = await known.core.rotation.state()
    assert f"version {known.keys} was there before" in state.held
    with pytest.raises(Conflict, match="audit accept"):
        await known.core.rotation.rotate(RotateRequest(), WHO)

    async def ahead():
        await known.h1.beat()
        (trouble, *_) = [*(await known.core.hosts.one("h1")).troubles, ""]
        return trouble.startswith("ahead of the control plane")

    await eventually(ahead, 40)


async def test_the_key_of_before_the_rotation_signs_nothing(known):
    assert known.secrets.read(f"snapshot-key-{known.old_key}") is None
    with pytest.raises(Unavailable, match="nothing is signed"):
        await known.core.snapshots.post(body(SERVICE, 50), ["h1"], "", WHO)


async def test_verify_names_all_that_is_older(known):
    cut, *others = await known.verified()
    assert f"line {known.last} was there before" in cut
    named = [text.partition(": ")[0] for text in others]
    assert named[:2] == ["keys/1", "manifests"]
    assert f"token/{known.revoked.id}" in named


async def test_a_dry_run_says_what_accepting_means_and_changes_nothing(known):
    before = known.secrets.read(MARK), (await known.plane.store.audit_log())[0]
    found = await known.accepts().accept(int(known.core.core.clock.now()), dry_run=True)
    assert f"token/{known.revoked.id}: ended, admin" in found.ended
    assert found.believed == ()
    assert (known.secrets.read(MARK), (await known.plane.store.audit_log())[0]) == before


async def test_after_it_is_accepted_hosts_take_manifests_and_what_ended_has_ended(known):
    core, store = known.core.core, known.plane.store
    await known.accepts().accept(int(core.clock.now()))
    await eventually(lambda: core.register.rights.keys > known.keys and not core.keys.held, 40)
    await eventually(lambda: known.h1.serial > known.serial + SERIAL_JUMP, 40)

    async def newer():
        found = await known.key_set()
        return found.version > known.keys and known.old_key not in {key.id for key in found.keys}

    await eventually(newer, 40)
    await known.posted()
    assert (await known.core.hosts.one("h1")).troubles == ()
    assert await known.core.access.principal(known.revoked.token) is None
    assert await known.renewed(known.h2) == 403
    assert "followed" in await known.core.standing.said()
    assert await known.verified() == [""]
    _, lines = await store.audit_log()
    has = await known_texts(known)
    assert list(agreement.differences(agreement.said(lines), has)) == []


async def known_texts(known):
    from aegisflux.services.orchestrator.agreed import texts

    return await texts(known.plane.store, known.core.access.register)


async def test_a_host_that_an_admin_enrols_again_is_in(known):
    """With the same key, as an agent keeps it."""
    from tests.support.control import request_of

    token = await known.core.hosts.token({}, None, 600, WHO)
    await known.core.hosts.enroll(request_of(token.token, "h2", known.h2.key), WHO)
    assert await known.renewed(known.h2) == 200
    await eventually(lambda: _serial(known, "h2"))


async def _serial(known, host):
    found = await known.plane.bus.last(subjects.desired(host))
    sealed = envelope.decode_manifest_message(found.payload, 1 << 20) if found else None
    return sealed is not None and (await known.core.hosts.one(host)).serial > SERIAL_JUMP


async def test_a_head_that_is_not_ours_is_said(known):
    await known.owner.execute("update audit_head set seq = 1")
    await known.core.core.register.follow()
    with pytest.raises(Degraded, match="every change is refused"):
        await known.core.standing.said()
