"""What judged before this agent began and is selected no more: it judges on, or its end is told by path.

After an upgrade to another layout the programs of the former agent stay attached until each living cgroup
that they bind is bound here too. Those that are bound here are taken from them at once, so that an older
snapshot holds back nothing that a newer one allows.
"""

from collections.abc import Mapping
from typing import Final

from aegisflux.agent.binder import Binder
from aegisflux.agent.parts import Parts
from aegisflux.agent.troubles import Troubles
from aegisflux.domain.converge import Holding
from aegisflux.domain.manifest import HostManifest
from aegisflux.ports.datapath import Binding

SHOWN: Final = 8
MORE: Final = "former cgroups"


class Former:
    """`waits`: programs of a former layout judge on."""

    def __init__(
        self, parts: Parts, binder: Binder, troubles: Troubles, holdings: Mapping[int, Holding]
    ) -> None:
        self._parts, self._binder, self._troubles = parts, binder, troubles
        self._services = {holding.slot: number for number, holding in holdings.items()}
        self._told: set[str] = set()

    @property
    def waits(self) -> bool:
        return bool(self._told)

    async def settle(self, manifest: HostManifest) -> None:
        """All that was accepted judges here: take over what is bound here, and end the former programs when
        nothing is left to them."""
        datapath, blocking = self._parts.datapath, self._parts.blocking
        found = await blocking(datapath.former, True)
        wanted = {service.service_id for service in manifest.services if service.active is not None}
        left = [b for b in found if self._services.get(b.slot) in wanted and not self._binder.binds(b)]
        self._tell(left)
        if left:
            await blocking(datapath.hand_over, left)
        elif await blocking(datapath.retire):
            self._parts.log("upgrade: all that was accepted judges in the new layout; the old one is gone")

    def _tell(self, left: list[Binding]) -> None:
        texts = {}
        for binding in left[:SHOWN]:
            service = self._services[binding.slot]
            why = self._binder.why_not(service, binding.path)
            texts[f"former {binding.path}"] = (
                f"service {service}: {why}; programs of before the upgrade judge it until its lease ends"
            )
        if len(left) > SHOWN:
            texts[MORE] = (
                f"{len(left) - SHOWN} more cgroups are judged by programs of before the upgrade alone"
            )
        for about in self._told - texts.keys():
            self._troubles.end(about)
        for about, text in texts.items():
            self._troubles.begin(about, text)
        self._told = set(texts)
