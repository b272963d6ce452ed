"""Each rule that a suite once let fall, dropped in a copy of its module, must fail the case that is about it.

A case is a function of the module under test: it holds for the real one and for no mutant of it.
"""
# ruff: noqa: E501  (a mutant is one line of its module, however long)

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from msgspec.structs import replace

from aegisflux.domain import audit, converge, guardrails, joins, rollout, rollup, trust
from aegisflux.domain.enriched import Context, Enriched
from aegisflux.domain.event import EventBatch, FlowSeen
from aegisflux.domain.known import Known, KnownHost, KnownService
from aegisflux.domain.manifest import ActiveRef, CandidateRef, ServiceState
from aegisflux.domain.snapshot import TTL_MAX
from aegisflux.wire import envelope
from support.agents import FOREVER, WALL, Plane, sha, verify
from tests.support.facts import flow
from tests.support.mutants import mutant

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
A, B = ("sha256:" + c * 64 for c in "ab")
Case = Callable[[Any], None]
CASES: dict[str, tuple[ModuleType, Case]] = {}


def case(module: ModuleType) -> Callable[[Case], Case]:
    """Of which module a case is."""

    def kept(function: Case) -> Case:
        CASES[function.__name__] = module, function
        return function

    return kept


# the audit log


def log(m: Any, count: int, key: bytes = KEY) -> tuple[list[Any], Any]:
    head, lines = m.first_head(key), []
    for number in range(count):
        line, head = m.following(head, key, number, m.Entry("ann", "snapshot.post", f"service/{number}"))
        lines.append(line)
    return lines, head


@case(audit)
def the_head_names_the_hash_of_the_last_line(m: Any) -> None:
    lines, _ = log(m, 5)
    other = bytes(32)
    forged = m.Head(5, other, m.mac_of(KEY, 5, other))
    assert list(m.problems(lines, forged, KEY)) == ["edit: the head has another hash than line 5"]


@case(audit)
def an_edit_is_told_of_once(m: Any) -> None:
    lines, head = log(m, 3)
    lines[2] = replace(lines[2], hash=bytes(32))
    assert list(m.problems(lines, head, KEY)) == [
        "edit: line 3 does not have the hash that its content gives"
    ]


@case(audit)
def a_mac_covers_number_and_hash(m: Any) -> None:
    lines, head = log(m, 3)
    edited = m.Entry("eve", "x", "y")
    lines[2] = m.Line(3, 9, edited, m.hash_of(lines[1].hash, 3, 9, edited))
    forged = m.Head(3, lines[2].hash, head.mac)
    assert list(m.problems(lines, forged, KEY)) == ["edit: the head was not written by this control plane"]
    assert m.mac_of(KEY, 2, head.hash) != m.mac_of(KEY, 3, head.hash)


@case(audit)
def another_control_plane_writes_another_head(m: Any) -> None:
    lines, head = log(m, 2, OTHER_KEY)
    assert list(m.problems(lines, head, KEY)) == ["edit: the head was not written by this control plane"]
    assert m.mac_of(b"k" * 80, 1, bytes(32)) == m.mac_of(b"k" * 64, 1, bytes(32))


@case(audit)
def a_cut_off_log_says_where_it_ends(m: Any) -> None:
    lines, head = log(m, 5)
    assert list(m.problems(lines[:3], head, KEY)) == ["cut-off: the head names line 5, the last line is 3"]


# what a plan may do


@case(guardrails)
def the_fleet_s_window_beats_the_plan_s(m: Any) -> None:
    ours = m.Limits(windows=(m.MaintenanceWindow(frozenset({5}), 0, 60),))
    theirs = m.Limits(windows=(m.MaintenanceWindow(frozenset({0, 1, 2, 3, 4, 5, 6})),))
    assert m.within(theirs, ours).windows == ours.windows
    assert m.within(theirs, m.Limits()).windows == theirs.windows


# what a host does


def in_force(m: Any, digest: str, version: int, **more: Any) -> Any:
    return m.InForce(version, digest, "t" + digest, 7, 1000, 5_000, 60, "enforce", "open", "keep", **more)


