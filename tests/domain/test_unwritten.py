"""What of a manifest is applied although it cannot be written: leases of what is in force, no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aegisflux.domain.converge import InForce
from aegisflux.domain.manifest import ActiveRef, CandidateRef, HostManifest, ServiceState
from aegisflux.domain.unwritten import renewed, taken_up

WALL = 1_700_000_000
WHY = ("disk_full", "disk full")
DIGESTS = tuple("sha256:" + digit * 64 for digit in "0123")
REF = ActiveRef(1, DIGESTS[0], WALL)
SERVICE = ServiceState(101, "web", ("cgroup:web",), REF)
OTHER = ServiceState(102, "db", ("cgroup:db",), replace(REF, digest=DIGESTS[1]))
BEFORE = HostManifest("web1", 7, WALL, WALL + 9, (SERVICE, OTHER))
LATER = replace(SERVICE, active=replace(REF, lease_until=WALL + 60))
LATER_OTHER = replace(OTHER, active=replace(OTHER.active, lease_until=WALL + 60))


def held(ref, lease=None):
    lease = ref.lease_until if lease is None else lease
    return InForce(ref.version, ref.digest, "", 1, lease, 0, 60, "enforce", "open", "keep")


def after(*services):
    return replace(BEFORE, serial=8, services=services)


SECOND = ActiveRef(2, DIGESTS[2], WALL + 60)


@pytest.mark.parametrize(
    ("wanted", "applied", "waits"),
    [
        ((SERVICE, OTHER), (SERVICE, OTHER), []),
        ((LATER, OTHER), (LATER, OTHER), []),
        ((OTHER, LATER), (LATER, OTHER), []),
        ((replace(SERVICE, active=replace(REF, lease_until=WALL - 1)), OTHER), (SERVICE, OTHER), [101]),
        ((replace(SERVICE, active=SECOND), LATER_OTHER), (SERVICE, LATER_OTHER), [101]),
        (
            (replace(LATER, active=replace(LATER.active, confirm_seconds=9)), LATER_OTHER),
            (LATER, LATER_OTHER),
            [101],
        ),
        ((replace(SERVICE, active=None), LATER_OTHER), (SERVICE, LATER_OTHER), [101]),
        ((replace(LATER, candidate=CandidateRef(2, DIGESTS[2])), OTHER), (LATER, OTHER), [101]),
        ((replace(LATER, selectors=("cgroup:x",)), OTHER), (LATER, OTHER), [101]),
        ((replace(LATER, probes=("127.0.0.1:1",)), OTHER), (LATER, OTHER), [101]),
        ((replace(LATER, name="www"), OTHER), (LATER, OTHER), [101]),
        ((LATER,), (LATER, OTHER), [102]),
        ((), (SERVICE, OTHER), [101, 102]),
        ((LATER, LATER_OTHER, replace(SERVICE, service_id=103)), (LATER, LATER_OTHER), [103]),
    ],
)
def test_what_is_applied_and_what_waits(wanted, applied, waits):
    found, behind = renewed(BEFORE, after(*wanted), {}, *WHY)
    assert found == after(*applied)
    assert [(one.service_id, one.reason) for one in behind] == [(number, "disk_full") for number in waits]


def test_what_was_good_is_prolonged_when_the_control_plane_goes_back_to_it():
    """Version 2 was wanted and failed; version 1 is in force."""
    before = replace(BEFORE, services=(replace(SERVICE, active=SECOND),))
    found, behind = renewed(before, after(LATER), {101: held(REF)}, *WHY)
    assert (found, behind) == (after(LATER), [])
    found, behind = renewed(before, after(LATER), {101: held(SECOND)}, *WHY)
    assert (found.services, [one.service_id for one in behind]) == (before.services, [101])


def test_without_a_durable_manifest_nothing_is_applied():
    found, behind = renewed(None, BEFORE, {}, *WHY)
    assert (found, [one.service_id for one in behind]) == (None, [None])


refs = st.builds(
    ActiveRef, st.integers(1, 2), st.sampled_from(DIGESTS), st.integers(WALL, WALL + 9), st.integers(0, 1)
)
candidates = st.none() | st.builds(CandidateRef, st.integers(1, 2), st.sampled_from(DIGESTS))
services = st.builds(
    ServiceState,
    st.integers(101, 105),
    st.sampled_from(["a", "b"]),
    st.sampled_from([("cgroup:a",), ("cgroup:a", "cgroup:b")]),
    st.none() | refs,
    candidates,
)
lists = st.lists(services, max_size=5, unique_by=lambda service: service.service_id).map(tuple)


@given(lists, lists, st.dictionaries(st.integers(101, 105), refs.map(held)))
def test_whatever_comes_a_renewed_lease_is_prolonged_and_nothing_else_changes(old, new, in_force):
    before, wanted = replace(BEFORE, services=old), after(*new)
    found, behind = renewed(before, wanted, in_force, *WHY)
    asked = {service.service_id: service for service in new}
    assert [one.service_id for one in found.services] == [one.service_id for one in old]
    for was, now in zip(old, found.services, strict=True):
        ref, to = was.active, getattr(asked.get(was.service_id), "active", None)
        force = in_force.get(was.service_id)
        names = {
            (one.version, one.digest): one for one in (force, ref) if ref is not None and one is not None
        }
        if to is None or (to.version, to.digest) not in names:
            assert now == was
            continue
        assert now.active.lease_until == max(to.lease_until, names[to.version, to.digest].lease_until)
        assert (now.active.version, now.active.digest) == (to.version, to.digest)
        assert replace(now, active=None) == replace(was, active=None)
    differ = {one.service_id for one in (*set(new) ^ set(found.services),)}
    assert {one.service_id for one in behind} == differ


@given(lists, st.dictionaries(st.integers(101, 105), refs.map(held)))
def test_a_restart_takes_up_the_longer_lease_of_the_same_content(old, in_force):
    manifest = replace(BEFORE, services=old)
    for was, now in zip(old, taken_up(manifest, in_force).services, strict=True):
        force = in_force.get(was.service_id)
        same = (
            was.active and force and (was.active.version, was.active.digest) == (force.version, force.digest)
        )
        if not same:
            assert now == was
            continue
        assert now.active.lease_until == max(was.active.lease_until, force.lease_until)
        assert replace(now, active=was.active) == was
