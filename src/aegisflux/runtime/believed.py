"""Whether rows that decide something are as the audit log says, also while they are changed."""

from collections.abc import Callable, Mapping
from typing import Final, Literal

from aegisflux.domain.decided import plan_texts, rollout_texts
from aegisflux.ports.store import Queries, Row
from aegisflux.runtime.register import Believer, Texts

Kind = Literal["plan", "rollout"]
TEXTS: Final[Mapping[Kind, Callable[[Row], Texts]]] = {"plan": plan_texts, "rollout": rollout_texts}
"""By the name of the query that reads such a row by its number."""


async def doubt_of(believer: Believer, db: Queries, kind: Kind, row: Row) -> str:
    """Why a row is not believed, in words; empty: it is. One that was changed since it was read is none that
    somebody tampered with, and is not believed either."""
    texts_of = TEXTS[kind]

    async def again() -> Texts:
        fresh = await db.row(kind, row["id"])
        return texts_of(fresh) if fresh else {}

    return await believer.doubt_of(texts_of(row), again)
