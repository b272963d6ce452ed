"""Every number that is decoded from a host, a bus, a client or a file has bounds in its type.

The walk needs no list of fields: a new field without bounds, or a new type that is decoded somewhere and not
named here, fails.
"""

import ast
import math
from contextlib import suppress
from pathlib import Path

import msgspec
import msgspec.inspect as look
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aegisflux
from aegisflux.adapters.engines import given_nats
from aegisflux.agent import control, panics, segments, spool
from aegisflux.domain import converge, enriched, event, inventory, manifest, panic, rights, runs, trust
from aegisflux.domain.errors import BROKEN
from aegisflux.domain.storable import check_storable
from aegisflux.wire import envelope, events, token
from aegisflux.wire import inventory as wire_inventory

INT64 = range(-(1 << 63), 1 << 63)
FROM_HOSTS = {
    "acks and nacks": manifest.Answer,
    "heartbeat": manifest.Heartbeat,
    "content request": manifest.ContentRequest,
    "events": event.EventBatch,
    "events, loosely": events.Loose,
    "inventory": inventory.PackageInventory,
    "inventory, loosely": wire_inventory._Loose,
    "envelope": envelope.Envelope,
}
FROM_US = {
    "manifest": manifest.HostManifest,
    "manifest, loosely": trust._Loose,
    "service of a manifest": manifest.ServiceState,
    "named": trust._Named,
    "content": manifest.Content,
    "chunk": manifest.ContentChunk,
    "confirmation": manifest.Confirm,
    "key set": manifest.KeySet,
    "credentials": token.Renewed,
    "batches let through": tuple[events.Taken, ...],
    "enriched batches": tuple[enriched.EnrichedBatch, ...],
    "limits of a NATS server of others": given_nats.Answer,
}
FROM_FILES = {
    "trusted": trust.Trusted,
    "book": converge.Book,
    "panic": panic.Panic,
    "panic in /run": panics.Noted,
    "record of the spool": segments.Meta,
    "marks of the spool": spool.Marks,
    "processes of a host": runs.Runs,
    "question at the agent's socket": control.Question,
    "how far the audit log was followed": rights.Mark,
}
ALL = FROM_HOSTS | FROM_US | FROM_FILES


def numbers(kind, path=""):
    """(path, type) of each number that a value of the type can hold."""
    if isinstance(kind, look.Metadata):
        yield from numbers(kind.type, path)
    elif isinstance(kind, look.IntType | look.FloatType):
        yield path, kind
    elif isinstance(kind, look.UnionType):
        for one in kind.types:
            yield from numbers(one, path)
    elif isinstance(kind, look.StructType):
        for field in kind.fields:
            yield from numbers(field.type, f"{path}.{field.name}")
    elif isinstance(kind, look.DictType):
        yield from numbers(kind.key_type, path + "{key}")
        yield from numbers(kind.value_type, path + "{}")
    elif isinstance(kind, look.TupleType):
        for one in kind.item_types:
            yield from numbers(one, path + "()")
    elif isinstance(kind, look.VarTupleType | look.ListType):
        yield from numbers(kind.item_type, path + "[]")


def unbounded(kind):
    for path, number in numbers(look.type_info(kind)):
        low = number.ge if number.ge is not None else number.gt
        high = number.le if number.le is not None else number.lt
        if (
            low is None
            or high is None
            or (isinstance(number, look.IntType) and not all(edge in INT64 for edge in (low, high - 1)))
        ):
            yield path


@pytest.mark.parametrize("name", ALL)
def test_every_number_has_bounds_that_its_column_holds(name):
    assert list(unbounded(ALL[name])) == []


def test_the_walk_finds_what_has_none():
    class Bad(msgspec.Struct):
        fine: manifest.Serial
        one: int
        many: dict[str, tuple[float, ...]]

    assert list(unbounded(Bad)) == [".one", ".many{}[]"]


def examples(kind):
    """Values of a type that only msgspec's own description of it knows: the least that it takes."""
    if isinstance(kind, look.Metadata):
        return examples(kind.type)
    if isinstance(kind, look.StructType):
        found = {f.encode_name: examples(f.type) for f in kind.fields}
        if kind.tag_field:
            found[kind.tag_field] = kind.tag
        return list(found.values()) if kind.array_like and not kind.tag_field else found
    if isinstance(kind, look.UnionType):
        return examples(next((t for t in kind.types if not isinstance(t, look.NoneType)), kind.types[0]))
    if isinstance(kind, look.VarTupleType | look.ListType):
        return [examples(kind.item_type)]
    if isinstance(kind, look.TupleType):
        return [examples(one) for one in kind.item_types]
    if isinstance(kind, look.DictType):
        key = examples(kind.key_type)
        return {key: examples(kind.value_type)}
    return leaf(kind)


