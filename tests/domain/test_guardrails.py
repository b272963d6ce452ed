"""Each guardrail with one limit and one table; waves pass the shares whatever they are."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aegisflux.domain.errors import Invalid
from aegisflux.domain.guardrails import (
    GUARDRAILS,
    OPEN,
    Limits,
    MaintenanceWindow,
    Wave,
    checked,
    parse_window,
    waves,
    within,
)

HOSTS = [f"h{n}" for n in range(8)]
FINE = Wave(
    hosts=frozenset({"h0", "h1"}),
    labels={host: {"role": "web" if host < "h4" else "db"} for host in HOSTS},
    members={"web": frozenset(HOSTS[:4])},
    ttl_seconds=3600,
    now=1_795_780_800,  # Friday, 27 November 2026, 12:00 UTC
    author="ann",
    approvers=frozenset({"bob"}),
)
NOON = MaintenanceWindow(weekdays=frozenset({4}), start=720, end=780)


def test_a_careful_wave_passes_all():
    assert checked(FINE, Limits(windows=(NOON,), never_block={"role": "dc"})) == ()


@pytest.mark.parametrize(
    ("wave", "limits", "said"),
    [
        ({}, {"never_block": {"role": "web"}}, "never_block: h0, h1: expected no host, got 2"),
        (
            {"hosts": frozenset(HOSTS[3:6])},
            {},
            "most_of_fleet: the fleet: expected at most 25% of its 8 hosts, got 3",
        ),
        (
            {"hosts": frozenset(HOSTS[:3])},
            {"most_of_fleet": 1.0},
            "most_of_service: service web: expected at most 50% of its 4 hosts, got 3",
        ),
        (
            {"hosts": frozenset({"h3", "h4"})},
            {"never_block": {"role": ("db", "web")}},
            "never_block: h3, h4: expected no host, got 2",
        ),
        ({"ttl_seconds": 700_000}, {}, "ttl: the lease: expected at most 604800 s, got 700000 s"),
        ({"changes_before": 20}, {}, "change_budget: changes: expected at most 20 an hour, got 21"),
        (
            {"now": FINE.now + 3600},
            {"windows": (NOON,)},
            "maintenance_window: the wave: expected a time in its windows, got weekday 4, 13:00 UTC",
        ),
        (
            {"now": FINE.now + 86_400},
            {"windows": (NOON,)},
            "maintenance_window: the wave: expected a time in its windows, got weekday 5, 12:00 UTC",
        ),
        (
            {"widens": True, "approvers": frozenset({"ann"})},
            {},
            "second_person: the plan: expected an approver beside its author, got ann alone",
        ),
    ],
)
def test_each_holds_what_passes_its_limit_and_says_so(wave, limits, said):
    assert [str(held) for held in checked(replace(FINE, **wave), Limits(**limits))] == [said]


@pytest.mark.parametrize(
    ("wave", "limits"),
    [
        ({"enforces": False}, {"never_block": {"role": "web"}}),
        ({}, {"never_block": {"role": "WEB"}}),
        ({"ttl_seconds": 604_800}, {}),
        ({"changes_before": 19}, {}),
        ({"now": FINE.now + 3599}, {"windows": (NOON,)}),
        ({"widens": True}, {}),
        ({"hosts": frozenset({"h0"})}, {"most_of_fleet": 0.01, "most_of_service": 0.01}),
    ],
)
def test_at_the_limit_it_passes(wave, limits):
    assert checked(replace(FINE, **wave), Limits(**limits)) == ()


def test_every_guardrail_has_its_case():
    """The table above names each of them."""
    said = {
        mark.partition(":")[0]
        for *_, mark in test_each_holds_what_passes_its_limit_and_says_so.pytestmark[0].args[1]
    }
    assert said == {guardrail.__name__ for guardrail in GUARDRAILS}


@given(
    st.integers(1, 30),
    st.lists(st.frozensets(st.integers(0, 29), min_size=1), max_size=4),
    st.floats(0.01, 1.0),
    st.floats(0.01, 1.0),
)
def test_waves_hold_every_host_once_and_pass_the_shares(count, services, of_fleet, of_service):
    hosts = [f"h{n}" for n in range(count)]
    members = {str(s): frozenset(f"h{n}" for n in own if n < count) for s, own in enumerate(services)}
    members = {name: own for name, own in members.items() if own}
    limits = Limits(most_of_fleet=of_fleet, most_of_service=of_service)
    found = waves(hosts, members, count, limits)
    assert sorted(host for wave in found for host in wave) == sorted(hosts)
    for wave in found:
        asked = replace(FINE, hosts=frozenset(wave), labels={h: {} for h in hosts}, members=members)
        assert checked(asked, limits) == ()


WINDOWS = {
    "mon-fri 08:00-17:00": ({0, 1, 2, 3, 4}, 480, 1020),
    "SAT 22:00-24:00": ({5}, 1320, 1440),
    "fri-mon 00:00-00:30": ({4, 5, 6, 0}, 0, 30),
}


@pytest.mark.parametrize("text", WINDOWS)
def test_a_window_as_people_write_it(text):
    weekdays, start, end = WINDOWS[text]
    assert parse_window(text) == MaintenanceWindow(frozenset(weekdays), start, end)


@pytest.mark.parametrize(
    "text", ["", "mon", "mon 8-9", "noday 08:00-09:00", "mon 09:00-08:00", "mon 08:00-25:00", "mon 1:2:3-4"]
)
def test_another_window_is_refused(text):
    with pytest.raises(Invalid, match="mon-fri 08:00-17:00"):
        parse_window(text)


@given(st.builds(Limits, ttl_seconds=st.integers(1, 99), changes_an_hour=st.integers(1, 9)))
def test_a_fleet_narrows_what_a_plan_asks_for_and_never_widens_it(asked):
    fleet = Limits(never_block={"a": "b"}, most_of_fleet=0.1, ttl_seconds=50, windows=(NOON,))
    found = within(asked, fleet)
    assert within(found, fleet) == found
    assert (found.never_block, found.windows) == ({"a": "b"}, (NOON,))
    assert found.ttl_seconds == min(asked.ttl_seconds, 50)
    assert within(asked, OPEN) == asked


labels = st.dictionaries(
    st.sampled_from(["env", "role"]),
    st.sampled_from(["prod", "lab"])
    | st.lists(st.sampled_from(["prod", "lab", "dc"]), max_size=3).map(tuple),
)


@given(labels, labels)
def test_the_labels_of_a_plan_and_of_its_fleet_hold_both(asked, fleet):
    one, other = Limits(never_block=asked), Limits(never_block=fleet)
    found = within(one, other)
    assert found.marks == one.marks | other.marks
    assert within(found, other) == found
    assert msgspec.convert(msgspec.to_builtins(found), Limits) == found
    assert within(one, OPEN).never_block == asked


def test_a_label_with_two_values_is_kept_as_both():
    found = within(Limits(never_block={"env": "prod"}), Limits(never_block={"env": "lab"}))
    assert found.never_block == {"env": ("prod", "lab")}
    assert within(found, Limits(never_block={"env": "prod"})).never_block == found.never_block


@pytest.mark.parametrize("days", ["noday-fri", "mon-noday", "-fri"])
def test_both_days_of_a_window_are_days(days):
    with pytest.raises(Invalid):
        parse_window(f"{days} 08:00-09:00")


def test_a_window_is_not_empty():
    with pytest.raises(Invalid):
        parse_window("mon 08:00-08:00")


def test_every_service_of_a_wave_is_looked_at():
    members = {"a": frozenset(HOSTS), "b": frozenset({"h0", "h1"})}
    (held,) = checked(replace(FINE, members=members), Limits())
    assert (held.guardrail, held.about) == ("most_of_service", "service b")


def test_waves_are_as_full_as_both_shares_let_them_be():
    members = {"web": frozenset(HOSTS)}
    wide = Limits(most_of_fleet=1, most_of_service=0.5)
    assert waves(HOSTS, members, len(HOSTS), wide) == [HOSTS[:4], HOSTS[4:]]
    assert waves(HOSTS, members, len(HOSTS), replace(wide, most_of_fleet=0.25)) == [
        HOSTS[n : n + 2] for n in (0, 2, 4, 6)
    ]
    assert waves(
        HOSTS[:2], {"web": frozenset(HOSTS[:2])}, 2, Limits(most_of_fleet=0.01, most_of_service=0.01)
    ) == [["h0"], ["h1"]]
