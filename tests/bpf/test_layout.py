"""The Python mirror against the structures that the programs were compiled with."""

import random
import re
import struct
from itertools import pairwise

import pytest
from hypothesis import given

from aegisflux.adapters.datapath.bpf.pins import object_path
from aegisflux.domain.compile import compile_tables
from aegisflux.wire import layout
from tests.bpf.btf import Shape, shapes
from tests.conftest import REPOSITORY
from tests.support.snapshots import random_ruleset, seeds

HEADER = REPOSITORY / "bpf" / "aegis_maps.h"
PAIRS = {
    "descriptor": layout.DESCRIPTOR,
    "identity": layout.IDENTITY,
    "control": layout.CONTROL,
    "state": layout.STATE,
    "udp_key": layout.UDP_KEY,
    "udp_flow": layout.UDP_FLOW,
    "failsafe_rule": layout.FAILSAFE_RULE,
    "own_key": layout.OWN_KEY,
    "listener_key": layout.LISTENER_KEY,
    "denied": layout.DENIED,
    "flow_key": layout.FLOW_KEY,
    "flow_count": layout.FLOW_COUNT,
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, Shape]:
    return shapes(object_path())


def offsets(form: struct.Struct) -> list[int]:
    """Where each field of a mirror begins, padding and arrays as one."""
    found, at = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", form.format):
        size = struct.calcsize("<" + count + code)
        if code != "x":
            found.append(at)
        at += size
    return found


@pytest.mark.bpf
@pytest.mark.parametrize("name", PAIRS)
def test_a_mirror_has_the_size_and_the_fields_of_its_structure(compiled: dict[str, Shape], name: str) -> None:
    shape, form = compiled[name], PAIRS[name]
    assert form.size == shape.size
    starts = {at for field, at in shape.fields.items() if not field.startswith("zero")}
    ours = set(offsets(form))
    inner = {at for at in ours if at not in starts}
    assert starts <= ours | inner_words(shape, form)
    assert inner <= inner_words(shape, form) | zeros(shape)


def inner_words(shape: Shape, form: struct.Struct) -> set[int]:
    """Elements of arrays, which a mirror may list one by one or group with neighbours of their kind."""
    at = [*sorted(shape.fields.values()), form.size]
    return {o for a, b in pairwise(at) for o in range(a, b, 4)} | set(at)


def zeros(shape: Shape) -> set[int]:
    return {at for field, at in shape.fields.items() if field.startswith("zero")}


@pytest.mark.bpf
def test_a_list_of_failsafe_rules_is_its_head_and_its_rules(compiled: dict[str, Shape]) -> None:
    rules = layout.MAX_FAILSAFE * layout.FAILSAFE_RULE.size
    assert compiled["failsafe_list"].size == layout.FAILSAFE_LIST.size + rules
    assert compiled["failsafe_list"].fields["rules"] == layout.FAILSAFE_LIST.size


def test_constants_are_those_of_the_header() -> None:
    text = HEADER.read_text()
    plain = re.findall(r"^#define (\w+) (0x[0-9a-f]+|\d+)\b", text, re.M)
    defined = {n: int(v, 0) for n, v in plain}
    defined |= {n: 1 << int(v) for n, v in re.findall(r"^#define (\w+) \(1 << (\d+)\)", text, re.M)}
    ours = {n: v for n, v in vars(layout).items() if n.isupper() and isinstance(v, int)}
    shared = set(ours) & set(defined)
    assert {n: ours[n] for n in shared} == {n: defined[n] for n in shared}
    assert {"BLOCK", "MAX_SLOTS", "W_DENY", "W_REFUSED", "D_KEEP", "CB_TCP", "MAX_PATH", "COUNTERS"} <= shared
    named = {int(v): n.lower() for n, v in re.findall(r"^\t([A-Z_]+) = (\d+),", text, re.M)}
    assert {number: named[number] for number in layout.REASONS} == layout.REASONS
    assert defined["AEGIS_LAYOUT"] == layout.LAYOUT


HEAD = layout.Descriptor(
    6, 4, 17, "enforce", "closed", "keep", 77, 3, "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
)


@given(seeds)
def test_unpack_gives_back_what_was_packed(seed: int) -> None:
    tables = compile_tables(random_ruleset(random.Random(seed), 60))
    assert layout.unpack(layout.pack(tables, HEAD)) == (HEAD, tables)


@given(seeds)
def test_a_changed_byte_is_never_the_same_generation(seed: int) -> None:
    rng = random.Random(seed)
    tables = compile_tables(random_ruleset(rng, 20))
    blob = bytearray(layout.pack(tables, HEAD))
    blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
    try:
        head, changed = layout.unpack(bytes(blob))
    except layout.Malformed:
        return
    assert (head, changed.digest()) != (HEAD, tables.digest())
