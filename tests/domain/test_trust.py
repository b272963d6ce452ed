"""What an agent is told and must not believe: one test for each attack, named after it."""

from types import SimpleNamespace

import msgspec
import pytest
from nacl.signing import SigningKey

from aegisflux.agent import contents
from aegisflux.domain.manifest import ActiveRef, CandidateRef, HostManifest, KeySet, PublicKey, ServiceState
from aegisflux.domain.trust import (
    Nacked,
    NotOurs,
    Signed,
    accept_confirm,
    accept_content,
    accept_keys,
    accept_manifest,
    check_signature,
    now_of,
)
from aegisflux.wire import canonical, envelope
from aegisflux.wire.content import unpacked
from support.agents import FOREVER, WALL, Plane, body, edges, sha, signer, verify

DIGEST = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64


@pytest.fixture
def plane():
    return Plane(wall=lambda: WALL)


def service(digest=DIGEST, version=1, lease=WALL + 600, **changes) -> ServiceState:
    return ServiceState(101, "web", (), active=ActiveRef(version, digest, lease), **changes)


def accepted(trusted, signed: Signed, wall=WALL):
    return accept_manifest(trusted, signed, sha(signed.payload), wall, verify)


def signed(plane, manifest, **how) -> Signed:
    return envelope.opened(plane.seal(envelope.MANIFEST, manifest, **how), envelope.MANIFEST)


def refused(call, *args) -> Nacked:
    with pytest.raises(Nacked) as caught:
        call(*args)
    return caught.value


def test_a_good_manifest_is_believed(plane):
    known, manifest = accepted(plane.trusted(), signed(plane, plane.manifest(service())))
    assert (known.serial, known.clock_floor, known.digests) == (1, WALL, {"101/1": DIGEST})
    assert manifest.services[0].active.digest == DIGEST


def test_forged_by_a_key_of_the_same_name(plane):
    forged = signed(plane, plane.manifest(service()), key=SigningKey.generate())
    assert refused(accepted, plane.trusted(), forged).reason == "bad_signature"


def test_signed_by_an_unknown_key(plane):
    forged = signed(plane, plane.manifest(service()), key=SigningKey.generate(), key_id="mallory")
    assert refused(accepted, plane.trusted(), forged).reason == "unknown_key"


def test_one_changed_byte(plane):
    good = signed(plane, plane.manifest(service()))
    payload = good.payload[:-1] + bytes([good.payload[-1] ^ 1])
    bytes_ = envelope.pae(envelope.MANIFEST, payload)
    assert (
        refused(accepted, plane.trusted(), Signed(payload, bytes_, good.signatures)).reason == "bad_signature"
    )


def test_signature_of_another_type_of_message(plane):
    manifest = msgspec.msgpack.encode(plane.manifest(service()))
    confused = plane.seal(envelope.CONFIRM, manifest)
    moved = envelope.Envelope(envelope.MANIFEST, confused.payload, confused.signatures)
    assert (
        refused(accepted, plane.trusted(), envelope.opened(moved, envelope.MANIFEST)).reason
        == "bad_signature"
    )
    assert refused(envelope.opened, confused, envelope.MANIFEST).reason == "bad_schema"


def test_without_any_signature(plane):
    payload = msgspec.msgpack.encode(plane.manifest(service()))
    bare = Signed(payload, envelope.pae(envelope.MANIFEST, payload), ())
    assert refused(accepted, plane.trusted(), bare).reason == "unknown_key"


def test_signature_of_the_wrong_length(plane):
    good = signed(plane, plane.manifest(service()))
    short = Signed(good.payload, good.signed_bytes, ((plane.key_id, b"short"),))
    assert refused(accepted, plane.trusted(), short).reason == "bad_signature"


def test_made_for_a_foreign_host(plane):
    foreign = signed(plane, plane.manifest(service(), host_id="web2"))
    assert refused(accepted, plane.trusted(), foreign).reason == "wrong_audience"


def test_expired(plane):
    old = signed(plane, plane.manifest(service(), not_after=WALL))
    assert refused(accepted, plane.trusted(), old).reason == "expired"


def test_expired_by_the_highest_time_accepted_although_the_clock_was_set_back(plane):
    old = signed(plane, plane.manifest(service(), not_after=WALL))
    assert refused(accepted, plane.trusted(clock_floor=WALL + 1), old, WALL - 10**6).reason == "expired"


def test_replayed_older_manifest(plane):
    first, second = signed(plane, plane.manifest(service())), signed(plane, plane.manifest(service()))
    known, _ = accepted(plane.trusted(), second)
    error = refused(accepted, known, first)
    assert (error.reason, error.serial) == ("stale_serial", 1)


def test_the_same_bytes_again_are_no_attack(plane):
    message = signed(plane, plane.manifest(service()))
    known, _ = accepted(plane.trusted(), message)
    assert accepted(known, message)[0] == known