@case(converge)
def going_back_pardons_nothing(m: Any) -> None:
    good, bad = in_force(m, A, 1), in_force(m, B, 2, confirm_seconds=30)
    failed = m.reverted(m.flipped(m.Holding(101, 3, active=good, good=good), bad, 0))
    assert failed.refused == CandidateRef(2, B)
    back = m.flipped(m.intended(failed, good), good, 0)
    assert (back.active, back.intent, back.refused) == (good, None, CandidateRef(2, B))


@case(converge)
def a_new_digest_is_judged_anew(m: Any) -> None:
    good, news = in_force(m, A, 1), in_force(m, B, 2, confirm_seconds=30)
    held = m.Holding(101, 3, active=good, good=good, refused=CandidateRef(3, "sha256:" + "c" * 64))
    assert m.flipped(held, news, 0).refused is None


# what an agent believes


def told(m: Any, issued_at: int, lease_until: int) -> str:
    plane = Plane(wall=lambda: WALL)
    service = ServiceState(101, "web", (), active=ActiveRef(1, A, lease_until))
    manifest = plane.manifest(service, issued_at=issued_at, not_after=FOREVER)
    signed = envelope.opened(plane.seal(envelope.MANIFEST, manifest), envelope.MANIFEST)
    try:
        m.accept_manifest(plane.trusted(), signed, sha(signed.payload), WALL, verify)
    except m.Nacked as nack:
        return str(nack.reason)
    return ""


@case(trust)
def a_lease_is_measured_from_the_later_clock(m: Any) -> None:
    behind, ahead = WALL + 86_400, WALL - 86_400
    assert told(m, behind, behind + TTL_MAX) == ""
    assert told(m, behind, behind + TTL_MAX + 1) == "over_limit"
    assert told(m, ahead, WALL + TTL_MAX) == ""
    assert told(m, ahead, WALL + TTL_MAX + 1) == "over_limit"


@case(trust)
def a_manifest_is_of_no_far_future(m: Any) -> None:
    assert told(m, WALL + m.MAX_FUTURE_ISSUE, WALL + 60) == ""
    assert told(m, WALL + m.MAX_FUTURE_ISSUE + 1, WALL + 60) == "over_limit"


# who talks to whom


def caller_seen_by_callee(m: Any, *units: str) -> int | None:
    """The service that the callee sees, where these units of one host call the same port."""
    known = m.Joins()
    hosts = KnownHost("web-1", {}, ("10.0.0.1",)), KnownHost("db-1", {}, ("10.0.0.2",))
    services = tuple(
        KnownService(number, name, (f"cgroup:system.slice/{name}.service",), {})
        for number, name in ((101, "web"), (102, "job"), (103, "db"))
    )
    known.learn(Known(hosts=hosts, services=services, listeners=(), inventories=()))

    def seen(host: str, direction: str, local: str, peer: str, unit: str) -> Any:
        event = FlowSeen(
            seq=1, time_ns=1, direction=direction, proto=6, local=local, peer=peer, port=5432,
            first_ns=1, last_ns=1, cgroup=f"/system.slice/{unit}.service",
        )  # type: ignore[arg-type]  # fmt: skip
        (found,) = known.enrich(EventBatch(host_id=host, boot_id="b", sent_ns=1, events=(event,)), 5).events
        return found.context

    for unit in units:
        seen("web-1", "egress", "10.0.0.1", "10.0.0.2", unit)
    return seen("db-1", "ingress", "10.0.0.2", "10.0.0.1", "db").peer_service_id  # type: ignore[no-any-return]


@case(joins)
def two_named_services_of_a_host_are_nobody(m: Any) -> None:
    assert caller_seen_by_callee(m, "web") == 101
    assert caller_seen_by_callee(m, "web", "web") == 101
    assert caller_seen_by_callee(m, "web", "job") is None
    assert caller_seen_by_callee(m, "web", "job", "web") is None
    assert caller_seen_by_callee(m, "web", "job", "job") is None


# which version runs where


@case(rollout)
def the_history_of_promotions_is_bounded(m: Any) -> None:
    held = m.Rollout(7)
    for version in range(1, m.MAX_PROMOTIONS + 9):
        held = m.promote(held, version, 1600, {"a"}).rollout
    assert held.promotions == tuple(range(9, m.MAX_PROMOTIONS + 9))


