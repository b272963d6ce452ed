"""A manifest always fits: what is assigned first, and what is left out is said."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.errors import OverLimit
from aegisflux.domain.manifest import MAX_SERVICES, ActiveRef, CandidateRef, HostManifest, ServiceState
from aegisflux.domain.manifest_room import (
    ROOM_BYTES,
    Wanted,
    fitted,
    left_out_text,
    most_bytes,
    overfull_text,
)

DIGEST = "sha256:" + "0" * 64
LONGEST = 510


def one(number, kind="offered", selectors=1, chars=20):
    active = ActiveRef(2**40, DIGEST, 2**33, 600, True) if kind == "assigned" else None
    candidate = CandidateRef(2**40, DIGEST) if kind in ("assigned", "beside") else None
    texts = tuple("x" * chars for _ in range(selectors))
    return ServiceState(number, f"s{number}".ljust(63, "x"), texts, active, candidate)


def some(kind, first, count, **size):
    return tuple(one(number, kind, **size) for number in range(first, first + count))


def size(service):
    return len(msgspec.msgpack.encode(service))


def numbers(services):
    return [service.service_id for service in services]


CASES = {  # what is wanted -> how many of each are in the manifest
    "a few": (Wanted(some("assigned", 1, 2), (), some("named", 3, 2), some("offered", 5, 2)), (2, 0, 2, 2)),
    "256": (Wanted(offered=some("offered", 1, 256)), (0, 0, 0, 256)),
    "257": (Wanted(offered=some("offered", 1, 257)), (0, 0, 0, 256)),
    "257 and a snapshot": (Wanted(some("assigned", 900, 1), offered=some("offered", 1, 257)), (1, 0, 0, 255)),
    "named ones come first": (Wanted(named=some("n", 900, 100), offered=some("o", 1, 300)), (0, 0, 100, 156)),
    "full of snapshots": (
        Wanted(some("assigned", 1, 256), some("beside", 300, 9), some("n", 400, 9), some("o", 500, 9)),
        (256, 0, 0, 0),
    ),
    "beside them": (
        Wanted(some("assigned", 1, 250), some("beside", 300, 9), some("n", 400, 9)), (250, 6, 0, 0),
    ),
    "long selectors": (Wanted(offered=some("o", 1, 80, selectors=32, chars=LONGEST)), (0, 0, 0, 59)),
    "a long one leaves the short ones": (
        Wanted(offered=(*some("o", 1, 70, selectors=32, chars=LONGEST), *some("o", 90, 10))), (0, 0, 0, 69),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_has_what_there_is_room_for(case):
    wanted, counts = CASES[case]
    found = fitted("h", wanted, size)
    taken = numbers(found.services)
    assert tuple(len(set(taken) & set(numbers(kind))) for kind in wanted) == counts
    assert taken == sorted(taken)
    assert sorted([*taken, *numbers(found.left_out)]) == sorted(n for kind in wanted for n in numbers(kind))
    said = left_out_text(found.left_out, len(taken))
    assert bool(said) == bool(found.left_out)
    assert not said or (
        f"{len(found.left_out)} of {sum(map(len, wanted))} services" in said and "256" in said
    )


TOO_MUCH = {
    "by number": (some("assigned", 1, 257), "services_per_host: at most 256, got 257"),
    "by bytes": (
        some("assigned", 1, 80, selectors=32, chars=LONGEST),
        f"manifest_bytes: at most {ROOM_BYTES}",
    ),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_is_assigned_is_never_left_out(case):
    assigned, said = TOO_MUCH[case]
    with pytest.raises(OverLimit, match=f"host h: over the limit {said}"):
        fitted("h", Wanted(assigned), size)


@given(
    st.lists(st.sampled_from(["assigned", "beside", "named", "offered"]), max_size=600),
    st.integers(0, 32), st.integers(1, LONGEST),
)  # fmt: skip
def test_an_agent_believes_it_and_nothing_assigned_is_missing(kinds, selectors, chars):
    found = {kind: [] for kind in ("assigned", "beside", "named", "offered")}
    for number, kind in enumerate(kinds):
        found[kind].append(one(number, kind, selectors, chars))
    wanted = Wanted(**found)
    try:
        fit = fitted("h", wanted, size)
    except OverLimit:
        held = found["assigned"]
        assert len(held) > MAX_SERVICES or sum(map(size, held)) > ROOM_BYTES
        return
    assert len(fit.services) <= MAX_SERVICES
    assert set(numbers(found["assigned"])) <= set(numbers(fit.services))
    assert len(msgspec.msgpack.encode(HostManifest("h", 1, 0, 1, fit.services))) <= ROOM_BYTES + 1024


@given(st.lists(st.text(max_size=255), max_size=32))
def test_no_service_is_longer_than_is_reckoned_when_it_is_assigned(selectors):
    whole = msgspec.structs.replace(one(2**32 - 1, "assigned"), selectors=tuple(selectors))
    assert size(whole) <= most_bytes(selectors)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("h1", 1, 257), "host h1 would be offered 257 services"),
        (("h1", 3, 300), "host h1 and 2 more would be offered 300 services"),
        (("", 0, 300), "every host would be offered 300 services"),
    ],
)
def test_a_service_that_hosts_cannot_be_offered_is_said(given, said):
    assert overfull_text(*given).startswith(said)
    assert "room for 256" in overfull_text(*given)
