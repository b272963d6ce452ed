"""What ingest lets through, as rules; and what a message of a host becomes."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain import intake
from aegisflux.domain.errors import Invalid, OverLimit
from aegisflux.domain.event import EventBatch, Log
from aegisflux.services.ingest.intake import BATCH, MAX_LETTERS, check
from aegisflux.wire.events import count_events, decode_batch, decode_loose, encode_batch
from tests.support.facts import NOON, SECOND, execed, flow


def batch(*events, host="web-1", **more):
    return EventBatch(host_id=host, boot_id="boot-1", sent_ns=NOON, events=events, **more)


def hundred():
    return [execed(n) if n % 2 else flow(n) for n in range(1, 101)]


def spoiled(places, **fields):
    """A batch of a hundred whose events at some places are not of the schema."""
    raw = msgspec.msgpack.decode(encode_batch(batch(*hundred())))
    for place in places:
        raw["events"][place] |= fields or {"time_ns": "yesterday"}
    return msgspec.msgpack.encode(raw)


def test_a_batch_in_which_all_is_well_goes_on_as_the_same_bytes():
    data = encode_batch(batch(*hundred()))
    outcome = check(data, "web-1", NOON)
    assert outcome.payload is data
    assert outcome.refused == ()
    assert outcome.msg_id == "web-1:boot-1:1-100:100"


def test_one_bad_event_in_a_hundred_is_refused_and_ninety_nine_go_on():
    outcome = check(spoiled([41]), "web-1", NOON)
    assert [event.seq for event in decode_batch(outcome.payload).events] == [
        n for n in range(1, 101) if n != 42
    ]
    (refusal,) = outcome.refused
    assert refusal.place == 41
    assert "time_ns" in refusal.reason
    again = decode_loose(refusal.payload)
    assert (again.host_id, again.boot_id, len(again.events)) == ("web-1", "boot-1", 1)
    assert msgspec.msgpack.decode(again.events[0])["seq"] == 42


def test_what_was_refused_is_refused_again_for_the_same_reason():
    (refusal,) = check(spoiled([3]), "web-1", NOON).refused
    again = check(refusal.payload, "web-1", NOON)
    assert again.payload is None
    assert again.refused[0].reason == refusal.reason


def test_a_mended_letter_goes_on():
    (refusal,) = check(spoiled([3]), "web-1", NOON).refused
    raw = msgspec.msgpack.decode(refusal.payload)
    raw["events"][0]["time_ns"] = NOON
    assert check(msgspec.msgpack.encode(raw), "web-1", NOON).batch.events[0].seq == 4


def test_many_bad_events_share_the_last_letter():
    outcome = check(spoiled(range(100)), "web-1", NOON)
    assert outcome.payload is None
    many = [execed(n) for n in range(1, 301)]
    raw = msgspec.msgpack.decode(encode_batch(batch(*many)))
    for event in raw["events"]:
        event["pid"] = -1
    outcome = check(msgspec.msgpack.encode(raw), "web-1", NOON)
    assert len(outcome.refused) == MAX_LETTERS + 1
    assert sum(refusal.events for refusal in outcome.refused) == 300
    assert len(decode_loose(outcome.refused[-1].payload).events) == 300 - MAX_LETTERS


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated"),
        (b"\xc1", "batch"),
        (b"\x81\xa1x" + b"\x91" * 100_000, "recursion"),
        (encode_batch(batch(execed(1), host="web-2")), "web-2"),
        (encode_batch(batch(execed(1), lost={f"n{n}": 1 for n in range(65)})), "lost"),
        (encode_batch(batch(execed(1))) + b"\x00", "trailing"),
        (bytes(600 << 10), "batch_bytes"),
        (encode_batch(batch(execed(1))).replace(b"boot-1", b"boot\xff1"), "utf-8"),
        (spoiled([0]).replace(b"web-1", b"web-2"), "web-2"),
    ],
)
def test_a_message_that_cannot_be_taken_is_refused_whole_with_its_bytes(data, words):
    outcome = check(data, "web-1", NOON)
    assert outcome.payload is None
    assert [(r.place, r.payload) for r in outcome.refused] == [(BATCH, data)]
    assert words in outcome.refused[0].reason


@pytest.mark.parametrize("bad", [[], [0]])
@pytest.mark.parametrize(
    ("field", "value"), [("sent_ns", -1), ("lost", {"ring": -1}), ("boot_id", ""), ("boot_id", "b" * 300)]
)
def test_a_bad_frame_around_good_events_is_refused_whole(bad, field, value):
    """And at once: whoever looks again and again at the same frame does so for ever."""
    raw = msgspec.msgpack.decode(spoiled(bad))
    raw[field] = value
    data = msgspec.msgpack.encode(raw)
    outcome = check(data, "web-1", NOON)
    assert outcome.payload is None
    assert (outcome.refused[0].place, outcome.refused[0].payload) == (BATCH, data)
    assert field in outcome.refused[0].reason


def test_sequences_that_do_not_rise_are_refused_and_the_others_go_on():
    outcome = check(encode_batch(batch(execed(1), execed(5), execed(5), execed(4), execed(6))), "web-1", NOON)
    assert [event.seq for event in outcome.batch.events] == [1, 5, 6]
    assert [refusal.reason for refusal in outcome.refused] == [
        "seq: expected above 5, got 5",
        "seq: expected above 5, got 4",
    ]


def test_the_future_begins_after_five_seconds_and_is_clamped_to_the_arrival():
    near, far = execed(1, NOON + 5 * SECOND), flow(2, NOON + 3600 * SECOND)
    outcome = check(encode_batch(batch(near, far)), "web-1", NOON)
    first, second = decode_batch(outcome.payload).events
    assert first == near
    assert (second.time_ns, second.first_ns, second.last_ns, second.clamped) == (NOON, NOON, NOON, True)
    assert outcome.clamped == 1
    assert outcome.refused == ()


@pytest.mark.parametrize("ahead", [6 * SECOND, 20 * 3600 * SECOND, (1 << 63) - 1 - NOON])
def test_a_flow_cannot_hide_the_future_in_its_last_packet(ahead):
    one = msgspec.structs.replace(flow(1), last_ns=NOON + ahead)
    (event,) = decode_batch(check(encode_batch(batch(one)), "web-1", NOON).payload).events
    assert (event.last_ns, event.clamped) == (NOON, True)


def test_the_host_is_never_taken_from_the_body():
    with pytest.raises(Invalid, match="web-1, which its subject proves"):
        intake.judge(batch(execed(1), host="db-1"), "web-1", NOON)
    with pytest.raises(OverLimit):
        intake.judge(batch(execed(1), lost={f"n{n}": 1 for n in range(65)}), "web-1", NOON)


EVENTS = st.lists(
    st.builds(
        lambda seq, ahead, text: Log(seq=seq, time_ns=NOON + ahead, source="t", message=text),
        st.integers(1, 30),
        st.integers(-(10**12), 10**12),
        st.text(max_size=20),
    ),
    min_size=1,
    max_size=20,
)


@given(EVENTS)
def test_every_event_goes_on_or_is_refused_and_what_goes_on_holds_the_rules(events):
    outcome = check(encode_batch(batch(*events)), "web-1", NOON)
    passed = decode_batch(outcome.payload).events
    assert len(passed) + sum(r.events for r in outcome.refused) == len(events)
    assert all(a.seq < b.seq for a, b in pairwise(passed))
    assert all(event.time_ns <= NOON + intake.FUTURE_NS for event in passed)
    assert check(outcome.payload, "web-1", NOON).payload is outcome.payload


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail(data):
    outcome = check(data, "web-1", NOON)
    assert outcome.payload is None or outcome.batch is not None


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_batch_is_judged_without_failing(at, byte):
    data = bytearray(encode_batch(batch(*hundred()[:4])))
    data[at % len(data)] = byte
    outcome = check(bytes(data), "web-1", NOON)
    assert outcome.payload is not None or outcome.refused


def test_a_clock_is_known_by_the_least_delay_of_the_last_minute():
    offsets = intake.Offsets()
    assert offsets.all() == {}
    assert offsets.observe("a", NOON, NOON - 3 * SECOND) == 3 * SECOND
    assert offsets.observe("a", NOON + SECOND, NOON - SECOND) == 2 * SECOND
    assert offsets.observe("a", NOON + 2 * SECOND, NOON - 9 * SECOND) == 2 * SECOND
    assert offsets.observe("b", NOON, NOON + SECOND) == -SECOND
    assert offsets.all() == {"a": 2 * SECOND, "b": -SECOND}
    later = NOON + 70 * SECOND
    assert offsets.observe("a", later, later - 5 * SECOND) == 5 * SECOND


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(-50, 50)), min_size=1, max_size=40))
def test_the_offset_is_never_above_the_newest_delay_nor_below_the_least(seen):
    offsets, arrival = intake.Offsets(), NOON
    least = min(delay for _, delay in seen)
    for pause, delay in seen:
        arrival += pause * SECOND
        found = offsets.observe("a", arrival, arrival - delay * SECOND)
        assert least * SECOND <= found <= delay * SECOND


def test_bytes_that_are_not_utf8_refuse_the_event_alone():
    data = encode_batch(batch(execed(1), execed(2, args=("marker",)))).replace(b"marker", b"mark\xff\xfe")
    outcome = check(data, "web-1", NOON)
    assert [event.seq for event in outcome.batch.events] == [1]
    assert "utf-8" in outcome.refused[0].reason
    assert b"mark\xff\xfe" in outcome.refused[0].payload


def test_a_host_begins_a_new_boot_now_and_then_and_the_known_ones_go_on():
    boots = intake.Boots()
    for number in range(intake.MAX_BOOTS):
        boots.check("a", f"boot-{number}", 0.0)
    with pytest.raises(OverLimit, match="host a; then one a minute: over the limit boots"):
        boots.check("a", "one more", 0.0)
    for number in range(intake.MAX_BOOTS):
        boots.check("a", f"boot-{number}", 1.0)
    boots.check("b", "boot", 1.0)
    boots.check("a", "one more", 60.0)
    with pytest.raises(OverLimit):
        boots.check("a", "and another", 60.0)


def test_events_are_counted_without_reading_them():
    assert count_events(encode_batch(batch(*(execed(n + 1) for n in range(7))))) == 7
    assert count_events(b"\xff" * 640) == 11
