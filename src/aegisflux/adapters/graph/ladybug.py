"""The embedded graph: Ladybug, a Cypher engine inside this process, on one file.

The engine blocks and releases the interpreter's lock while it works; one thread of ours talks to it.
"""

import asyncio
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from aegisflux.adapters.graph.cypher import FORGET, FORGET_ALONE, statements
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.graph import NODES, RELATIONS, Property, Upserts
from aegisflux.ports.graph import Row

BUFFER_BYTES: Final = 128 << 20
TYPES: Final = {"text": "STRING", "int": "INT64", "bool": "BOOL"}
T = TypeVar("T")


class LadybugGraph:
    """`Graph` on a file; whatever an earlier schema left there is forgotten."""

    name = "ladybug"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(1, "graph")
        self._connection: Any = None
        self._database: Any = None

    async def open(self) -> None:
        """See `Graph.open`."""
        await self._do(self._open)

    async def clear(self) -> None:
        """See `Graph.clear`."""
        await self._do(self._clear)

    async def upsert(self, upserts: Upserts) -> None:
        """See `Graph.upsert`."""
        await self._do(lambda: self._together((query, {"rows": rows}) for query, rows in statements(upserts)))

    async def forget_software(self, host_id: str) -> None:
        """See `Graph.forget_software`."""
        query = "MATCH (h:Host {id: $host})-[e:HAS]->(:Package) DELETE e"
        await self._do(lambda: self._rows(query, {"host": host_id}))

    async def forget_before(self, at_ns: int) -> None:
        """See `Graph.forget_before`."""
        steps = [*((query, {"at": at_ns}) for query in FORGET), *((query, {}) for query in FORGET_ALONE)]
        await self._do(lambda: self._together(steps))

    async def rows(self, query: str, values: Mapping[str, Any] | None = None) -> Sequence[Row]:
        """See `Graph.rows`."""
        return await self._do(lambda: self._rows(query, dict(values or {})))

    async def check(self) -> str:
        """See `Graph.check`."""
        (row,) = await self.rows("MATCH (n) RETURN count(n) AS nodes")
        return f"ladybug, {row['nodes']} nodes"

    async def close(self) -> None:
        """See `Graph.close`."""
        await self._do(self._close)
        self._pool.shutdown()

    async def _do(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except RuntimeError as error:  # all that the engine raises
            raise Unavailable(f"graph {self._path}: {error}") from error

    def _open(self) -> None:
        if self._connection is not None:
            return
        import ladybug

        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._database = ladybug.Database(str(self._path), buffer_pool_size=BUFFER_BYTES)
        except RuntimeError:  # written by another version, or torn by a crash: it is only a cache
            self._remove()
            self._database = ladybug.Database(str(self._path), buffer_pool_size=BUFFER_BYTES)
        self._connection = ladybug.Connection(self._database, num_threads=1)
        for statement in schema():
            self._connection.execute(statement)

    def _clear(self) -> None:
        self._close()
        self._remove()
        self._open()

    def _close(self) -> None:
        for part in (self._connection, self._database):
            if part is not None:
                part.close()
        self._connection = self._database = None

    def _remove(self) -> None:
        for path in self._path.parent.glob(self._path.name + "*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _together(self, steps: Iterable[tuple[str, dict[str, Any]]]) -> None:
        self._connection.execute("BEGIN TRANSACTION")
        try:
            for query, values in steps:
                self._connection.execute(query, values)
        except BaseException:
            with suppress(RuntimeError):  # some errors end the transaction themselves
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _rows(self, query: str, values: dict[str, Any]) -> list[Row]:
        if self._connection is None:
            raise Unavailable("the graph is not open")
        answer = self._connection.execute(query, values)
        names = answer.get_column_names()
        return [dict(zip(names, row, strict=True)) for row in answer.get_all()]


def schema() -> list[str]:
    """The tables of `domain.graph`, as Ladybug wants them before anything is put in."""
    made = [
        f"CREATE NODE TABLE IF NOT EXISTS {node.label}"
        f"({_columns((node.key, *node.properties))}, PRIMARY KEY ({node.key.name}))"
        for node in NODES
    ]
    for relation in RELATIONS:
        ends = ", ".join(f"FROM {start} TO {end}" for start, end in relation.ends)
        columns = _columns((*relation.keys, *relation.properties))
        parts = ", ".join(filter(None, (ends, columns)))
        made.append(f"CREATE REL TABLE IF NOT EXISTS {relation.name}({parts})")
    return made


def _columns(properties: Sequence[Property]) -> str:
    return ", ".join(f"`{p.name}` {TYPES[p.kind]}" for p in properties)
