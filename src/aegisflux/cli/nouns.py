"""Nouns of the control plane: snapshots, keys, the audit log, the bus."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from aegisflux.cli.client import call, number_of, trying
from aegisflux.cli.control import Config, DataDir, known
from aegisflux.cli.output import PEOPLES, UNCHANGED, Output, as_json, columnar, line, say, show
from aegisflux.domain.errors import Misused
from aegisflux.domain.names import remarks

Label = Annotated[
    list[str] | None, Parameter(name="--label", help="name=value, or a name; repeat it", negative="")
]
Service = Annotated[str, Parameter(help="the number or the name of a service")]
File = Annotated[Path, Parameter(help="JSON; - is stdin", allow_leading_hyphen=True)]
DryRun = Annotated[
    bool, Parameter(name="--dry-run", help="say what would change, and change nothing", negative="")
]
MOST_NAMED = 5
KEYS = ("version", "keys", "signing", "phase", "waiting_for", "waits_until")
Hosts = Annotated[list[str] | None, Parameter(name="--host", help="a target host; repeat it", negative="")]

snapshot_app = App(
    name="snapshot",
    help="Snapshots and their rollout: post, promote, roll back, withdraw, look, ask why.",
    version_flags=(),  # --version is that of a snapshot
)
keys_app = App(name="keys", help="The keys that sign.")
audit_app = App(name="audit", help="The audit log.")
bus_app = App(name="bus", help="What goes over the bus.")


@snapshot_app.command
def post(
    file: File,
    *,
    host: Hosts = None,
    beside: Annotated[
        bool, Parameter(negative="", help="judge it beside what is in force; it blocks nothing")
    ] = False,
    output: Output = "json",
) -> None:
    """Post a snapshot from a file (- is stdin).

    Example: aegisflux snapshot post web.json --host web-1
    """
    body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    query = {"target_host": host} | ({"beside": "true"} if beside else {})
    answer = call("POST", "/seg/maps", body, query)
    for warning in answer["warnings"]:
        say(f"warning: {warning}")
    show(answer, output, ("service_id", "version", "digest", "target_hosts"))


@snapshot_app.command
def promote(
    service_id: Service, *, version: int | None = None, dry_run: DryRun = False, output: Output = "json"
) -> None:
    """Give a posted version to all hosts of the service."""
    body = {"service_id": number_of(service_id), "version": version}
    _changed(call("POST", "/seg/maps/promote", body, trying(dry_run)), output)


@snapshot_app.command
def rollback(
    service_id: Service, *, to_version: int | None = None, dry_run: DryRun = False, output: Output = "json"
) -> None:
    """Bring back earlier content under a new version."""
    body = {"service_id": number_of(service_id), "to_version": to_version}
    _changed(call("POST", "/seg/maps/rollback", body, trying(dry_run)), output)


@snapshot_app.command
def withdraw(
    service_id: Service, *, host: Hosts = None, dry_run: DryRun = False, output: Output = "json"
) -> None:
    """End enforcement of a service, everywhere or on some hosts."""
    query = {"target_host": host, **trying(dry_run)}
    _changed(call("DELETE", f"/seg/maps/{number_of(service_id)}", None, query), output)


def _changed(answer: Any, output: str) -> None:
    for warning in answer["warnings"]:
        say(f"warning: {warning}")
    if answer["dry_run"]:
        say(UNCHANGED)
    show(answer, output, CHANGED)


CHANGED = ("service_id", "action", "version", "changed_hosts", "unchanged_hosts")


@snapshot_app.command(name="list")
def list_snapshots(*, output: Output = "table") -> None:
    """Services that have a snapshot."""
    show(call("GET", "/seg/maps"), output, ("service_id", "name", "latest", "stable", "candidate"))


@snapshot_app.command(name="show")
def show_snapshot(service_id: Service, *, version: int | None = None, output: Output = "json") -> None:
    """A service's versions; --version adds that snapshot."""
    found = call("GET", f"/seg/maps/{number_of(service_id)}", None, {"version": version})
    show(found, output, ("service_id", "name", "latest", "stable", "candidate"))


