"""Generated pages about what crosses a boundary: words, subjects, the MapSnapshot, the tables."""

import inspect
from typing import Any, get_args

import schema_export
from markdown import code, codes, first_line, page, table

from aegisflux.domain import errors, manifest, snapshot, tables, trust, verdict
from aegisflux.wire import envelope, subjects

REASONS = {
    "unmanaged": "the socket belongs to no service, or its service has no snapshot; not enforced",
    "failsafe": "always allowed, never deniable: local addresses, NDP, MLD, DHCP, the agent, the host's list",
    "expired_open": "the lease ended and `on_expiry` is `open`: no enforcement",
    "expired_closed": "the lease ended and `on_expiry` is `closed`: nothing but the failsafe",
    "malformed": "headers that cannot be judged; denied",
    "deny": "a `deny` entry matches; it beats every allow",
    "allow": "an entry of `edges`, `ingress` or `allow_cidrs` matches, or the flow was live and is kept",
    "unrestricted": "the peer initiated and the snapshot does not restrict ingress",
    "no_match": "no entry matches; denied",
}
NACKS = {
    "bad_signature": "the signature does not fit the bytes",
    "unknown_key": "signed by a key that the key set does not hold, or that is not valid now",
    "wrong_audience": "made for another host",
    "bad_schema": "not well-formed, or not what was asked for",
    "stale_serial": "a lower serial than one accepted, or an older key set: a replay",
    "equivocation": "the same serial with other bytes, or a known version with another digest",
    "expired": "`not_after` has passed",
    "over_limit": "a limit is passed; the detail names it",
    "unsupported_format": "a tables format that this agent does not read",
    "map_full": "the kernel had no room; the old generation stays",
    "load_failed": "the kernel refused the tables; the old generation stays",
    "readback_mismatch": "what the kernel held was not what was signed; the old generation stays",
    "preflight": "the snapshot would cut more live flows than it may",
    "guardrail": "the host's own settings (`observe_only`, `max_lease_seconds`) do not allow it",
    "not_confirmed": "no confirmation came in time, so the agent went back by itself",
    "panicked": "the host is in panic; only `aegisflux agent resume` on the host ends it",
    "disk_full": "the state folder is full; only renewals are applied until there is room",
    "not_durable": "the state folder cannot be written (read-only, broken); only renewals are applied",
}
STATES = {
    "pending": "desired, and not yet answered by the host",
    "in_force": "the kernel of the host holds it and enforces it",
    "observing": "the kernel of the host holds it; it judges and blocks nothing",
    "matches nothing": "the kernel of the host holds it, and no cgroup is bound to it: it judges nothing",
    "nacked": "the host refused it by name; the last good one stays in force",
    "reverted": "it was in force and the host went back to the one before",
    "expired": "its lease ended; `on_expiry` holds",
    "panicked": "the host's enforcement was removed by hand",
    "silent": "no heartbeat came in time; what the kernel holds, holds on until its lease ends",
}
WORDS = (
    ("allowed", "action `allow`"),
    ("blocked", "action `deny` in mode `enforce`"),
    ("would block", "action `deny` in mode `observe`: nothing is dropped"),
    ("unknown", "no answer, for example because the host is silent"),
)


def _explained(words: Any, sentences: dict[str, str], what: str) -> list[tuple[str, str]]:
    known = get_args(words)
    if set(known) != set(sentences):
        raise KeyError(
            f"{what}: {sorted(set(known) ^ set(sentences))} has no sentence, or is no word any more"
        )
    return [(code(word), sentences[word]) for word in known]


def words_page() -> str:
    """Actions, reasons, Nacks, states and error families."""
    families = [
        (code(name), code(kind.__mro__[1].__name__), first_line(kind.__doc__))
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.AegisError) and kind is not errors.AegisError
    ]
    return page(
        "Words",
        "`domain/verdict.py`, `domain/manifest.py`, `domain/errors.py`",
        "## Verdicts, as people read them",
        table(("word", "when"), WORDS),
        "## Reasons",
        "The first that holds, from the top, is the reason.",
        table(("reason", "meaning"), [(code(r), REASONS[r]) for r in verdict.REASONS]),
        "`kept` is said beside `allow` where no entry allows the flow, but it was live when the snapshot"
        " came into force and `established` is `keep`.",
        "## Nacks",
        "A host answers what it cannot accept with one of these. The last good state stays in force.",
        table(("Nack", "meaning"), _explained(manifest.NackReason, NACKS, "Nack")),
        "## States of a host for a service",
        table(("state", "meaning"), _explained(manifest.HostState, STATES, "state")),
        "## Errors",
        "Two families: `Refused` (the input is at fault) and `Unavailable` (our surroundings are at fault).",
        table(("error", "family", "meaning"), families),
    )


