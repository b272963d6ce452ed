"""What the store has, object by object, for a comparison with the audit log (`domain.agreement`)."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

import zstandard

from aegisflux.domain import agreement
from aegisflux.domain.agreement import health_text, rotation_text, suspicion_text
from aegisflux.domain.audit import Head, Line
from aegisflux.domain.decided import ADOPT, CHANGE, NONE, made_text, plan_texts, rollout_texts
from aegisflux.domain.definition import Definition
from aegisflux.domain.rights import ENROLMENT_DIGITS, enrolment_text, labels_text, policy_text, said
from aegisflux.ports.store import Queries, Row, Store
from aegisflux.runtime.again import again
from aegisflux.runtime.register import Register, token_of
from aegisflux.services.orchestrator import posted, state
from aegisflux.services.orchestrator.core import Who
from aegisflux.services.orchestrator.state import open_text, service_of, withheld_text
from aegisflux.wire.canonical import digest_of, unpacked
from aegisflux.wire.token import b64

PAGE = 200
CONTENTS = 16  # each has up to some megabytes
UNSEALED = ", and a MAC that this control plane did not make"


async def texts(store: Queries, register: Register, *, sealed: bool = True) -> dict[str, str]:
    """The text of each object that gives a right, by its name in the audit log. `sealed`: rows have MACs, and
    where one has not that belongs to its text."""
    found = {name: text async for name, text in _tokens(store, register)}
    found |= {name: text async for name, text in _plans(store)}
    found |= await _hosts(store)
    found |= await _services(store)
    found |= {name: text async for name, text in _contents(store, register if sealed else None)}
    if sealed:
        found |= {name: text async for name, text in _had(store, register)}
    found |= await _withheld(store)
    for row in await store.rows("all_key_sets"):
        found[f"keys/{row['version']}"] = row["signing"]
    for row in await store.rows("rotation"):
        found["keys/rotation"] = rotation_text(row["phase"], row["old_key"], row["new_key"])
    for row in await store.rows("all_rollouts"):
        found |= rollout_texts(row)
    for row in await store.rows("all_rollout_steps"):
        found[f"rollout/{row['rollout']}/steps"] = str(row["steps"])
    return found


async def disagreements(store: Store, register: Register) -> tuple[Head, Sequence[Line], list[str]]:
    """The audit log, and where the store is not as it says. What changed while the store was read agrees with
    the log of before or of after."""
    head, lines = await store.audit_log()
    has = await texts(store, register)
    found = list(agreement.differences(agreement.said(lines), has))
    if found:
        _, later = await store.audit_log()
        still = {text.partition(": ")[0] for text in agreement.differences(agreement.said(later), has)}
        found = [text for text in found if text.partition(": ")[0] in still]
    return head, lines, found


async def _hosts(store: Queries) -> dict[str, str]:
    found = {}
    for row in await store.rows("hosts"):
        found[f"host/{row['host_id']}"] = f"{b64(row['public_key'] or b'')} {labels_text(row['labels'])}"
    for row in await store.rows("all_enroll_tokens"):
        used = f", used by {row['used_by']}" if row["used_by"] else ""
        text = enrolment_text(row["host_id"], row["labels"], row["expires_at"])
        found[f"enrolment/{row['hash'][:ENROLMENT_DIGITS]}"] = text + used
    for row in await store.rows("suspicions"):
        found[f"host/{row['host_id']}/suspicion/{row['finding']}"] = suspicion_text(row["detail"])
    return found


async def _services(store: Queries) -> dict[str, str]:
    found = {}
    for row in await store.rows("services"):
        name = f"service/{row['id']}"
        found[name] = str(service_of(row).definition)
        said = {
            "stable": str(row["stable"] or ""),
            "promotions": ",".join(map(str, row["promotions"])),
            "latest": str(row["latest"] or ""),
            "open": open_text(row["open_version"], row["open_until"]).replace(NONE, ""),
        }
        found |= {f"{name}/{part}": text for part, text in said.items() if text}
    for row in await store.rows("all_health"):
        text = health_text(row["healthy"], row["detail"])
        found[f"service/{row['service_id']}/health/{row['host_id']}"] = text
    for row in await store.rows("held_changes", None):
        name = f"service/{row['service_id']}/change"
        found[name] = str(Definition(row["name"], tuple(row["selectors"]), row["host_labels"]))
        found[f"{name}/made"] = made_text(row, CHANGE)
    return found


async def _tokens(store: Queries, register: Register) -> AsyncIterator[tuple[str, str]]:
    for row in await store.rows("tokens"):
        if row["revoked_at"] is None:
            token = token_of(row)
            yield f"token/{token.id}", said(token) + ("" if register.is_sealed(row) else UNSEALED)


async def _withheld(store: Queries) -> dict[str, str]:
    hosts = defaultdict[int, list[str]](list)
    for row in await store.rows("all_withheld"):
        hosts[row["service_id"]].append(row["host_id"])
    return {f"service/{number}/withheld": withheld_text(names) for number, names in hosts.items()}


async def _had(store: Queries, register: Register) -> AsyncIterator[tuple[str, str]]:
    """Rows of what hosts had that are not ours: no line of the log says these, their MAC does."""
    last = -1, ""
    while rows := await store.rows("all_had", *last, PAGE):
        for row in rows:
            if not state.had_is_believed(register, row):
                name = f"service/{row['service_id']}/had/{row['host_id']}"
                yield name, f"{list(row['versions'])}{UNSEALED}"
        last = rows[-1]["service_id"], rows[-1]["host_id"]


async def _contents(store: Queries, register: Register | None) -> AsyncIterator[tuple[str, str]]:
    """By their rules, not by the digest that stands beside them."""
    last = -1, 0
    while rows := await store.rows("all_contents", *last, CONTENTS):
        digests = await asyncio.to_thread(digests_of, rows)
        for row, digest in zip(rows, digests, strict=True):
            text = digest if digest == row["digest"] else f"{digest} under the name {row['digest']}"
            ours = register is None or posted.is_as_posted(register, row)
            yield posted.name_of(row), text if ours else text + UNSEALED
        last = rows[-1]["service_id"], rows[-1]["version"]


def digests_of(rows: Sequence[Row]) -> list[str]:
    """The digests of the rules of contents."""
    return [_digest_of(row["snapshot"]) for row in rows]


def _digest_of(stored: bytes) -> str:
    try:
        return digest_of(unpacked(stored))
    except (zstandard.ZstdError, MemoryError):
        return "what cannot be decompressed"


async def _plans(store: Queries) -> AsyncIterator[tuple[str, str]]:
    """By their contents: a digest that stands beside another plan is none of it."""
    last = 0
    while rows := await store.rows("all_plans", last, PAGE):
        for row in rows:
            for name, text in plan_texts(row).items():
                yield name, text
            yield f"plan/{row['id']}/policy", policy_text(row["policy"])
        last = rows[-1]["id"]


@again
async def adopt(store: Store, register: Register) -> None:
    """Write into the log, once, what the store has and older lines do not say."""
    _, lines = await store.audit_log()
    log = agreement.said(lines)
    found = list(agreement.untold(log, await texts(store, register, sealed=False)))
    if found:
        async with store.change() as db:
            for name, text in found:
                await db.audit(Who().did(ADOPT, name, after=text))