@snapshot_app.command
def status(service_id: Service, *, output: Output = "table") -> None:
    """Each host's desired and observed version."""
    found = call("GET", f"/seg/maps/{number_of(service_id)}/status")
    columns = ("host_id", "state", "desired", "observed", "since", "lease_until", "last_nack", "troubles")
    show(found["hosts"] if columnar(output) else found, output, columns)


@snapshot_app.command
def why(
    service_id: Service,
    proto: str,
    peer: str,
    port: int | None = None,
    *,
    ingress: Annotated[bool, Parameter(negative="")] = False,
    host: str | None = None,
    output: Output = "table",
) -> None:
    """The verdict of a flow, as it is wanted and as the hosts' kernels hold it.

    Example: aegisflux snapshot why 101 tcp 10.0.0.5 443
    """
    direction = "ingress" if ingress else "egress"
    query = {"proto": proto, "peer": peer, "port": port, "direction": direction, "host": host}
    found = call("GET", f"/seg/maps/{number_of(service_id)}/why", None, query)
    if not columnar(output):
        show(found, output)
        return
    rows = [
        {"held": held, "verdict": row["word"]} | row
        for held in ("desired", "observed")
        for row in found[held]
    ]
    show(rows, output, ("held", "word", "reason", "rule", "mode", "version", "digest", "hosts"))
    if found["differs"]:
        say("the hosts do not hold what is desired: aegisflux snapshot status tells why")


@keys_app.command(name="list")
def list_keys(*, output: Output = "json") -> None:
    """The key set in force."""
    show(call("GET", "/api/v1/keys"), output, KEYS)


@keys_app.command
def rotate(
    *,
    without: Annotated[
        list[str] | None,
        Parameter(help="a host not to wait for; also while a rotation is under way", negative=""),
    ] = None,
    wait_seconds: Annotated[
        int | None, Parameter(help="how long each phase waits for hosts that are online; an hour by default")
    ] = None,
    seconds: Annotated[float, Parameter(help="how long this command waits")] = 300,
    dry_run: DryRun = False,
    output: Output = "json",
) -> None:
    """Rotate the key that signs, and wait until the old one is gone."""
    body = {"without": without or [], **({} if wait_seconds is None else {"wait_seconds": wait_seconds})}
    found = call("POST", "/api/v1/keys/rotate", body, trying(dry_run))
    if dry_run:
        show(found, output, KEYS)
        say(f"{UNCHANGED}; {_waits(found, 'it would wait')}")
        return
    deadline, phase = time.monotonic() + seconds, ""
    while found["phase"] != "none":
        if found["phase"] != phase:
            phase = found["phase"]
            say(f"phase {phase}: {_waits(found, 'waiting')}")
        if time.monotonic() > deadline:
            say("it goes on in the background; aegisflux keys list shows how far it is")
            sys.exit(4)
        time.sleep(0.5)
        found = call("GET", "/api/v1/keys")
    show(found, output, KEYS)


def _waits(found: Any, verb: str) -> str:
    names = ", ".join(found["waiting_for"][:MOST_NAMED])
    return f"{verb} for {found['waiting']} hosts{': ' if names else ''}{names}"


@audit_app.command
def verify(*, output: Output = "table", config: Config = None, data_dir: DataDir = None) -> None:
    """Check the audit log in the store: edits, gaps, a cut-off tail; and that tokens, hosts, services, plans,
    rollouts and keys are as its lines say. Exit status 1 when something does not agree; 3 or 4 when it cannot
    be read.
    """
    from aegisflux import maintenance

    count, problems = asyncio.run(maintenance.audit_problems(known(config, data_dir)))
    if output in PEOPLES:
        for problem in problems:
            line(problem)
    elif columnar(output):
        show([{"problem": problem} for problem in problems], output, ("problem",))
    else:
        show({"lines": count, "problems": problems}, output)
    say(f"{count} lines, {len(problems)} problems")
    sys.exit(1 if problems else 0)


