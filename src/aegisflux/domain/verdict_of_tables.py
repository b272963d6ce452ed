"""A verdict from compiled tables: the simulated datapath and `agent why` judge by it.

It shares the failsafe and the order of reasons with `domain.verdict`, and nothing of its matching.
"""

from typing import Protocol

from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.snapshot import Established, Expiry, Mode
from aegisflux.domain.tables import EGRESS, INGRESS, Match, Tables, find
from aegisflux.domain.verdict import Decision, Verdict, failsafe


class Settings(Protocol):
    """How the tables are to be used."""

    @property
    def mode(self) -> Mode: ...
    @property
    def on_expiry(self) -> Expiry: ...
    @property
    def established(self) -> Established: ...


def judge_tables(
    tables: Tables, settings: Settings, flow: Flow, host: Host, digest: str | None = None
) -> Verdict:
    """The verdict that these tables give to an initiation."""
    action, reason, rule, kept = _decide(tables, settings, flow, host)
    return Verdict(action, reason, rule, digest, settings.mode, kept)


def _decide(tables: Tables, settings: Settings, flow: Flow, host: Host) -> Decision:
    saved = failsafe(flow, host)
    if saved is not None:
        return "allow", "failsafe", saved, False
    if host.expired:
        return (
            ("deny", "expired_closed", None, False)
            if settings.on_expiry == "closed"
            else ("allow", "expired_open", None, False)
        )
    if flow.malformed:
        return "deny", "malformed", None, False
    direction = EGRESS if flow.direction == "egress" else INGRESS
    match = find(tables, direction, flow.proto, flow.peer, flow.port)
    if match is not None:
        text = match_text(match, flow)
        return ("deny", "deny", text, False) if match.deny else ("allow", "allow", text, False)
    if flow.direction == "ingress" and not tables.ingress:
        return "allow", "unrestricted", None, False
    if flow.live and settings.established == "keep":
        return "allow", "allow", None, True
    return "deny", "no_match", None, False


def match_text(match: Match, flow: Flow) -> str:
    """The rule's name, as `verdict.rule_text` writes it."""
    name = (
        "deny"
        if match.deny
        else "allow_cidrs"
        if match.peer
        else "edges"
        if flow.direction == "egress"
        else "ingress"
    )
    proto = "any" if match.any_proto else {6: "tcp", 17: "udp"}[flow.proto]
    return f"{name} {match.cidr} {proto}/{match.port or '*'}"
