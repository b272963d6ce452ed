"""What is refused, by the path of the field; what is canonical."""

from typing import Any

import msgspec
import pytest

from aegisflux.domain.errors import Invalid, OverLimit
from aegisflux.domain.snapshot import decode, from_builtins, warnings_of

MINIMAL = {"version": 7, "service_id": 101, "ttl_seconds": 3600}

REFUSED = [
    (
        {"edges": [{"dst_cidr": "10.0.0.300/8", "proto": "tcp", "port": 1}]},
        'edges[0].dst_cidr: expected an IPv4 or IPv6 CIDR, got "10.0.0.300/8"',
    ),
    (
        {"edges": [{"dst_cidr": "10.0.0.1", "proto": "tcp", "port": 1}]},
        "edges[0].dst_cidr: expected an IPv4 or IPv6 CIDR",
    ),
    ({"edges": [{"dst_cidr": "10.0.0.0/33", "proto": "tcp", "port": 1}]}, "edges[0].dst_cidr: expected"),
    (
        {"edges": [{"dst_cidr": "10.0.0.0/8", "proto": "icmp", "port": 1}]},
        'edges[0].proto: expected one of any, tcp, udp, got "icmp"',
    ),
    (
        {"edges": [{"dst_cidr": "10.0.0.0/8", "proto": "tcp", "port": 65536}]},
        "edges[0].port: expected an integer <= 65535, got 65536",
    ),
    (
        {"edges": [{"dst_cidr": "10.0.0.0/8", "proto": "tcp", "port": "443"}]},
        'edges[0].port: expected an integer, got "443"',
    ),
    (
        {"edges": [{"dst_cidr": "10.0.0.0/8", "proto": "tcp"}]},
        "edges[0].port: expected a value (the field is required), got",
    ),
    ({"edges": {}}, "edges: expected an array, got an object of 0"),
    ({"edges": None}, "edges: expected an array, got null"),
    ({"edgs": []}, 'edgs: expected no such field, got "edgs"'),
    ({"version": 0}, "version: expected an integer >= 1, got 0"),
    ({"version": 1.5}, "version: expected an integer, got 1.5"),
    ({"version": True}, "version: expected an integer, got true"),
    ({"service_id": -1}, "service_id: expected an integer >= 0, got -1"),
    ({"service_id": 2**32}, "service_id: expected an integer <= 4294967295"),
    ({"ttl_seconds": 59}, "ttl_seconds: expected an integer >= 60, got 59"),
    ({"ttl_seconds": 2_592_001}, "ttl_seconds: expected an integer <= 2592000"),
    ({"mode": "audit"}, "mode: expected one of enforce, observe"),
    ({"ingress": None}, "ingress: expected an array"),
    ({"version": 2**53}, "version: expected an integer <= 9007199254740991"),
    ({"on_expiry": "shut"}, "on_expiry: expected one of closed, open"),
    ({"established": "drop"}, "established: expected one of cut, keep"),
    ({"meta": []}, "meta: expected an object, got an array of 0"),
    ({"meta": {"a": "x" * 70_000}}, "meta: over the limit meta_bytes"),
    (
        {"deny": [{"cidr": "::/0", "proto": "any", "port": 0}]},
        "deny[0].direction: expected a value (the field is required)",
    ),
    (
        {"deny": [{"cidr": "fe80::1%eth0/64", "proto": "any", "port": 0, "direction": "both"}]},
        "deny[0].cidr: expected an IPv4",
    ),
]


LISTS = {"edges": "dst_cidr", "allow_cidrs": "cidr", "ingress": "src_cidr", "deny": "cidr"}
BAD = {
    "cidr": ["10.0.0.1", "10.0.0.0/33", "::/129", "010.0.0.0/8", "fe80::1%eth0/64", "", None, 7],
    "proto": ["icmp", "TCP", None, 6],
    "port": [-1, 65_536, 1.5, "443", None, True],
    "direction": ["in", None, 1],
    "extra": [1],
}


def _bad_entries() -> list[tuple[str, str, Any]]:
    found = []
    for name, cidr in LISTS.items():
        for field, values in BAD.items():
            if field != "direction" or name == "deny":
                found += [(name, cidr if field == "cidr" else field, value) for value in values]
    return found


@pytest.mark.parametrize(("name", "field", "value"), _bad_entries())
def test_a_bad_field_of_an_entry_is_refused_by_its_path(name: str, field: str, value: Any) -> None:
    good = {LISTS[name]: "10.0.0.0/8", "proto": "tcp", "port": 443}
    good |= {"direction": "both"} if name == "deny" else {}
    from_builtins({**MINIMAL, name: [good]})
    with pytest.raises(Invalid) as err:
        decode(msgspec.json.encode({**MINIMAL, name: [good, {**good, field: value}]}))
    assert str(err.value).startswith(f"{name}[1].{field}: expected "), err.value


@pytest.mark.parametrize("name", LISTS)
def test_a_missing_field_of_an_entry_is_named(name: str) -> None:
    good = {LISTS[name]: "10.0.0.0/8", "proto": "tcp", "port": 443, "direction": "both"}
    for field in good if name == "deny" else list(good)[:3]:
        entry = {k: v for k, v in good.items() if k != field and (k != "direction" or name == "deny")}
        with pytest.raises(Invalid, match=rf"^{name}\[0\]\.{field}: expected a value"):
            from_builtins({**MINIMAL, name: [entry]})


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[m[:40] for _, m in REFUSED])
def test_a_bad_field_is_refused_by_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises((Invalid, OverLimit)) as err:
        decode(msgspec.json.encode({**MINIMAL, **change}))
    assert str(err.value).startswith(message)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"7", b"{", b'{"version": 1', b"\xff\xfe", b'"x"', b"[" * 100_000]
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(Invalid, match="JSON object"):
        decode(body)


@pytest.mark.parametrize("name", ["version", "service_id", "ttl_seconds"])
def test_a_missing_required_field_is_named(name: str) -> None:
    with pytest.raises(Invalid, match=f"^{name}: expected a value"):
        from_builtins({k: v for k, v in MINIMAL.items() if k != name})


def test_the_minimal_body_is_valid_and_warned_of() -> None:
    snapshot = from_builtins(MINIMAL)
    assert snapshot.ingress is msgspec.UNSET
    assert "all egress but the failsafe" in warnings_of(snapshot)[0]


def test_entries_are_masked_unmapped_sorted_and_single() -> None:
    def edge(cidr: str) -> dict[str, Any]:
        return {"dst_cidr": cidr, "proto": "tcp", "port": 443}

    snapshot = from_builtins(
        {
            **MINIMAL,
            "edges": [
                edge("2001:DB8::1/32"),
                edge("::ffff:10.2.3.4/104"),
                edge("10.0.0.1/8"),
                edge("9.9.9.9/32"),
            ],
        }
    )
    assert [e.dst_cidr for e in snapshot.edges] == ["9.9.9.9/32", "10.0.0.0/8", "2001:db8::/32"]


def test_more_entries_than_the_limit_are_refused_by_its_name() -> None:
    edges = [{"dst_cidr": "10.0.0.0/8", "proto": "tcp", "port": 1}] * 100_001
    with pytest.raises(OverLimit, match="entries: at most 100000, got 100001"):
        from_builtins({**MINIMAL, "edges": edges})


def test_meta_that_is_too_deep_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"x": deep}
    with pytest.raises(Invalid, match="meta: expected at most 16 levels"):
        from_builtins({**MINIMAL, "meta": deep})