def leaf(kind):
    if isinstance(kind, look.IntType):
        return max(1, kind.ge or 0)
    if isinstance(kind, look.FloatType):
        return 1.0 if kind.le is None or kind.le >= 1 else kind.le
    if isinstance(kind, look.LiteralType):
        return kind.values[0]
    if isinstance(kind, look.BoolType):
        return True
    if isinstance(kind, look.BytesType):
        return b"x"
    if isinstance(kind, look.RawType):
        return {}
    assert isinstance(kind, look.StrType), kind
    return "sha256:" + "0" * 64 if kind.pattern and "sha256" in kind.pattern else "x"


def put(value, path, number):
    """The value with the number at the place of a path of `numbers`."""
    if not path:
        return number
    if path.startswith("."):
        name, rest = next(
            (name, path[len(name) + 1 :])
            for name in sorted(value, key=len, reverse=True)
            if path.startswith("." + name)
        )
        return value | {name: put(value[name], rest, number)}
    if path.startswith("{key}"):
        return {number: next(iter(value.values()))}
    if path.startswith("{}"):
        return {key: put(one, path[2:], number) for key, one in value.items()}
    return [put(value[0], path[2:], number), *value[1:]]


EXTREMES = [
    *(2**64 - 1, 2**63, 2**63 - 1, -1, -(2**63), 2**53, 2**32, 2**31),
    *(math.nan, math.inf, -math.inf, 1e308, -1e308),
]
KEYED = ["acks and nacks", "heartbeat", "content request", "inventory"]


@pytest.mark.parametrize("name", KEYED)
@given(number=st.one_of(st.sampled_from(EXTREMES), st.integers(-(2**63), 2**64 - 1), st.floats()))
def test_what_is_decoded_from_a_host_can_always_be_stored(name, number):
    kind = FROM_HOSTS[name]
    members = kind.__args__ if hasattr(kind, "__args__") else (kind,)
    for member in members:
        shape = look.type_info(member)
        whole = examples(shape)
        for path in {path for path, _ in numbers(shape)}:
            body = msgspec.msgpack.encode(put(whole, path, number))
            with suppress(*BROKEN):
                check_storable(msgspec.msgpack.decode(body, type=kind))  # 64 bits, and finite


@pytest.mark.parametrize("name", KEYED)
def test_the_least_value_of_each_type_is_decoded(name):
    """Else the test above could not fail."""
    kind = FROM_HOSTS[name]
    for member in kind.__args__ if hasattr(kind, "__args__") else (kind,):
        msgspec.msgpack.decode(msgspec.msgpack.encode(examples(look.type_info(member))), type=kind)


TOO_LONG = {
    "500 KB of version": {"agent_version": "9" * 500_000},
    "500 KB of datapath": {"datapath": "x" * 500_000},
    "500 KB of boot id": {"boot_id": "x" * 500_000},
    "50,000 features": {"features": ["x"] * 50_000},
    "50,000 formats": {"tables_formats": [1] * 50_000},
    "50,000 counters": {"loss": {str(n): n for n in range(50_000)}},
    "50,000 troubles": {"troubles": ["x"] * 50_000},
    "a trouble of 500 KB": {"troubles": ["x" * 500_000]},
}


@pytest.mark.parametrize("what", TOO_LONG)
def test_texts_and_lists_of_a_heartbeat_have_bounds(what):
    whole = examples(look.type_info(manifest.Heartbeat)) | TOO_LONG[what]
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(whole), type=manifest.Heartbeat)


# Modules that decode what we stored ourselves, asked of a server of ours, or were configured with.
OURS = {
    "services.orchestrator", "services.segmenter", "services.enrich.readers", "cli", "runtime.configured",
    "adapters.inventory.host", "adapters.datapath.bpf.owner",
}  # fmt: skip
KNOWN = {
    "adapters.engines.given_nats",
    "agent.contents", "agent.credentials", "agent.enroll", "agent.identity", "agent.notes", "agent.panics",
    "agent.remember", "agent.reporter", "agent.segments", "agent.spool", "adapters.store.facts",
    "domain.decoding", "domain.json_text", "domain.trust", "runtime.register", "services.enrich.parties",
    "services.ingest.letters", "services.orchestrator.answers",
    "services.orchestrator.contents", "services.orchestrator.keys", "wire.envelope", "wire.events",
    "wire.foreign.common", "wire.foreign.records", "wire.inventory", "wire.msgpack_keys", "wire.token",
}  # fmt: skip


def test_a_module_that_begins_to_decode_is_looked_at():
    root = Path(aegisflux.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("decode", "Decoder", "convert"):
                text = ast.unparse(node)
                if text.startswith("msgspec."):
                    found.add(".".join(path.relative_to(root).with_suffix("").parts))
    new = {name for name in found - KNOWN if not any(name == o or name.startswith(o + ".") for o in OURS)}
    assert new == set(), "name its types above, then the module in KNOWN"
