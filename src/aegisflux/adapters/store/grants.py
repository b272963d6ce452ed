"""What the role of each service may do with each table, and no more: from the queries that it runs.

`tests/contract/test_grants.py` runs each query of each service as its role, and takes each right away to see
a query fail. Where a database has none of these roles (an own PostgreSQL with one user) nothing is granted.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

PREFIX: Final = "aegisflux_"
ALL: Final = "select insert update delete"

# `update(a, b)`: of these columns only.
EVERY: Final[Mapping[str, str]] = {  # the log, which tokens are believed by; when a token was used last
    "migrations": "select",
    "audit": "select",
    "audit_head": "select",
    "tokens": "select update(last_used)",
}
# To lock the head, no more: lines and heads pass the gate of the log (migration 22).
CHANGES: Final[Mapping[str, str]] = {"audit_head": "select update(one)"}
LOG: Final = (
    "audit_add(bigint, bigint, text, text, text, text, text, text, text, text, bytea, bytea)",
    "audit_move(bigint, bytea, bytea, bytea)",
)
SERVICES: Final[Mapping[str, Mapping[str, str]]] = {
    "orchestrator": {
        **EVERY,
        **CHANGES,
        "assignments": ALL,
        "candidates": ALL,
        "contents": "select insert delete update(mac) update(payload_sha256)",
        "enroll_tokens": "select insert update",
        "events": "select",
        "flow_minutes": "select",
        "flows": "select",
        "had": ALL,
        "host_addresses": "select",
        "hosts": "select insert update",
        "idempotency": "select insert delete",
        "key_sets": "select insert",
        "outbox": ALL,
        "plans": "select",
        "reports": ALL,
        "rollout_steps": "select insert",
        "rollouts": "select insert update",
        "rotation": ALL,
        "service_changes": "select insert delete",
        "service_health": "select insert update",
        "services": ALL,
        "shared_addresses": "select",
        "sources": "select",
        "suspicions": ALL,
        "tokens": "select insert update",
        "withheld": "select insert delete",
    },
    "ingest": {**EVERY, **CHANGES},
    "enrich": {
        **EVERY,
        "contents": "select",
        "events": "select insert",
        "events_other": "select delete",
        "events_view": "select",
        "flow_hours": "select",
        "flow_minutes": ALL,
        "flows": "select insert",
        "flows_other": "select delete",
        "flows_view": "select",
        "host_addresses": "select",
        "hosts": "select",
        "inventories": "select insert update",
        "listeners": ALL,
        "package_changes": "select insert",
        "packages": "select insert delete",
        "reports": "select",
        "services": "select",
        "sources": ALL,
    },
    "segmenter": {
        **EVERY,
        **CHANGES,
        "assignments": "select",
        "contents": "select",
        "flows": "select",
        "host_addresses": "select",
        "hosts": "select",
        "plans": "select insert update",
        "proposals": "select insert",
        "reports": "select",
        "services": "select",
        "sources": "select",
        "suspicions": "select",
    },
}
FUNCTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "orchestrator": LOG,
    "ingest": LOG,
    "segmenter": LOG,
    "enrich": ("facts_add_day(text, date)", "facts_drop_day(text, date)", "facts_only_writer()"),
}
GIVEN: Final = """
select c.relname::text as name, lower(a.privilege_type) as right from pg_class c, aclexplode(c.relacl) a
where c.relnamespace = current_schema()::regnamespace and a.grantee = $1::text::regrole
union all
select c.relname, lower(a.privilege_type) || '(' || t.attname || ')' from pg_class c
join pg_attribute t on t.attrelid = c.oid, aclexplode(t.attacl) a
where c.relnamespace = current_schema()::regnamespace and a.grantee = $1::text::regrole
"""
MAY_RUN: Final = "select has_function_privilege($1::text, $2::text, 'execute')"
PRESENT: Final = (
    "select relname::text as name from pg_class where relnamespace = current_schema()::regnamespace"
)
KNOWN: Final = "select rolname::text as name from pg_roles where rolname = any($1::text[])"


def statements(service: str, tables: set[str]) -> Iterator[str]:
    """The SQL that gives a service its rights to those of the tables that there are, and takes all others."""
    role = PREFIX + service
    yield f"revoke all on all tables in schema {{schema}} from {role}"
    yield f"grant usage on schema {{schema}} to {role}"
    for table, rights in SERVICES[service].items():
        if table in tables:
            yield f"grant {listed(rights)} on {table} to {role}"
    for function in FUNCTIONS.get(service, ()):
        yield f"grant execute on function {function} to {role}"


def listed(rights: str) -> str:
    """Rights as SQL wants them: `select update(a)` becomes `select, update(a)`."""
    return ", ".join(rights.split())


async def _has(connection: Any, service: str, tables: set[str]) -> bool:
    """Whether a service has its rights already, and no other."""
    role, rights = PREFIX + service, SERVICES[service]
    wanted = {(table, right) for table, said in rights.items() if table in tables for right in said.split()}
    given = {(row["name"], row["right"]) for row in await connection.fetch(GIVEN, role)}
    functions = [await connection.fetchval(MAY_RUN, role, one) for one in FUNCTIONS.get(service, ())]
    return given == wanted and all(functions)


async def grant(connection: Any) -> None:
    """Give each role that there is its rights; for the owner of the tables, in a transaction."""
    known = {row["name"] for row in await connection.fetch(KNOWN, [PREFIX + name for name in SERVICES])}
    services = [name for name in SERVICES if PREFIX + name in known]
    if not services:
        return
    tables = {row["name"] for row in await connection.fetch(PRESENT)}
    schema = await connection.fetchval("select quote_ident(current_schema())")
    for service in services:
        if await _has(connection, service, tables):
            continue
        for statement in statements(service, tables):
            await connection.execute(statement.format(schema=schema))
