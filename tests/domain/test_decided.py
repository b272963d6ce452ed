"""What lines say of decisions, each as its row says it."""

import pytest

from aegisflux.domain.audit import Entry
from aegisflux.domain.decided import (
    CHANGE,
    ENDED_DOUBTED,
    NONE,
    PLAN,
    ROLLOUT,
    UNTOLD,
    believed_by,
    decided,
    made_text,
    plan_texts,
    rollout_texts,
    with_made,
)
from aegisflux.domain.rights import Rights

RUN = {"stage": "observe", "at": 0, "reason": "approved", "gate": {"denied_budget": 0}}
ROWS = {
    "plan": (dict.fromkeys(PLAN, "x"), PLAN),
    "change": (dict.fromkeys(CHANGE, "x"), CHANGE),
    "rollout": (dict.fromkeys(ROLLOUT, "x") | {"run": RUN}, ROLLOUT),
}
MADE = "made sha256:" + "0" * 32


@pytest.mark.parametrize(
    ("kind", "column"), [(kind, c) for kind, (_, columns) in ROWS.items() for c in columns]
)
def test_each_column_counts(kind, column):
    row, columns = ROWS[kind]
    assert made_text(row | {column: "other"}, columns) != made_text(row, columns)
    assert made_text(row | {"more": 1}, columns) == made_text(row, columns)


def test_only_the_words_of_a_run_may_change():
    row, columns = ROWS["rollout"]
    assert made_text(row | {"run": RUN | {"reason": "waits"}}, columns) == made_text(row, columns)
    for change in ({"stage": "waves"}, {"at": 1}, {"gate": {"denied_budget": 9}}, {"more": 1}):
        assert made_text(row | {"run": RUN | change}, columns) != made_text(row, columns)


LINES = {
    "a plan": (
        Entry("op", "segment.plan", "plan/1", after="sha256:a", reason=with_made("policy sha256:b", MADE)),
        {"plan/1": "sha256:a", "plan/1/policy": "policy sha256:b", "plan/1/made": MADE},
    ),
    "an older plan": (
        Entry("op", "segment.plan", "plan/1", after="sha256:a", reason="policy sha256:b"),
        {"plan/1": "sha256:a", "plan/1/policy": "policy sha256:b", "plan/1/made": UNTOLD},
    ),
    "an approval": (
        Entry("b", "segment.approve", "plan/1", after="sha256:a by token/7"),
        {"plan/1": "sha256:a, approved by b", "plan/1/approver": "token/7"},
    ),
    "a change": (
        Entry("op", "service.ask", "service/7", after="web [] {}", reason=with_made("why; it waits", MADE)),
        {"service/7/change": "web [] {}", "service/7/change/made": MADE},
    ),
    "a change that is approved": (
        Entry("b", "service.put", "service/7", after="web [] {}", reason="change 4 of op"),
        {"service/7/change": NONE, "service/7/change/made": NONE},
    ),
    "a service that an admin changes": (Entry("b", "service.put", "service/7", after="web [] {}"), {}),
    "a step of a rollout": (
        Entry("system", "rollout.waves", "rollout/3", after=with_made("turn 1", MADE), reason="passed"),
        {"rollout/3": "waves", "rollout/3/made": MADE},
    ),
    "an older step": (
        Entry("system", "rollout.waves", "rollout/3", after="turn 1"),
        {"rollout/3": "waves", "rollout/3/made": UNTOLD},
    ),
    "a step of what was not believed": (
        Entry("op", "rollout.aborted", "rollout/3", after=with_made("turn 0", ENDED_DOUBTED)),
        {"rollout/3": "aborted", "rollout/3/made": ENDED_DOUBTED},
    ),
    "a renewal": (
        Entry("system", "rollout.renewed", "rollout/3", after=with_made("sha256:c", MADE)),
        {"rollout/3/made": MADE},
    ),
    "a step that was overtaken": (Entry("op", "rollout.overtaken", "rollout/3", after="waves"), {}),
}


@pytest.mark.parametrize("what", LINES)
def test_what_a_line_decides(what):
    entry, found = LINES[what]
    assert dict(decided(entry)) == found
    rights = Rights()
    rights.take(entry)
    assert rights.decided == {k: v for k, v in found.items() if v != NONE and believed_by(k)}


def test_a_row_is_believed_as_its_last_line_says_and_as_nothing_else():
    row = ROWS["rollout"][0] | {"id": 3, "stage": "waves"}
    texts, rights = rollout_texts(row), Rights()
    assert all(rights.doubt_of(name, text) for name, text in texts.items())
    rights.take(Entry("s", "rollout.waves", "rollout/3", after=with_made("turn 1", texts["rollout/3/made"])))
    assert not any(rights.doubt_of(name, text) for name, text in texts.items())
    rights.take(Entry("s", "rollout.aborted", "rollout/3", after=with_made("turn 0", ENDED_DOUBTED)))
    assert all(rights.doubt_of(name, text) for name, text in texts.items())


def test_a_body_that_is_not_the_one_of_its_digest_is_said():
    row = ROWS["plan"][0] | {"id": 1, "body": {}, "approved_by": None, "approver": None, "accepted": False}
    assert "under the name x" in plan_texts(row)["plan/1"]