# flows added up


@case(rollup)
def sums_stay_below_their_bound(m: Any) -> None:
    names = ("connections", "packets_out", "packets_in", "bytes_out", "bytes_in")
    for name in names:
        into: dict[Any, Any] = {}
        most = Enriched(replace(flow(1), **{**dict.fromkeys(names, 1), name: m.MOST}), Context())
        m.rolled_up("web-1", [most, most], into)
        (sums,) = into.values()
        assert {other: getattr(sums, other) for other in names} == {**dict.fromkeys(names, 2), name: m.MOST}


MUTANTS = {
    "the head's hash is not compared": (the_head_names_the_hash_of_the_last_line, "elif head.hash != previous and not broken:", "elif False:"),
    "an edit is told of twice": (an_edit_is_told_of_once, "head.hash != previous and not broken", "head.hash != previous"),
    "the head's hash is compared after an edit alone": (the_head_names_the_hash_of_the_last_line, "and not broken", "and broken"),
    "the MAC leaves the hash out": (a_mac_covers_number_and_hash, 'seq.to_bytes(8, "big") + digest', 'seq.to_bytes(8, "big")'),
    "the MAC leaves the number out": (a_mac_covers_number_and_hash, 'seq.to_bytes(8, "big") + digest', "digest"),
    "the MAC has no key": (another_control_plane_writes_another_head, ", key=key[:64]", ""),
    "a long key is refused": (another_control_plane_writes_another_head, "key=key[:64]", "key=key"),
    "the end is named one too far": (a_cut_off_log_says_where_it_ends, "the last line is {expected - 1}", "the last line is {expected}"),
    "the plan's window wins": (the_fleet_s_window_beats_the_plan_s, "fleet.windows or asked.windows", "asked.windows or fleet.windows"),
    "the plan's window is dropped": (the_fleet_s_window_beats_the_plan_s, "fleet.windows or asked.windows", "fleet.windows"),
    "the way back pardons": (going_back_pardons_nothing, "refused = holding.refused if known_good else None", "refused = None"),
    "nothing is pardoned": (a_new_digest_is_judged_anew, "confirm_by_ns=end, intent=None, refused=None", "confirm_by_ns=end, intent=None"),
    "a lease is measured by our clock": (a_lease_is_measured_from_the_later_clock, "_wrong(trusted, service, max(now, manifest.issued_at),", "_wrong(trusted, service, now,"),
    "a lease is measured by theirs": (a_lease_is_measured_from_the_later_clock, "_wrong(trusted, service, max(now, manifest.issued_at),", "_wrong(trusted, service, manifest.issued_at,"),
    "issued_at may be anything": (a_manifest_is_of_no_far_future, "if manifest.issued_at > now + MAX_FUTURE_ISSUE:", "if False:"),
    "issued_at may not be the bound": (a_manifest_is_of_no_far_future, "manifest.issued_at > now + MAX_FUTURE_ISSUE", "manifest.issued_at >= now + MAX_FUTURE_ISSUE"),
    "the last caller wins": (two_named_services_of_a_host_are_nobody, "said if known is None else SEVERAL", "said"),
    "the history has no bound": (the_history_of_promotions_is_bounded, "history[-MAX_PROMOTIONS:]", "history"),
    "the oldest promotions stay": (the_history_of_promotions_is_bounded, "history[-MAX_PROMOTIONS:]", "history[:MAX_PROMOTIONS]"),
    **{
        f"{name} have no bound": (sums_stay_below_their_bound, f"min(MOST, sums.{name} + event.{name})", f"sums.{name} + event.{name}")
        for name in ("connections", "packets_out", "packets_in", "bytes_out", "bytes_in")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_case_holds(name: str) -> None:
    module, function = CASES[name]
    function(importlib.import_module(module.__name__))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    function, old, new = MUTANTS[name]
    changed = mutant(CASES[function.__name__][0], old, new)
    with pytest.raises((AssertionError, ValueError)):
        function(changed)


def test_every_case_catches_something() -> None:
    assert {function.__name__ for function, _, _ in MUTANTS.values()} == set(CASES)
