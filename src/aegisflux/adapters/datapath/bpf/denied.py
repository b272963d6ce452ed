"""The kernel's records of denied flows, as domain values."""

from collections import deque
from collections.abc import Mapping
from typing import Final

from aegisflux.adapters.datapath.bpf.libbpf import Ring
from aegisflux.domain.net import Address, address_of, masked
from aegisflux.ports.datapath import DeniedFlow
from aegisflux.wire import layout as w
from aegisflux.wire.layout import Descriptor

KEPT: Final = 8192


class DeniedFlows:
    """A bounded queue between the ring buffer and its reader."""

    def __init__(self, map_fd: int) -> None:
        self._records: deque[bytes] = deque(maxlen=KEPT)
        self._ring = Ring(map_fd, self._take)
        self.fd = self._ring.fd
        self.lost = 0

    def _take(self, record: bytes) -> bool:
        self.lost += len(self._records) == KEPT
        self._records.append(record)
        return True

    def drain(self, limit: int, known: Mapping[int, Descriptor]) -> list[DeniedFlow]:
        """At most `limit`, oldest first."""
        self._ring.consume()
        count = min(limit, len(self._records))
        return [told(self._records.popleft(), known) for _ in range(count)]

    def close(self) -> None:
        self._ring.close()


def told(record: bytes, known: Mapping[int, Descriptor]) -> DeniedFlow:
    """One record; a generation that is not known any more leaves its digest empty."""
    (boot_ns, generation, slot, word, peer_raw, local_raw, peer_port, local_port, proto, has_ports, has_local,
     _hook, candidate, _packet) = w.DENIED.unpack_from(record)  # fmt: skip
    of = known.get(generation)
    peer = address_of(peer_raw)
    return DeniedFlow(
        boot_ns=boot_ns,
        slot=slot,
        service_id=of.service_id if of else 0,
        role="candidate" if candidate else "active",
        mode=of.mode if of else "enforce" if word & w.W_REFUSED else "observe",
        direction="ingress" if word & w.W_INGRESS else "egress",
        proto=proto,
        local=address_of(local_raw) if has_local else None,
        local_port=local_port if has_ports and local_port else None,
        peer=peer,
        peer_port=peer_port if has_ports else None,
        reason=reason_of(word),  # type: ignore[arg-type]
        rule=rule_of(word, peer, proto, local_port if word & w.W_INGRESS else peer_port),
        digest=of.digest if of else "",
    )


def reason_of(word: int) -> str:
    """A kept flow is an allowed one."""
    reason = w.REASONS[word & w.W_REASON]
    return "allow" if reason == "kept" else reason


def rule_of(word: int, peer: Address, proto: int, port: int) -> str | None:
    """The deciding entry, as `domain.verdict.rule_text` writes it."""
    if not word & w.W_MATCH:
        return None
    listed = "ingress" if word & w.W_INGRESS else "edges"
    name = "deny" if word & w.W_DENY else "allow_cidrs" if word & w.W_PEER else listed
    cidr = masked(peer.family, peer.value, word >> w.W_PLEN_SHIFT & 0xFF)
    named = {6: "tcp", 17: "udp"}.get(proto, "any")
    return f"{name} {cidr} {'any' if word & w.W_ANY else named}/{'*' if word & w.W_WILD else port}"
