"""Rollouts as transcripts, the table of transitions, and what holds whatever happens.

A transcript in tests/domain/rollouts has an event a line and, below it, what it did. REWRITE=1 writes them
anew; they are read as prose before they are committed.
"""

import os
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aegisflux.domain.errors import Conflict
from aegisflux.domain.stages import (
    ENDED,
    TABLE,
    Ask,
    Begin,
    Enforce,
    Event,
    Evidence,
    Expire,
    Gate,
    Keep,
    Look,
    Offer,
    Run,
    Stage,
    Supersede,
    TakeBack,
    Verb,
    Withdraw,
    step,
    verbs,
    verdict_of,
)

FOLDER = Path(__file__).parent / "rollouts"
GATE = Gate(least_seconds=60, least_flows=100, silent_seconds=30, longest_seconds=600, fine=0.001, bad=0.05)
FLEET = ("a", "b", "c", "d", "e")
FRESH = Run(plan=7, canary=(("a",), ("b",)), waves=(("c", "d"), ("e",)), gate=GATE)
KINDS = get_args(Event)


def evidence(now, words, run):
    """`flows=200 denied=1 silent=b nacked=c:map_full held=a`: all told now and hold it, but for those."""
    given = dict(word.split("=") for word in words)
    troubles = ("nacked", "sick", "lying")
    said = {name: dict([given[name].split(":")]) if name in given else {} for name in troubles}
    return Evidence(
        heard={host: now for host in FLEET if host != given.get("silent")},
        in_force=frozenset(given["held"].split(",")) if "held" in given else frozenset(FLEET),
        flows=int(given.get("flows", 0)),
        denied=int(given.get("denied", 0)),
        **said,
    )


def event_of(line, run):
    now, kind, *words = line.split()
    now = float(now)
    if kind == "look":
        return Look(now, evidence(now, words, run))
    if kind in ("begin", "expire"):
        return {"begin": Begin, "expire": Expire}[kind](now)
    if kind == "supersede":
        return Supersede(now, int(words[0]))
    return Ask(now, kind, words[0], " ".join(words[1:]))


def told(command):
    words = {Offer: "offer", Enforce: "enforce", Keep: "keep", TakeBack: "take back", Withdraw: "withdraw"}
    return " ".join((words[type(command)], *getattr(command, "hosts", ())))


def played(lines):
    run, found = FRESH, []
    for line in lines:
        if not line.strip() or line.startswith((" ", "#")):
            if line.startswith("#") or not line.strip():
                found.append(line)
            continue
        found.append(line)
        try:
            run, commands = step(run, event_of(line, run))
        except Conflict as error:
            found.append(f"    refused: {error}")
            continue
        where = run.stage + (f" {run.at + 1}" if run.stage in ("canary", "waves") else "")
        found.append(f"    {where}{' (paused)' if run.paused else ''}: {run.reason}")
        found += [f"    -> {told(command)}" for command in commands]
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_a_rollout_goes_as_its_transcript_says(path):
    lines = path.read_text().splitlines()
    found = played(lines)
    if os.environ.get("REWRITE"):
        path.write_text("\n".join(found) + "\n")
    assert found == lines


def test_there_are_transcripts():
    assert len(list(FOLDER.glob("*.txt"))) >= 6


def test_the_table_is_complete_and_holds_nothing_else():
    assert set(TABLE) == set(product(get_args(Stage), KINDS))


EVENTS = st.one_of(
    st.builds(Begin, st.just(0.0)),
    st.builds(
        Look,
        st.just(0.0),
        st.builds(
            Evidence,
            heard=st.just(dict.fromkeys(FLEET, 1e9)),
            in_force=st.sampled_from((frozenset(), frozenset(FLEET))),
            flows=st.integers(0, 3000),
            denied=st.sampled_from((0, 0, 0, 1, 500)),
            nacked=st.sampled_from(({}, {}, {"a": "map_full"})),
        ),
    ),
    st.builds(Ask, st.just(0.0), st.sampled_from(get_args(Verb)), st.just("ann")),
    st.builds(Supersede, st.just(0.0), st.just(8)),
    st.builds(Expire, st.just(0.0)),
)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.floats(0, 400), EVENTS), max_size=25))
def test_whatever_happens_what_was_enforced_is_kept_taken_back_or_somebody_elses(events):
    run, now, given_to = FRESH, 0.0, set()
    for wait, event in events:
        now += wait
        before = run
        try:
            run, commands = step(run, replace(event, now=now))
        except Conflict:
            assert isinstance(event, Ask)
            assert event.verb not in verbs(run)
            continue
        for command in commands:
            if isinstance(command, Enforce):
                assert before.stage in ("observe", "canary", "waves")
                given_to |= set(command.hosts)
            if isinstance(command, TakeBack):
                assert set(command.hosts) == given_to
                assert command.why
                given_to = set()
            if isinstance(command, Keep):
                assert given_to == set(FLEET)
        if before.stage in ENDED:
            assert (run, commands) == (before, ())
        if run.stage in ("aborted", "rolled_back") and before.stage != run.stage:
            assert not given_to
            assert run.reason
        assert given_to == set(run.enforced) or run.stage in ENDED
    if run.stage == "promoted":
        assert given_to == set(FLEET)


FEW = [(0, 0, "more"), (50, 0, "more"), (100, 1, "more")]
ENOUGH = [(100, 0, "pass"), (300, 1, "pass"), (10, 2, "fail"), (100, 10, "fail")]


@pytest.mark.parametrize(("flows", "denied", "word"), FEW + ENOUGH)
def test_the_sequential_test_tells_a_fine_share_from_a_bad_one(flows, denied, word):
    assert verdict_of(flows, denied, GATE) == word


def test_a_rollout_of_nothing_but_canaries_is_promoted_without_waves():
    run = replace(FRESH, canary=(("a",),), waves=(), stage="canary")
    after, commands = step(run, Ask(1.0, "promote", "ann"))
    assert (after.stage, commands) == ("promoted", (Keep(), Withdraw()))


@pytest.mark.parametrize(("flows", "after"), [(150, 0), (300, 1)])
def test_a_turn_passes_on_its_own_flows_not_on_those_of_the_turns_before(flows, after):
    gate = replace(GATE, denied_budget=3, least_seconds=0)
    run = replace(FRESH, stage="waves", gate=gate)
    seen = Evidence(
        heard=dict.fromkeys(FLEET, 1.0), in_force=frozenset(FLEET), flows=flows, denied=1, flows_in_all=5000
    )
    assert step(run, Look(1.0, seen))[0].at == after


def test_a_budget_above_one_is_measured_against_the_flows_of_the_whole_rollout():
    gate = replace(GATE, denied_budget=3)
    run = replace(FRESH, stage="waves", gate=gate)
    seen = Evidence(heard=dict.fromkeys(FLEET, 1.0), in_force=frozenset(FLEET), flows=10, denied=3)
    assert step(run, Look(1.0, seen))[0].stage == "rolled_back"
    assert step(run, Look(1.0, replace(seen, flows_in_all=5000)))[0].stage == "waves"