def test_equivocation_two_manifests_of_one_serial(plane):
    known, _ = accepted(plane.trusted(), signed(plane, plane.manifest(service(), serial=5)))
    two = signed(plane, plane.manifest(service(lease=WALL + 601), serial=5))
    assert refused(accepted, known, two).reason == "equivocation"


def test_equivocation_two_digests_of_one_version(plane):
    known, _ = accepted(plane.trusted(), signed(plane, plane.manifest(service())))
    two = signed(plane, plane.manifest(service(OTHER)))
    assert refused(accepted, known, two).reason == "equivocation"


def test_equivocation_between_active_and_candidate(plane):
    both = plane.manifest(service(candidate=CandidateRef(1, OTHER)))
    assert refused(accepted, plane.trusted(), signed(plane, both)).reason == "equivocation"


def test_oversize(plane):
    huge = plane.manifest(ServiceState(101, "x" * (1 << 20), ()))
    assert refused(accepted, plane.trusted(), signed(plane, huge)).reason == "over_limit"
    raw = plane.message(huge) * 2
    assert refused(envelope.decode_manifest_message, raw, 1 << 20).reason == "over_limit"


def test_more_services_than_a_host_has(plane):
    many = plane.manifest(*(ServiceState(i, "s", ()) for i in range(257)))
    assert refused(accepted, plane.trusted(), signed(plane, many)).reason == "over_limit"


def test_a_lease_without_end(plane):
    endless = plane.manifest(service(lease=WALL + 31 * 86_400))
    assert refused(accepted, plane.trusted(), signed(plane, endless)).reason == "over_limit"


def test_issued_in_the_far_future_to_move_the_clock(plane):
    future = plane.manifest(service(), issued_at=WALL + 31 * 86_400, not_after=FOREVER)
    assert refused(accepted, plane.trusted(), signed(plane, future)).reason == "over_limit"


def test_one_service_twice(plane):
    twice = plane.manifest(service(), service(version=2, digest=OTHER))
    assert refused(accepted, plane.trusted(), signed(plane, twice)).reason == "bad_schema"


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x81\xa7host_id\xa4web1", b"[" * 10_000])
def test_not_a_manifest(plane, payload):
    sealed = plane.seal(envelope.MANIFEST, payload)
    assert (
        refused(accepted, plane.trusted(), envelope.opened(sealed, envelope.MANIFEST)).reason == "bad_schema"
    )


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", b"\xff" * 100])
def test_not_an_envelope(data):
    assert refused(envelope.decode_manifest_message, data, 1 << 20).reason == "bad_schema"


def test_a_digest_that_is_none(plane):
    odd = plane.manifest(service("sha256:nothex"))
    assert refused(accepted, plane.trusted(), signed(plane, odd)).reason == "bad_schema"


# Keys


def key_set(plane, keys: KeySet, root=None) -> Signed:
    sealed = envelope.seal(envelope.KEY_SET, msgspec.msgpack.encode(keys), "root", signer(root or plane.root))
    return envelope.opened(sealed, envelope.KEY_SET)


def test_rotated_keys_are_taken_from_the_root_only(plane):
    new = SigningKey.generate()
    keys = KeySet(2, (PublicKey("k2", bytes(new.verify_key), 0, FOREVER),))
    forged = key_set(plane, keys, root=plane.key)
    assert refused(accept_keys, plane.trusted(), forged, verify).reason == "bad_signature"
    trusted = accept_keys(plane.trusted(), key_set(plane, keys), verify)
    message = signed(plane, plane.manifest(service()), key=new, key_id="k2")
    assert accepted(trusted, message)[0].serial == 1
    old = signed(plane, plane.manifest(service()))
    assert refused(accepted, trusted, old).reason == "unknown_key"


def test_an_older_key_set_brings_no_revoked_key_back(plane):
    newer = plane.trusted(keys=plane.key_set(version=2))
    assert (
        refused(accept_keys, newer, key_set(plane, plane.key_set(version=1)), verify).reason == "stale_serial"
    )


def test_equivocation_two_key_sets_of_one_version(plane):
    other = KeySet(1, (PublicKey("k2", bytes(SigningKey.generate().verify_key), 0, FOREVER),))
    assert refused(accept_keys, plane.trusted(), key_set(plane, other), verify).reason == "equivocation"


@pytest.mark.parametrize(("not_before", "not_after"), [(0, WALL), (WALL + 1, FOREVER)])
def test_a_key_outside_of_its_time(plane, not_before, not_after):
    key = PublicKey("k1", bytes(plane.key.verify_key), not_before, not_after)
    trusted = plane.trusted(keys=KeySet(1, (key,)))
    assert refused(accepted, trusted, signed(plane, plane.manifest(service()))).reason == "unknown_key"


FAULTS = {
    "size": ("over_limit", True), "signature": ("bad_signature", True), "audience": ("wrong_audience", True),
    "schema": ("bad_schema", False), "serial": ("stale_serial", False), "expiry": ("expired", False),
    "limits": ("over_limit", False),
}  # fmt: skip


@pytest.mark.parametrize("first", FAULTS)
def test_of_all_faults_of_a_manifest_the_first_is_found_and_what_is_not_ours_is_dropped(plane, first):
    """The order that SECURITY.md names: each manifest has the fault and all that come behind it."""
    faults = list(FAULTS)[list(FAULTS).index(first) :]
    manifest = plane.manifest(
        *(ServiceState(number, "s", ()) for number in range(257 if "limits" in faults else 1)),
        host_id="web2" if "audience" in faults else "web1",
        serial=1 if "serial" in faults else 6,
        not_after=WALL if "expiry" in faults else WALL + 600,
    )
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(manifest))
    if "schema" in faults:
        fields["services"] = 7
    if "size" in faults:
        fields["services"] = "x" * (1 << 20)
    key = SigningKey.generate() if "signature" in faults else None
    sealed = plane.seal(envelope.MANIFEST, msgspec.msgpack.encode(fields), key)
    found = refused(accepted, plane.trusted(serial=5), envelope.opened(sealed, envelope.MANIFEST))
    assert (found.reason, isinstance(found, NotOurs)) == FAULTS[first]


