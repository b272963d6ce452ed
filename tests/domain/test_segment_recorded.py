"""Rows of the store as columns: who is who, whatever order they come in."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.errors import OverLimit
from aegisflux.domain.segment import recorded as module
from aegisflux.domain.segment.recorded import Recorder, digest_of


def row(slot, host, service, calls, peer, port=5432, **more):
    """`peer` is (host, service), or an address."""
    there = {"peer_host": "", "peer_service": "", "peer": peer}
    if isinstance(peer, tuple):
        there = {"peer_host": peer[0], "peer_service": peer[1], "peer": ""}
    given = {"slot": slot, "host_id": host, "service": service, "calls": calls, "proto": 6, "port": port}
    return given | there | {"path": "/usr/bin/node", "connections": 3} | more


ROWS = (
    row(0, "w1", "web", True, ("d1", "db")),
    row(30, "w1", "web", True, ("d1", "db"), connections=1 << 40),
    row(1, "w1", "web", False, "203.0.113.7", 443, path="/usr/sbin/nginx"),
    row(2, "w2", "", True, "198.51.100.1", 443, path=""),
)


def recorded(rows, scope=()):
    recorder = Recorder(scope)
    recorder.add(rows)
    return recorder.recorded()


def told(found):
    flows = found.flows
    return [
        (
            int(flows.hour[n]),
            str(found.actors[flows.client[n]]),
            str(found.actors[flows.server[n]]),
            int(flows.port[n]),
            int(flows.count[n]),
            found.programs[flows.program[n]] if flows.program[n] >= 0 else "",
        )
        for n in range(len(flows))
    ]


def test_the_fleet_comes_first_and_the_caller_is_the_client():
    found = recorded(ROWS)
    names = ["db@d1", "web@w1", "w2", "198.51.100.1", "203.0.113.7"]
    assert [str(actor) for actor in found.actors] == names
    assert found.fleet == 3
    assert told(found) == [
        (0, "web@w1", "db@d1", 5432, 3, "/usr/bin/node"),
        (1, "203.0.113.7", "web@w1", 443, 3, ""),
        (2, "w2", "198.51.100.1", 443, 3, ""),
        (30, "web@w1", "db@d1", 5432, (1 << 31) - 1, "/usr/bin/node"),
    ]


def test_a_scope_keeps_what_touches_it():
    assert {line[3] for line in told(recorded(ROWS, ["db"]))} == {5432}


def test_what_a_caller_does_not_know_of_a_server_its_own_host_does():
    unknown = row(0, "w1", "web", True, ("d1", ""))
    assert told(recorded((unknown,)))[0][2] == "d1"
    recorder = Recorder(("db",), {("d1", 6, 5432): "db", ("w1", 6, 5432): "no"})
    recorder.add((unknown, row(0, "d1", "db", False, ("w1", ""), 1)))
    found = told(recorder.recorded())
    assert [line[1:4] for line in found] == [("w1", "db@d1", 1), ("web@w1", "db@d1", 5432)]


def test_nothing_is_an_empty_window():
    found = recorded(())
    assert (len(found.flows), found.actors, found.fleet) == (0, (), 0)


@given(st.integers(0, 1000))
def test_the_same_flows_are_the_same_window_in_any_order(seed):
    rows = list(ROWS)
    random.Random(seed).shuffle(rows)
    found = recorded(rows)
    assert (told(found), digest_of(found)) == (told(recorded(ROWS)), digest_of(recorded(ROWS)))


@pytest.mark.parametrize("n", range(len(ROWS)))
def test_one_flow_more_or_less_is_another_digest(n):
    assert digest_of(recorded(ROWS)) != digest_of(recorded(ROWS[:n] + ROWS[n + 1 :]))


def test_a_window_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MOST_RECORDS", 3)
    with pytest.raises(OverLimit, match="flow_records: at most 3, got 4"):
        recorded(ROWS)


def test_where_two_hosts_talked_is_kept_in_one_order_and_bounded():
    def ways(*pairs):
        recorder = Recorder()
        recorder.add(ROWS)
        recorder.at({"host_id": "w1", "peer_host": "d1", "local": one, "peer": other} for one, other in pairs)
        return recorder.recorded()

    two = (("10.0.0.1", "10.0.1.1"), ("fd00::1", "fd00::2"))
    assert ways(*reversed(two)).between == {("w1", "d1"): two}
    assert digest_of(ways(*two)) == digest_of(ways(*reversed(two))) != digest_of(ways())
    many = ways(*(("10.0.0.1", f"10.0.1.{n}") for n in range(200)))
    assert len(many.between["w1", "d1"]) == module.MOST_WAYS
