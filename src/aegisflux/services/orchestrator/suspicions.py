"""Which hosts are suspected, by a person or by an open finding. A suspicion lives until it is taken back, and
when its host is released. It takes nothing from a host: what that one does is not learned from, no more.
"""

from collections import defaultdict
from typing import Annotated

from msgspec import Meta, Struct

from aegisflux.domain.errors import NotFound
from aegisflux.runtime.again import again
from aegisflux.services.orchestrator.core import Core, Who, Words
from aegisflux.services.orchestrator.effects import Effect


class Suspicion(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`finding`: the one that says so, empty: you do; `suspicious` false: not any more."""

    suspicious: bool
    detail: Words = ""
    finding: Annotated[str, Meta(max_length=128, pattern=r"^[A-Za-z0-9._:-]*$(?!\n)")] = ""


class Suspicions:
    """Said, taken back, and told in words."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @again
    async def say(self, host: str, said: Suspicion, who: Who) -> Effect:
        """Keep it or take it back; raises NotFound for a host that was never enrolled."""
        async with self._core.store.change() as db:
            if await db.row("host", host) is None:
                raise NotFound(f"host {host} was never enrolled")
            if said.suspicious:
                now, name = self._core.clock.now(), who.principal.name
                await db.run("suspect", host, said.finding, said.detail, now, name)
            else:
                await db.run("trust", host, said.finding)
            word = "suspicious" if said.suspicious else "not suspicious"
            after = f"{word}, by finding {said.finding}" if said.finding else word
            await db.audit(who.did("host.suspicion", f"host/{host}", after=after, reason=said.detail))
        did = (f"marks host {host} as {after}",)
        return Effect(action="host.suspicion", object=f"host/{host}", did=did)

    async def words(self) -> dict[str, tuple[str, ...]]:
        """What is said of each suspected host."""
        found = defaultdict(list)
        for row in await self._core.store.rows("suspicions"):
            by = f"finding {row['finding']}" if row["finding"] else row["said_by"]
            found[row["host_id"]].append(f"{by}: {row['detail']}" if row["detail"] else by)
        return {host: tuple(said) for host, said in found.items()}
