"""Once, at the first start of a version that knows them: MACs for rows of before there were any.

A content gets one where its rules are those of its line in the audit log and its payload has the signature of
a key that the root signed, then or now; what a host had is taken as it is. What is older and has no MAC by
then is never believed later.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from aegisflux.domain import agreement, seals
from aegisflux.domain.decided import ADOPT
from aegisflux.domain.manifest import KeySet
from aegisflux.domain.rights import ROWS
from aegisflux.domain.trust import NotOurs
from aegisflux.ports.store import Row
from aegisflux.runtime.again import again
from aegisflux.services.orchestrator import posted
from aegisflux.services.orchestrator.agreed import CONTENTS, PAGE, adopt, digests_of
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.keys import verified
from aegisflux.wire import envelope
from aegisflux.wire.envelope import Envelope

Versions = dict[str, set[str]]
Keys = dict[str, bytes]
Sealed = list[tuple[int, int, bytes, bytes]]


@again
async def seal_rows(core: Core) -> None:
    """See the module. Nothing is sealed while the log is not the one that was followed."""
    register = core.register
    if not register.rights.sealed_rows:
        await register.follow()
    if register.rights.sealed_rows or register.trouble:
        return
    await adopt(core.store, register)
    _, lines = await core.store.audit_log()
    contents = await _contents(core, agreement.said(lines).versions)
    had = await _had(core)
    async with core.store.change() as db:
        if contents:
            await db.run("seal_contents", *map(list, zip(*contents, strict=True)))
        if had:
            await db.run("seal_had", *map(list, zip(*had, strict=True)))
        await db.audit(Who().did(ADOPT, ROWS, after=f"{len(contents)} contents, what {len(had)} hosts had"))
    await register.follow()


async def _contents(core: Core, versions: Versions) -> Sealed:
    found: Sealed = []
    keys, last = await _public_keys(core), (-1, 0)
    while rows := await core.store.rows("all_contents", *last, CONTENTS):
        fresh = [row for row in rows if row["mac"] is None]
        for row in await asyncio.to_thread(_good, fresh, versions, keys):
            digest = seals.payload_digest(row["payload"])
            mac = core.register.seal("content", dict(row) | {"payload_sha256": digest})
            found.append((row["service_id"], row["version"], mac, digest))
        last = rows[-1]["service_id"], rows[-1]["version"]
    return found


def _good(rows: Sequence[Row], versions: Versions, keys: Keys) -> list[Row]:
    found = []
    for row, digest in zip(rows, digests_of(rows), strict=True):
        signed = envelope.pae(envelope.CONTENT, row["payload"])
        key = keys.get(row["key_id"], b"")
        known = digest == row["digest"] and digest in versions.get(posted.name_of(row), ())
        if known and verified(key, signed, row["signature"]):
            found.append(row)
    return found


async def _public_keys(core: Core) -> Keys:
    """All keys that ever signed, as the root signed them."""
    found: Keys = {}
    for row in await core.store.rows("all_key_sets"):
        try:
            sealed = msgspec.msgpack.decode(row["envelope"], type=Envelope)
            stated = envelope.opened(sealed, envelope.KEY_SET)
            if any(verified(core.keys.root_public, stated.signed_bytes, sig) for _, sig in stated.signatures):
                keys = msgspec.msgpack.decode(sealed.payload, type=KeySet).keys
                found |= {key.id: key.public for key in keys}
        except (msgspec.DecodeError, NotOurs):
            continue
    return found


async def _had(core: Core) -> list[tuple[int, str, bytes]]:
    found, last = [], (-1, "")
    while rows := await core.store.rows("all_had", *last, PAGE):
        fresh = (row for row in rows if row["mac"] is None)
        found += [(row["service_id"], row["host_id"], core.register.seal("had", row)) for row in fresh]
        last = rows[-1]["service_id"], rows[-1]["host_id"]
    return found
