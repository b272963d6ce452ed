"""Each column of the store: how SQL rewrites it and which object `audit verify` then names, or why it need
not be compared. A new column stands in no row of this table: `tests/services/test_agreement.py` says so."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Compared:
    """`value`: the SQL of another value; `where`: of which row; `named`: what is named, `/` at its end: what
    begins so. The names of `Known.names` are put in."""

    value: str
    where: str
    named: str


@dataclass(frozen=True)
class Harmless:
    """Whoever rewrites it gains nothing, because of this."""

    why: str


@dataclass(frozen=True)
class Whole:
    """A table of which no column is compared, because of this."""

    why: str


REPORT = Whole("what hosts report: believed as far as hosts are, whoever writes it")
TELEMETRY = Whole("what hosts did, as they told; it is evidence, not a right")
SHOWN = Harmless("shown to people, and nothing is decided by it")
SIGNED = Harmless("its signature is verified where it is used")
KEY = "decode(repeat('ab', 32), 'hex')"
TEXT, NUMBER, NUMBERS = "COLUMN || 'x'", "COLUMN + 1", "COLUMN || 7::bigint"


def _all(columns, where, named):
    """Rows of one table that name the same object."""
    return {
        column: Compared(value.replace("COLUMN", column), where, named) for column, value in columns.items()
    }


CONTENT = "service_id = 302"
PLAN, ROLLOUT, HOST = "id = PLAN", "id = ROLLOUT", "host_id = 'HOST'"
UNUSED = "used_by is null"
COLUMNS = {
    "migrations": Whole("compared with the files of the program at each start"),
    "audit": Whole("a chain of hashes: tests/domain/test_audit.py"),
    "audit_head": Whole("has a MAC: tests/contract/test_tokens.py"),
    "audit_gate": Whole("a key that lets lines into the log, not one that makes them believed"),
    "assignments": Whole(
        "which host gets what was once signed: SECURITY.md says that the database is believed"
    ),
    "candidates": Whole("is judged beside what is in force, and blocks nothing"),
    "outbox": Whole("announcements: hosts believe signed manifests alone"),
    "idempotency": Whole("repeats an answer to the one who asked"),
    "reports": REPORT,
    "sources": TELEMETRY,
    "flows": TELEMETRY,
    "events": TELEMETRY,
    "flow_minutes": TELEMETRY,
    "listeners": TELEMETRY,
    "inventories": TELEMETRY,
    "packages": TELEMETRY,
    "package_changes": TELEMETRY,
    "proposals": Whole("becomes a policy only as the text of a plan, which is approved"),
    "services": {
        "id": Compared("399", "id = 301", "service/"),
        "name": Compared("'eve'", "id = 301", "service/301"),
        "selectors": Compared("'{unit:*}'", "id = 301", "service/301"),
        "host_labels": Compared("'{}'", "id = 301", "service/301"),
        "latest": Compared("9", "id = 301", "service/301/latest"),
        "stable": Compared("1", "id = 301", "service/301/stable"),
        "promotions": Compared("'{1}'", "id = 301", "service/301/promotions"),
        "open_version": Compared("2", "id = 303", "service/303/open"),
        "open_until": Compared("open_until + 9999", "id = 303", "service/303/open"),
        "created_at": SHOWN,
    },
    "contents": _all(
        {
            "service_id": "304",
            "version": "7",
            "digest": TEXT,
            "rules_digest": TEXT,
            "tables_digest": TEXT,
            "tables_format": NUMBER,
            "entries": NUMBER,
            "ttl_seconds": NUMBER,
            "mode": "'observe'",
            "on_expiry": TEXT,
            "established": TEXT,
            "created_at": NUMBER,
            "created_by": "'second'",
            "author": "'token/7'",
            "copy_of": "1",
            "snapshot": "'x'",
            "payload": "'x'",
            "payload_sha256": "'x'",
            "mac": "null",
        },
        CONTENT,
        "service/",
    )
    | {
        "key_id": Harmless("of another key the payload is signed anew only as its MAC has it"),
        "signature": SIGNED,
    },
    "hosts": {
        "host_id": Compared("'eve'", HOST, "host/"),
        "public_key": Compared(KEY, HOST, "host/HOST"),
        "labels": Compared("""'{"role": "db"}'""", HOST, "host/HOST"),
        "released_at": Compared("1", HOST, "host/HOST"),
        "enrolled_at": SHOWN,
        "serial": Harmless("hosts take none that is lower, and the mark outside has the newest"),
        "built_serial": Harmless("when a manifest is made again"),
        "dirty": Harmless("when a manifest is made again"),
        "message": SIGNED,
        "issued_at": Harmless("when a manifest is made again"),
        "digests": Harmless("which signed contents it may fetch: no secret to who reads the database"),
        "seen_at": Harmless(REPORT.why),
        "every": Harmless(REPORT.why),
        "heartbeat": Harmless(REPORT.why),
        "heartbeat_serial": Harmless(REPORT.why),
        "addresses": Harmless(REPORT.why),
        "runs": Harmless(REPORT.why),
        "left_out": SHOWN,
    },
    "tokens": _all(
        {
            "id": "'9'",
            "name": TEXT,
            "role": "'admin'",
            "hash": "'x'",
            "created_at": NUMBER,
            "created_by": TEXT,
            "expires_at": "9999999999",
            "host_id": "'HOST', role = 'source'",
            "revoked_at": "1",
            "mac": "null",
        },
        "id = 'TOKEN'",
        "token/",
    )
    | {"last_used": SHOWN},
    "enroll_tokens": _all(
        {
            "hash": "'00112233445566778899'",
            "labels": "'{}'",
            "host_id": "'x'",
            "expires_at": NUMBER,
            "used_by": "'HOST'",
        },
        UNUSED,
        "enrolment/",
    )
    | {
        "created_at": SHOWN,
        "created_by": SHOWN,
        "used_key": Harmless(
            "the answer that is given again is of use with the key alone that it was made for"
        ),
        "used_at": SHOWN,
        "answer": Harmless("the token pins the root and the authority that it has to name"),
    },
    "suspicions": {
        "host_id": Compared("'HOST'", "true", "host/"),
        "finding": Compared("'x'", "true", "host/"),
        "detail": Compared("'x'", "true", "host/SUSPECTED/suspicion/"),
        "said_at": SHOWN,
        "said_by": SHOWN,
    },
    "key_sets": {
        "version": Compared("9", "version = 1", "keys/"),
        "signing": Compared("'eve'", "version = 1", "keys/1"),
        "envelope": SIGNED,
        "created_at": SHOWN,
    },
    "rotation": {
        "phase": Compared("'switched'", "true", "keys/rotation"),
        "new_key": Compared("'eve'", "true", "keys/rotation"),
        "old_key": Compared("'eve'", "true", "keys/rotation"),
        "one": Harmless("can only be true"),
        "started_at": SHOWN,
        "asked": SHOWN,
        "waits_until": Harmless("how long hosts are waited for: they get the key set with their manifest"),
        "wait_seconds": Harmless("how long hosts are waited for: they get the key set with their manifest"),
        "without": Harmless("how long hosts are waited for: they get the key set with their manifest"),
    },
    "service_changes": _all(
        {
            "id": "default",
            "service_id": "302",
            "name": TEXT,
            "selectors": "'{unit:*}'",
            "host_labels": "'{}'",
            "created_at": NUMBER,
            "created_by": "'second'",
            "author": "'token/7'",
            "seen": "null",
            "reason": TEXT,
        },
        "service_id = 301",
        "service/",
    ),
    "plans": _all(
        {
            "id": "default",
            "created_at": NUMBER,
            "created_by": "'second'",
            "author": "'token/7'",
            "policy": TEXT,
            "asked": """asked || '{"x": 1}'""",
            "inventory_digest": TEXT,
            "flows_digest": TEXT,
            "digest": TEXT,
            "inputs": "null",
            "body": """body || '{"x": 1}'""",
            "approved_by": "'eve'",
            "approver": "'token/7'",
            "accepted": "not accepted",
            "proposal": "PROPOSAL",
        },
        PLAN,
        "plan/",
    )
    | {"approved_at": SHOWN},
    "rollouts": _all(
        {
            "id": "default",
            "plan": "OTHER_PLAN",
            "created_at": NUMBER,
            "created_by": TEXT,
            "stage": "'canary'",
            "parts": "'[]'",
            "run": """jsonb_set(run, '{gate,denied_budget}', '99')""",
        },
        ROLLOUT,
        "rollout/",
    )
    | {
        "looked": Harmless("what was seen last, shown to people"),
        "looked_at": SHOWN,
    },
    "rollout_steps": {
        "rollout": Compared("OTHER_ROLLOUT", "rollout = ROLLOUT", "rollout/"),
        "at": Harmless("no service may change a step; one that is added is named"),
        "stage": Harmless("shown to people, as the lines of the log have it"),
        "turn": Harmless("shown to people, as the lines of the log have it"),
        "who": Harmless("shown to people, as the lines of the log have it"),
        "reason": Harmless("shown to people, as the lines of the log have it"),
        "did": Harmless("shown to people, as the lines of the log have it"),
    },
    "service_health": {
        "service_id": Compared("302", "true", "service/"),
        "host_id": Compared("'HOST'", "true", "service/301/health/"),
        "healthy": Compared("true", "true", "service/301/health/"),
        "detail": Compared("'x'", "true", "service/301/health/"),
        "said_at": Harmless("of what watchers say, which tokens may say anew at any time"),
        "said_by": SHOWN,
    },
    "had": _all(
        {"service_id": "302", "host_id": "'OTHER_HOST'", "versions": NUMBERS, "mac": "null"},
        "service_id = 301 and host_id = 'HOST'",
        "service/",
    ),
    "withheld": {
        "service_id": Compared("302", "true", "service/"),
        "host_id": Compared("'OTHER_HOST'", "true", "service/301/withheld"),
    },
}