# Contents


def content_of(plane, **fields):
    made = plane.content(body(1, edges=edges("10.0.0.0/8 tcp/443"), **fields))
    sealed = envelope.opened(envelope.decode_envelope(plane.sealed[made.digest], 1 << 26), envelope.CONTENT)
    return made, sealed, unpacked(sealed.payload)


def take(plane, sealed, plain, wanted):
    return accept_content(plane.trusted(), sealed, plain, wanted, WALL, verify)


def test_a_good_content_is_believed(plane):
    made, sealed, plain = content_of(plane)
    assert take(plane, sealed, plain, CandidateRef(1, made.digest)) == made


def test_another_content_under_the_wanted_name(plane):
    _, sealed, plain = content_of(plane)
    assert refused(take, plane, sealed, plain, CandidateRef(1, DIGEST)).reason == "bad_schema"


def test_content_forged(plane):
    made, _, plain = content_of(plane)
    forged = envelope.opened(
        plane.seal(envelope.CONTENT, canonical.packed(made), SigningKey.generate()), envelope.CONTENT
    )
    assert refused(take, plane, forged, plain, CandidateRef(1, made.digest)).reason == "bad_signature"
    assert refused(check_signature, plane.trusted(), forged, WALL, verify).reason == "bad_signature"


def test_nothing_is_decompressed_before_its_signature_held(plane, monkeypatch):
    made, _, _ = content_of(plane)
    forged = envelope.encode(plane.seal(envelope.CONTENT, canonical.packed(made), SigningKey.generate()))
    decompressed = []
    monkeypatch.setattr(contents, "unpacked", lambda payload: decompressed.append(payload) or b"")
    parts = SimpleNamespace(wall=lambda: WALL, verify=verify)
    verified, ref = contents.Contents(parts, None)._verified, CandidateRef(1, made.digest)
    assert refused(verified, plane.trusted(), 101, ref, forged).reason == "bad_signature"
    assert not decompressed
    assert refused(verified, plane.trusted(), 101, ref, plane.sealed[made.digest]).reason == "bad_schema"
    assert len(decompressed) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tables_format": 2}, "unsupported_format"),
        ({"entries": 100_001}, "over_limit"),
        ({"tables_digest": DIGEST}, "bad_schema"),
    ],
)
def test_content_that_cannot_be_applied(plane, change, reason):
    made, _, _ = content_of(plane)
    odd = msgspec.structs.replace(made, **change)
    sealed = envelope.opened(plane.seal(envelope.CONTENT, canonical.packed(odd)), envelope.CONTENT)
    plain = unpacked(sealed.payload)
    assert refused(take, plane, sealed, plain, CandidateRef(1, made.digest)).reason == reason


# Confirmations


def test_a_confirmation_for_another_host_or_by_another_key(plane):
    made, _, _ = content_of(plane)
    good = envelope.opened(envelope.decode_envelope(plane.confirm(made), 1 << 20), envelope.CONFIRM)
    assert accept_confirm(plane.trusted(), good, WALL, verify).digest == made.digest
    foreign = envelope.decode_envelope(plane.confirm(made, host_id="web2"), 1 << 20)
    opened = envelope.opened(foreign, envelope.CONFIRM)
    assert refused(accept_confirm, plane.trusted(), opened, WALL, verify).reason == "wrong_audience"
    plane.key = SigningKey.generate()
    forged = envelope.opened(envelope.decode_envelope(plane.confirm(made), 1 << 20), envelope.CONFIRM)
    known = Plane(wall=lambda: WALL).trusted()
    assert refused(accept_confirm, known, forged, WALL, verify).reason == "bad_signature"


def test_time_never_runs_backwards(plane):
    assert now_of(plane.trusted(clock_floor=WALL), WALL - 5) == WALL
    assert now_of(plane.trusted(clock_floor=WALL), WALL + 5.9) == WALL + 5


def test_a_manifest_survives_a_round_trip(plane):
    manifest = plane.manifest(service())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(manifest), type=HostManifest) == manifest
