"""The map of own addresses on a real kernel: prefixes, namespaces that go, and no room."""

import os
import struct
from collections.abc import Iterator

import pytest

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.own import OwnMap, Prefix
from aegisflux.wire import layout

pytestmark = pytest.mark.bpf

LPM_TRIE, F_NO_PREALLOC, ROOM = 11, 1, 10


def v4(text: str) -> bytes:
    return bytes(10) + b"\xff\xff" + struct.pack("4B", *map(int, text.split(".")))


A, B, NET = (128, v4("10.0.0.1")), (128, v4("10.0.0.2")), (96 + 16, v4("10.9.0.0"))


@pytest.fixture
def fd() -> Iterator[int]:
    made = libbpf.map_create(LPM_TRIE, "own", layout.OWN_KEY.size, 1, ROOM, F_NO_PREALLOC)
    yield made
    os.close(made)


def asked(fd: int, number: int, address: bytes) -> int | None:
    """What the hooks see: 1 own, 0 not, None for a namespace that nobody knows."""
    found = libbpf.lookup(fd, layout.OWN_KEY.pack(layout.OWN_BITS, number, address), 1)
    return None if found is None else found[0]


@pytest.mark.parametrize(
    ("wanted", "answers"),
    [
        ((), {"10.0.0.1": 0, "10.9.3.4": 0}),
        ((A,), {"10.0.0.1": 1, "10.0.0.2": 0}),
        ((A, NET), {"10.0.0.1": 1, "10.9.0.0": 1, "10.9.255.255": 1, "10.10.0.0": 0}),
        (((96, v4("0.0.0.0")),), {"10.0.0.1": 1, "192.0.2.1": 1}),
        (((0, bytes(16)),), {"10.0.0.1": 0}),
    ],
)
def test_an_address_is_own_by_the_longest_prefix(
    fd: int, wanted: tuple[Prefix, ...], answers: dict[str, int]
) -> None:
    own = OwnMap(fd)
    assert not own.put({7: wanted}).without_room
    assert {text: asked(fd, 7, v4(text)) for text in answers} == answers
    assert asked(fd, 8, v4("10.0.0.1")) is None, "of a namespace that was not read"


def test_what_is_not_own_any_more_goes(fd: int) -> None:
    own = OwnMap(fd)
    own.put({7: (A, B)})
    own.put({7: (B,)})
    assert (asked(fd, 7, A[1]), asked(fd, 7, B[1])) == (0, 1)


def test_another_process_reads_what_is_there_and_takes_out_the_dead(fd: int) -> None:
    OwnMap(fd).put({7: (A,), 8: (B,)})
    own = OwnMap(fd)
    own.read()
    assert own.keep_only([8]).pruned == 1
    assert len(libbpf.keys(fd, layout.OWN_KEY.size)) == 3
    assert (asked(fd, 7, A[1]), asked(fd, 8, B[1])) == (None, 1)


def test_a_namespace_without_room_is_unknown_and_the_others_are_not_lost(fd: int) -> None:
    many = {(128, v4(f"10.1.0.{i}")) for i in range(ROOM)}
    own = OwnMap(fd)
    assert own.put({7: (A,), 8: many, 9: (B,)}).without_room == (8,)
    assert (asked(fd, 7, A[1]), asked(fd, 9, B[1])) == (1, 1)
    assert {asked(fd, 8, address) for _, address in many} == {None}
    assert not own.put({8: (A, B)}).without_room, "it fits now"
