"""The schema of `domain.graph` as Cypher that every engine of ours takes.

Each end of an edge is a MATCH of its own, and a node is made where OPTIONAL MATCH finds none: both look into
the index. Two ends in one MATCH, or MERGE of a node, make the embedded engine read all nodes of the label for
every statement.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from aegisflux.domain.graph import NODE, RELATION, Edge, Label, Ref, RelationName, Upserts, Value
from aegisflux.domain.rollup import MOST

Statement = tuple[str, list[dict[str, Any]]]
ROWS = 2000
FORGET = (
    "MATCH ()-[e:COMMUNICATES]->() WHERE e.last_ns < $at DELETE e",
    "MATCH ()-[e:EXECUTES]->() WHERE e.last_ns < $at DELETE e",
    "MATCH ()-[e:LISTENS]->() WHERE e.closed AND e.last_ns < $at DELETE e",
)
FORGET_ALONE = tuple(
    f"MATCH (n:{label}) WHERE NOT EXISTS {{ MATCH (n)-[]-() }} DELETE n" for label in ("Endpoint", "Binary")
)


def statements(upserts: Upserts) -> Iterator[Statement]:
    """Queries with their rows, nodes before edges, at most `ROWS` rows each."""
    for label in NODE:
        nodes = [(ref, given) for ref, given in upserts.nodes.items() if ref.label == label]
        yield from _node_statements(label, nodes)
    kinds = dict.fromkeys((edge.name, edge.start.label, edge.end.label) for edge in upserts.edges)
    for name, start, end in kinds:
        edges = [
            (edge, given)
            for edge, given in upserts.edges.items()
            if (edge.name, edge.start.label, edge.end.label) == (name, start, end)
        ]
        yield from _edge_statements(name, start, end, edges)


def _node_statements(label: Label, nodes: Sequence[tuple[Ref, dict[str, Value]]]) -> Iterator[Statement]:
    """First what is not there yet, then one statement for each set of properties that is given: what is not
    said is not touched.
    """
    key = NODE[label].key.name
    yield from _chunks(
        f"UNWIND $rows AS r OPTIONAL MATCH (n:{label} {{{key}: r.key}}) "
        f"WITH r, n WHERE n IS NULL CREATE (m:{label} {{{key}: r.key}})",
        [{"key": ref.key} for ref, _ in nodes],
    )
    for given in dict.fromkeys(tuple(sorted(properties)) for _, properties in nodes if properties):
        sets = ", ".join(f"n.`{name}` = r.`{name}`" for name in given)
        query = f"UNWIND $rows AS r MATCH (n:{label} {{{key}: r.key}}) SET {sets}"
        rows = [{"key": ref.key} | props for ref, props in nodes if tuple(sorted(props)) == given]
        yield from _chunks(query, rows)


def _edge_statements(
    name: RelationName, start: Label, end: Label, edges: Sequence[tuple[Edge, dict[str, Value]]]
) -> Iterator[Statement]:
    relation = RELATION[name]
    keys = ", ".join(f"{key.name}: r.{key.name}" for key in relation.keys)
    sets = ", ".join(_added(p.name) if p.adds else f"e.{p.name} = r.{p.name}" for p in relation.properties)
    query = (
        f"UNWIND $rows AS r MATCH (a:{start} {{{NODE[start].key.name}: r.a}}) "
        f"MATCH (b:{end} {{{NODE[end].key.name}: r.b}}) "
        f"MERGE (a)-[e:{name}{f' {{{keys}}}' if keys else ''}]->(b)" + (f" SET {sets}" if sets else "")
    )
    rows = [
        {"a": edge.start.key, "b": edge.end.key}
        | {key.name: value for key, value in zip(relation.keys, edge.keys, strict=True)}
        | {p.name: given.get(p.name, _ZERO[p.kind]) for p in relation.properties}
        for edge, given in edges
    ]
    yield from _chunks(query, rows)


def _added(name: str) -> str:
    """The sum of what is there and what is new, up to a bound: an overflow would fail for ever."""
    total = f"coalesce(e.{name}, 0) + r.{name}"
    return f"e.{name} = CASE WHEN {total} > {MOST} THEN {MOST} ELSE {total} END"


_ZERO: dict[str, Value] = {"text": "", "int": 0, "bool": False}


def _chunks(query: str, rows: list[dict[str, Any]]) -> Iterator[Statement]:
    for at in range(0, len(rows), ROWS):
        yield query, rows[at : at + ROWS]
