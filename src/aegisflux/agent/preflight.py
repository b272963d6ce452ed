"""Would it cut what is alive? A snapshot is judged on the host's own live sockets and recent flows before it
comes into force. Every one of them counts as an initiation: a connection that breaks must be able to return.
"""

from collections.abc import Iterable
from typing import Final

from aegisflux.domain.address_class import address_class
from aegisflux.domain.flow import FailsafeRule, Flow, Host, Own
from aegisflux.domain.manifest import HostContent
from aegisflux.domain.net import PROTOCOL_NAMES
from aegisflux.domain.text import first_of
from aegisflux.domain.verdict_of_tables import judge_tables

MOST_NAMED: Final = 5


def would_cut(
    content: HostContent, flows: Iterable[Flow], own: Own, failsafe: tuple[FailsafeRule, ...]
) -> list[Flow]:
    """What it denies of these, each once; nothing when it only observes."""
    if content.mode != "enforce":
        return []
    host = Host(own.addresses, failsafe, prefixes=own.prefixes)
    found: dict[Flow, None] = {}
    for flow in flows:
        if flow.local or own.covers(flow.peer) or address_class(str(flow.peer)) == "loopback":
            continue
        verdict = judge_tables(content.tables, content, flow, host, content.digest)
        if verdict.action == "deny":
            found[flow] = None
    return list(found)


def refusal(cut: Iterable[Flow]) -> str:
    """The same as one line, each kind once."""
    kinds = list(dict.fromkeys(map(_words, cut)))
    return f"it would cut what is alive on this host: {first_of(kinds, MOST_NAMED, '; ')}"


def _words(flow: Flow) -> str:
    proto = PROTOCOL_NAMES.get(flow.proto, str(flow.proto))
    where = "to" if flow.direction == "egress" else "from"
    if flow.direction == "ingress":
        return f"{where} {flow.peer} on {proto}/{flow.port}"
    return f"{where} {flow.peer} {proto}/{flow.port}"
