"""What the store has, object by object, for a comparison with the audit log (`domain.agreement`)."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import zstandard

from aegisflux.domain import agreement
from aegisflux.domain.agreement import suspicion_text
from aegisflux.domain.definition import Definition
from aegisflux.domain.rights import (
    ENROLMENT_DIGITS,
    digest_of_body,
    enrolment_text,
    labels_text,
    plan_text,
    policy_text,
    said,
)
from aegisflux.ports.store import Queries, Row, Store
from aegisflux.runtime.again import again
from aegisflux.runtime.register import Register, token_of
from aegisflux.services.orchestrator.core import Who
from aegisflux.services.orchestrator.state import service_of
from aegisflux.wire.canonical import digest_of, unpacked
from aegisflux.wire.token import b64

PAGE = 200
CONTENTS = 16  # each has up to some megabytes


async def texts(store: Queries, register: Register) -> dict[str, str]:
    """The text of each object that gives a right, by its name in the audit log."""
    found = {name: text async for name, text in _tokens(store, register)}
    found |= {name: text async for name, text in _plans(store)}
    for row in await store.rows("hosts"):
        found[f"host/{row['host_id']}"] = f"{b64(row['public_key'] or b'')} {labels_text(row['labels'])}"
    for row in await store.rows("services"):
        found[f"service/{row['id']}"] = str(service_of(row).definition)
        if row["stable"] is not None:
            found[f"service/{row['id']}/stable"] = str(row["stable"])
        if row["promotions"]:
            found[f"service/{row['id']}/promotions"] = ",".join(map(str, row["promotions"]))
    for row in await store.rows("held_changes", None):
        text = str(Definition(row["name"], tuple(row["selectors"]), row["host_labels"]))
        found[f"service/{row['service_id']}/change"] = text
    found |= {name: text async for name, text in _contents(store)}
    for row in await store.rows("all_enroll_tokens"):
        used = f", used by {row['used_by']}" if row["used_by"] else ""
        text = enrolment_text(row["host_id"], row["labels"], row["expires_at"])
        found[f"enrolment/{row['hash'][:ENROLMENT_DIGITS]}"] = text + used
    for row in await store.rows("suspicions"):
        found[f"host/{row['host_id']}/suspicion/{row['finding']}"] = suspicion_text(row["detail"])
    for row in await store.rows("all_key_sets"):
        found[f"keys/{row['version']}"] = row["signing"]
    for row in await store.rows("all_rollouts"):
        found[f"rollout/{row['id']}"] = row["stage"]
    return found


async def _tokens(store: Queries, register: Register) -> AsyncIterator[tuple[str, str]]:
    for row in await store.rows("tokens"):
        if row["revoked_at"] is None:
            token = token_of(row)
            mark = "" if register.is_sealed(row) else ", and a MAC that this control plane did not make"
            yield f"token/{token.id}", said(token) + mark


async def _contents(store: Queries) -> AsyncIterator[tuple[str, str]]:
    """By their rules, not by the digest that stands beside them."""
    last = -1, 0
    while rows := await store.rows("all_contents", *last, CONTENTS):
        digests = await asyncio.to_thread(_digests_of, rows)
        for row, digest in zip(rows, digests, strict=True):
            text = digest if digest == row["digest"] else f"{digest} under the name {row['digest']}"
            yield f"service/{row['service_id']}/version/{row['version']}", text
        last = rows[-1]["service_id"], rows[-1]["version"]


def _digests_of(rows: Sequence[Row]) -> list[str]:
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
            digest = digest_of_body(row["body"])
            if digest != row["digest"]:
                digest = f"{digest} under the name {row['digest']}"
            yield f"plan/{row['id']}", plan_text(digest, row["approved_by"], row["accepted"])
            yield f"plan/{row['id']}/policy", policy_text(row["policy"])
        last = rows[-1]["id"]


@again
async def adopt(store: Store, register: Register) -> None:
    """Write into the log, once, what the store has and older lines do not say."""
    _, lines = await store.audit_log()
    log = agreement.said(line.entry for line in lines)
    found = list(agreement.untold(log, await texts(store, register)))
    if found:
        async with store.change() as db:
            for name, text in found:
                await db.audit(Who().did(agreement.ADOPT, name, after=text))
