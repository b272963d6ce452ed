"""Before a snapshot comes into force the agent looks whether it would cut what is alive on its own host."""

import pytest
from msgspec.structs import replace

from aegisflux.agent.recent import MOST, SECONDS, Recent
from aegisflux.domain.event import FlowSeen
from aegisflux.domain.flow import Flow
from aegisflux.domain.net import TCP, parse_address
from support.agents import AgentLab, body, edges


def tcp(peer, port, direction="egress"):
    return Flow(direction, TCP, parse_address(peer), port, 40_000)


def seen(peer="10.0.0.9", port=443, **more):
    given = {"direction": "egress", "proto": TCP, "local": "10.0.0.1", "first_ns": 0, "last_ns": 0}
    given |= {"packets_out": 3, "packets_in": 2, "connections": 1, "service_id": 101, "verdict": "allowed"}
    return FlowSeen(seq=1, time_ns=0, peer=peer, port=port, **(given | more))


@pytest.fixture
async def lab():
    return await AgentLab().begin()


def wanted(lab, preflight=True, **fields):
    made = lab.plane.content(body(1, edges=edges("10.0.0.0/8 tcp/443"), **fields))
    service = lab.plane.service(made)
    return replace(service, active=replace(service.active, preflight=preflight))


def slot(lab):
    return lab.runner.applier.book.services[101].slot


async def entered(lab):
    """The service has its slot, and nothing in force."""
    await lab.desire(replace(wanted(lab), active=None))
    lab.answers()


LIVE = [tcp("10.0.0.1", 443), tcp("192.0.2.1", 5432), tcp("192.0.2.1", 5432), tcp("127.0.0.1", 1)]


async def test_a_snapshot_that_would_cut_a_live_connection_is_refused_with_its_name(lab):
    await entered(lab)
    lab.kernel.connections = {slot(lab): LIVE}
    await lab.desire(wanted(lab))
    (nack,) = lab.answers()
    assert (nack.reason, nack.version) == ("preflight", 1)
    assert nack.detail == "it would cut what is alive on this host: to 192.0.2.1 tcp/5432"
    assert lab.held() == []


async def test_the_failsafe_is_never_cut_and_ingress_is_told_by_its_own_port(lab):
    await entered(lab)
    live = [tcp("192.0.2.1", 22, "ingress"), tcp("192.0.2.1", 8080, "ingress")]
    lab.kernel.connections = {slot(lab): live}
    await lab.desire(wanted(lab, ingress=[]))
    (nack,) = lab.answers()
    assert nack.detail.endswith(": from 192.0.2.1 on tcp/8080")


async def test_what_was_alive_lately_and_is_blocked_by_now_is_no_loss(lab):
    await lab.desire(wanted(lab, preflight=False))
    recent = Recent()
    recent.note([seen("192.0.2.7", 6379)], 0.0)
    lab.runner.applier.recent = lambda service: recent.flows(service, 1.0)
    made = lab.plane.content(body(2, edges=edges("10.0.0.0/8 tcp/443", "10.0.0.0/8 tcp/80")))
    service = lab.plane.service(made)
    await lab.desire(replace(service, active=replace(service.active, preflight=True)))
    assert lab.held() == ["active 101 v2"]


@pytest.mark.parametrize("given", [{"mode": "observe"}, {"preflight": False}], ids=str)
async def test_what_blocks_nothing_or_is_to_go_back_asks_nobody(lab, given):
    await entered(lab)
    lab.kernel.connections = {slot(lab): LIVE}
    await lab.desire(wanted(lab, **given))
    assert lab.held() == ["active 101 v1"]


async def test_what_was_alive_lately_counts_too(lab):
    await entered(lab)
    recent = Recent()
    recent.note([seen("192.0.2.7", 6379)], 0.0)
    lab.runner.applier.recent = lambda service: recent.flows(service, 1.0)
    await lab.desire(wanted(lab))
    (nack,) = lab.answers()
    assert nack.detail.endswith(": to 192.0.2.7 tcp/6379")


async def test_sockets_that_cannot_be_listed_are_no_proof_that_there_are_none(lab):
    await entered(lab)
    lab.kernel.faults["live"] = OSError("netlink is away")
    await lab.desire(wanted(lab))
    (nack,) = lab.answers()
    assert (nack.reason, "netlink is away" in nack.detail) == ("preflight", True)


@pytest.mark.parametrize(
    ("settings", "fields", "said"),
    [
        ({"observe_only": True}, {}, "observe_only: expected a snapshot that observes, got one to enforce"),
        ({"observe_only": True}, {"mode": "observe"}, ""),
        ({"max_lease_seconds": 300.0}, {}, "max_lease_seconds: expected at most 300 s, got 600 s"),
        ({"max_lease_seconds": 600.0}, {}, ""),
    ],
    ids=str,
)
async def test_a_host_has_guardrails_of_its_own(settings, fields, said):
    lab = await AgentLab(**settings).begin()
    await lab.desire(wanted(lab, preflight=False, **fields))
    (answer,) = lab.answers()
    assert getattr(answer, "detail", "") == said
    assert getattr(answer, "reason", "guardrail") == "guardrail"
    assert lab.held() == ([] if said else ["active 101 v1"])


CASES = {
    "answered": (seen(), 1),
    "nobody answered": (seen(packets_in=0), 0),
    "blocked": (seen(verdict="blocked"), 0),
    "would block": (seen(verdict="would block"), 1),
    "of no service": (seen(service_id=None), 0),
    "of another service": (seen(service_id=7), 0),
    "udp, one way": (seen(proto=17, packets_in=0), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_recent_is_what_was_answered_and_not_blocked(case):
    event, count = CASES[case]
    recent = Recent()
    recent.note([event, event], 5.0)
    assert len(recent.flows(101, 5.0 + SECONDS)) == count
    assert recent.flows(101, 5.1 + SECONDS) == []


def test_recent_keeps_the_newest_of_too_many():
    recent = Recent()
    recent.note([seen(port=port) for port in range(1, MOST + 3)], 0.0)
    assert {flow.port for flow in recent.flows(101, 0.0)} == set(range(3, MOST + 3))
