"""A proposal as a policy: what was learned, in the words that people go on with.

Rules that are held back are left out; so is what is neither TCP nor UDP, which no rule can say exactly:
`unsayable` counts it. Roles of hosts that belong to no registered service can be called, but not governed.
"""

from collections import defaultdict
from hashlib import sha256
from typing import Final

from aegisflux.domain.address_class import address_class
from aegisflux.domain.net import TCP, UDP
from aegisflux.domain.policy import Group, Policy, Rule
from aegisflux.domain.segment.propose import Proposal, ProposedRule
from aegisflux.domain.snapshot import Mode

PROTOS: Final = {TCP: "tcp", UDP: "udp"}
WORD: Final = "-to-"
MOST_NAMED: Final = 63  # characters of a rule's name
DIGITS: Final = 8  # of a digest, where the two ends alone do not make a name


def policy_of(
    proposal: Proposal, name: str = "learned", ttl_seconds: int = 86_400, mode: Mode = "enforce"
) -> Policy:
    """The policy of the proposed rules, in a stable order."""
    services, groups = [], {}
    for group in proposal.groups:
        hosts, cidrs, service = [], [], ""
        for member in group.members:
            if "@" in member:
                service = member.partition("@")[0]
            elif address_class(member) is not None:
                cidrs.append(member)
            else:
                hosts.append(member)
        if service == group.name:
            services.append(group.name)
        else:
            groups[group.name] = Group(hosts=tuple(hosts), cidrs=tuple(cidrs), unregistered=bool(hosts))
    ways: dict[tuple[str, str], list[ProposedRule]] = defaultdict(list)
    for rule in proposal.rules:
        if not rule.held and rule.proto in PROTOS:
            ways[rule.client, rule.server].append(rule)
    named = {end for way in ways for end in way}
    return Policy(
        policy=1,
        name=name,
        ttl_seconds=ttl_seconds,
        mode=mode,
        services=tuple(sorted(services)),
        groups={group: groups[group] for group in sorted(groups) if group in named},
        rules=tuple(_rule(client, server, ways[client, server]) for client, server in sorted(ways)),
    )


def _rule(client: str, server: str, rules: list[ProposedRule]) -> Rule:
    rules.sort(key=lambda rule: (rule.proto, rule.port))
    return Rule(
        name=rule_name(client, server),
        from_=client,
        to=server,
        ports=tuple(f"{PROTOS[rule.proto]}/{rule.port}" for rule in rules),
        why="; ".join(evidence(rule) for rule in rules)[:2048],
    )


def rule_name(client: str, server: str) -> str:
    """The name of the rule between two ends: always the same, and no other pair's. A digest ends it where it
    would be too long, or where it could be read as another pair's."""
    name = client + WORD + server
    if len(name) <= MOST_NAMED and name.split(WORD) == [client, server]:
        return name
    digest = sha256(f"{client}\n{server}".encode()).hexdigest()[:DIGITS]
    return f"{name[: MOST_NAMED - DIGITS - 1]}-{digest}"


KINDS: Final = {
    "core": "; shared by the fleet",
    "public": "; called by the world",
    "outside": "; exact addresses outside of the fleet",
}


def evidence(rule: ProposedRule) -> str:
    """What a rule rests on, in words."""
    seen = (
        f"{PROTOS.get(rule.proto, rule.proto)}/{rule.port}: {rule.connections} connections, "
        f"{rule.clients} clients, {rule.servers} servers, {rule.days} days"
    )
    return seen + KINDS.get(rule.kind, "") + (f" ({', '.join(rule.programs)})" if rule.programs else "")