def subjects_page() -> str:
    """The register of subjects and the streams that keep them."""
    rows = [
        (code(s.subject), code(s.payload), s.producer, ", ".join(s.consumers), s.delivery, s.meaning)
        for s in subjects.REGISTER
    ]
    streams = [
        (
            code(s.name),
            codes(s.subjects),
            s.per_subject or "all",
            "the new one" if s.queue else "the oldest",
            _size(s.max_bytes),
            _age(s.max_age),
            _size(s.max_message or subjects.MAX_MESSAGE),
        )
        for s in subjects.STREAMS
    ]
    types = sorted(v for v in vars(envelope).values() if isinstance(v, str) and v.startswith("application/"))
    return page(
        "Subjects",
        "`wire/subjects.py`, `wire/envelope.py`",
        table(("subject", "payload", "from", "to", "delivery", "meaning"), rows),
        "## Streams",
        table(
            ("stream", "subjects", "kept a subject", "beyond that goes", "size", "age", "message"), streams
        ),
        "## What an agent may do on the bus",
        "Each host has an account of its own; nothing else is permitted.",
        "Publish:\n\n" + "\n".join(f"* {code(s)}" for s in subjects.agent_publishes("<host>")),
        "Subscribe:\n\n" + "\n".join(f"* {code(s)}" for s in subjects.agent_subscribes("<host>")),
        "Its account imports from ours:\n\n"
        + "\n".join(
            f"* {code(s)}" for s in (*subjects.host_requests("<host>"), *subjects.host_hears("<host>"))
        ),
        "## What a viewer may do on the bus",
        "Publish nothing. Subscribe:\n\n" + "\n".join(f"* {code(s)}" for s in subjects.viewer_subscribes()),
        "## Types of signed payloads",
        "\n".join(f"* {code(t)}" for t in types),
    )


def mapsnapshot_page() -> str:
    """The fields of a MapSnapshot, from the schema."""
    schema = schema_export.mapsnapshot()
    parts = [table(("field", "type", "required", "default", "meaning"), _fields(schema))]
    for name, part in schema["definitions"].items():
        parts += [
            f"## {name}",
            part["description"],
            table(("field", "type", "required", "default", "meaning"), _fields(part)),
        ]
    return page(
        "MapSnapshot",
        "`domain/snapshot.py`; as JSON Schema draft-07: [mapsnapshot.json](../../schemas/mapsnapshot.json)",
        schema["description"],
        *parts,
        "## Limits",
        table(("limit", "most"), _limits()),
    )


def tables_page() -> str:
    """The records of compiled tables."""
    return page(
        f"Tables, format {tables.TABLES_FORMAT}",
        "`domain/tables.py`; the kernel's layout of the same records is `bpf/aegis_maps.h`",
        "Why they look so: [ADR 0001](../adr/0001-tables.md).",
        "```text\n" + inspect.cleandoc(tables.Tables.__doc__ or "") + "\n```",
        "## Bits of an item",
        table(
            ("bit", "the entry is"),
            [
                (tables.LIST, "of `edges` or `ingress`"),
                (tables.LIST_ANY, "of `edges` or `ingress`, written with `any`"),
                (tables.PEER, "of `allow_cidrs`"),
                (tables.PEER_ANY, "of `allow_cidrs`, written with `any`"),
                (tables.DENY, "of `deny`"),
                (tables.DENY_ANY, "of `deny`, written with `any`"),
            ],
        ),
        "Entries with port 0 are bits of the class's `wild`: `direction * 9 + protocol * 3 + kind`;"
        " direction 0 egress, 1 ingress; protocol 0 TCP, 1 UDP, 2 any; kind 0 list, 1 peer, 2 deny.",
        "## Limits",
        table(
            ("limit", "most"),
            [
                ("classes", tables.MAX_CLASSES),
                ("levels of nested prefixes", tables.MAX_LEVELS),
                ("bytes of tables", tables.MAX_BYTES),
                ("bits of the first level of IPv4", tables.MAX_INDEX_BITS),
            ],
        ),
    )


def _limits() -> list[tuple[str, object]]:
    return [
        ("entries a snapshot", snapshot.MAX_ENTRIES),
        ("bytes of `meta`", snapshot.MAX_META_BYTES),
        ("levels of `meta`", snapshot.MAX_META_DEPTH),
        ("seconds of a lease", snapshot.TTL_MAX),
        ("services a host", manifest.MAX_SERVICES),
        ("bytes of a host's manifest", manifest.MAX_MANIFEST_BYTES),
        ("bytes of a decompressed content", manifest.MAX_CONTENT_BYTES),
        ("bytes of a chunk of content", manifest.CHUNK_BYTES),
        ("seconds that `issued_at` may lie ahead of the host", trust.MAX_FUTURE_ISSUE),
    ]


def _fields(schema: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            code(name),
            _type(field),
            "yes" if name in schema["required"] else "no",
            code(_json(field["default"])) if "default" in field else "",
            field["description"],
        )
        for name, field in schema["properties"].items()
    ]


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return codes(field["enum"])
    if field["type"] == "array":
        return "array of " + str(field["items"]["$ref"]).rpartition("/")[2]
    if "minimum" in field:
        return f"{field['type']} {field['minimum']} .. {field['maximum']}"
    return str(field["type"])


def _json(value: object) -> str:
    return "[]" if value == () else str(value)


def _size(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes" if size else "unbounded"


def _age(seconds: int) -> str:
    return f"{seconds // 86_400} d" if seconds else "unbounded"