@audit_app.command
def accept(
    *,
    yes: Annotated[bool, Parameter(help="believe it", negative="")] = False,
    dry_run: Annotated[
        bool, Parameter(name="--dry-run", help="print what would be believed; change nothing", negative="")
    ] = False,
    output: Output = "table",
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Take the audit log as it stands, after the database was restored from a back-up or repaired.

    Tokens and plans are then believed as the log says now. Tokens that were revoked and hosts that were
    released stay so, and are named. All hosts get new manifests, signed with a new key. Run it as root on the
    control plane, after `aegisflux audit verify`.
    """
    from aegisflux import maintenance

    if not yes and not dry_run:
        words = "--yes to believe what the database says now, or --dry-run to see what that is"
        raise Misused("--yes", words, "neither")
    found = asyncio.run(maintenance.accept_audit(known(config, data_dir), dry_run))
    parts = {"believed": found.believed, "stays ended": found.ended, "numbers": found.numbers}
    rows = [{"what": word, "text": text} for word, texts in parts.items() for text in texts]
    if output in PEOPLES:
        for row in rows:
            line(f"{row['what']}: {row['text']}")
    elif columnar(output):
        show(rows, output, ("what", "text"))
    else:
        told = {"believed": found.believed, "ended": found.ended, "numbers": found.numbers}
        show({"line": found.line, **told, "dry_run": dry_run}, output)
    if dry_run:
        say(f"{UNCHANGED}: it would accept the log up to line {found.line}")
    else:
        say(f"accepted up to line {found.line}")


@audit_app.command(name="list")
def list_audit(*, limit: int = 50, output: Output = "table") -> None:
    """The newest lines."""
    found: Any = call("GET", "/api/v1/audit", None, {"limit": limit})
    show(found["items"], output, ("seq", "at", "actor", "action", "object", "reason"))


@bus_app.command
def watch(
    what: Annotated[
        Literal["snapshots", "events"], Parameter(help="announced snapshots, or enriched events")
    ] = "snapshots",
    *,
    count: Annotated[int, Parameter(help="end after so many lines; 0: never")] = 0,
) -> None:
    """Show announced snapshots or enriched events as they come, a line of JSON each, with the credentials
    of `aegisflux env`.

    Example: aegisflux bus watch events --count 10
    """
    from aegisflux import bootstrap
    from aegisflux.runtime import logs
    from aegisflux.wire import subjects

    logs.configure("warning", "text")

    names = ("NATS_URL", "NATS_CREDS", "NATS_CA")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if len(given) < len(names):
        given = bootstrap.environment(known()) | given
    subject, lines = (subjects.MAPS, announced) if what == "snapshots" else (subjects.ENRICHED, enriched)

    asyncio.run(bootstrap.watch(given, subject, lines, line, count))


def announced(payload: bytes) -> list[str]:
    """The line of an announced snapshot: JSON of ASCII alone, or what else came."""
    try:
        return [as_json(json.loads(payload), compact=True)]
    except (ValueError, RecursionError):
        return [payload.decode("utf-8", "backslashreplace")]


def enriched(payload: bytes) -> list[str]:
    """A line for each event of a message, of ASCII alone; raises Invalid."""
    from msgspec import to_builtins

    from aegisflux.wire import events

    return [
        json.dumps(
            {"host_id": batch.host_id, "boot_id": batch.boot_id, "received_ns": batch.received_ns}
            | to_builtins(event)
        )
        for batch in events.decode_enriched(payload)
        for event in batch.events
    ]


def labels_of(given: list[str] | None) -> dict[str, str]:
    """`name=value` as labels; a bare name has the value `true`."""
    found = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        found[name] = value if equals else "true"
    return found


def say_remarks(names: dict[str, str], labels: dict[str, dict[str, str]]) -> None:
    """Warn of what got its name before names that look like something else were refused."""
    for whose, what in remarks(names, labels):
        say(f"warning: {whose}: {what}; give it another one")
