"""Dead letters of a flooder have an end, and push out none of another's: not at once, not in the time for
which letters are kept, and not by many hosts that do the same."""

import re
from pathlib import Path

import pytest

from aegisflux.runtime.over_share import LETTER_COST, LETTERS, SAY_SECONDS, LetterRoom
from aegisflux.wire.subjects import DAY, DEAD_STREAMS, MAX_LETTER, STREAMS

ROOT = Path(__file__).parents[2]
DEAD = next(stream for stream in STREAMS if stream.name == "DEAD")
# Whose rooms a host can use: each consumer of what hosts publish has one, and each service one of its own.
CONSUMERS = [stream.name for stream in STREAMS if stream.of_hosts]
SERVICES = sorted(
    name
    for path in (ROOT / "src/aegisflux/services").rglob("*.py")
    for name in re.findall(r'letter_room\("(\w+)"\)', path.read_text())
)
ROOMS = len(CONSUMERS) + len(SERVICES)
AT_ONCE = ROOMS * LETTERS.burst
A_DAY = ROOMS * LETTERS.rate * DAY


def room(monkeypatch, now):
    said, counted = [], []
    monkeypatch.setattr("aegisflux.runtime.over_share.time.monotonic", lambda: now[0])
    return (
        LetterRoom("dead letters of a test", said.append, lambda queue, _count: counted.append(queue)),
        said,
        counted,
    )


def test_a_host_has_its_share_of_letters_and_is_named_now_and_then(monkeypatch):
    now = [0.0]
    letters, said, counted = room(monkeypatch, now)
    kept = sum(letters.take("flooder", 100_000) for _ in range(1000))
    assert kept == LETTERS.burst // (100_000 + LETTER_COST)
    assert letters.take("honest", 1_000_000)
    assert said == ["dead letters of a test: 1 over the share of their host: flooder 1"]
    assert counted == ["dead letters of a test"] * (1000 - kept)
    now[0] += SAY_SECONDS
    assert not letters.take("flooder", 100_000)
    lost = 1000 - kept
    assert said[1:] == [f"dead letters of a test: {lost} over the share of their host: flooder {lost}"]


@pytest.mark.parametrize("size", [0, 100, 5_000, 64_000, 500_000, MAX_LETTER, MAX_LETTER + 5_000], ids=str)
def test_letters_of_any_size_are_kept_and_never_more_than_the_share(monkeypatch, size):
    now = [0.0]
    letters, _, _ = room(monkeypatch, now)
    cost = min(size, MAX_LETTER) + LETTER_COST
    at_once = sum(letters.take("flooder", size) for _ in range(1000))
    assert at_once == LETTERS.burst // cost >= 1
    day = 0
    for _ in range(24 * 60):
        now[0] += 60
        day += sum(letters.take("flooder", size) for _ in range(3))
    assert (at_once + day) * cost <= LETTERS.burst + LETTERS.rate * 86_400


def test_no_host_and_no_few_hosts_push_out_the_letters_of_others():
    assert CONSUMERS == ["ACKS", "HEARTBEATS", "TELEMETRY", "INVENTORY"]
    assert SERVICES == ["enrich", "ingest", "orchestrator"]
    assert set(map(str.lower, CONSUMERS)) < set(DEAD_STREAMS)
    assert DEAD.max_bytes // AT_ONCE > 100, "hosts that fill the stream at once"
    assert AT_ONCE + A_DAY * (DEAD.max_age / DAY) < DEAD.max_bytes / 3, "one host, while letters are kept"


@pytest.mark.parametrize("page", ["adr/0038-each-host-has-a-share.md", "howto/look-at-dead-letters.md"])
def test_the_figures_of_the_documents_are_those_of_the_constants(page):
    text = " ".join((ROOT / "docs" / page).read_text().split())
    days = (DEAD.max_bytes - AT_ONCE) / A_DAY
    for figure in (
        f"{LETTERS.burst / (1 << 20):.0f} MiB of a host at once",
        f"{ROOMS} places",
        f"{DEAD.max_bytes >> 30} GiB",
        f"{A_DAY / 1e6:.1f} MB a day",
        f"{DEAD.max_bytes // AT_ONCE:.0f} hosts",
        f"{days:.0f} days",
    ):
        assert figure in text, figure
