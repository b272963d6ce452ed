"""Nouns of the control plane: snapshots, hosts, tokens, keys, the audit log, the bus."""

import asyncio
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from aegisflux.cli.client import call, number_of, quoted, trying
from aegisflux.cli.control import Config, DataDir, PortBase, known
from aegisflux.cli.output import Output, as_json, columnar, line, say, show
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
Hosts = Annotated[list[str] | None, Parameter(name="--host", help="a target host; repeat it", negative="")]

snapshot_app = App(
    name="snapshot",
    help="Snapshots and their rollout: post, promote, roll back, withdraw, look, ask why.",
    version_flags=(),  # --version is that of a snapshot
)
host_app = App(name=("hosts", "host"), help="Enrolled hosts and enrolment tokens.")
token_app = App(name="token", help="API tokens.")
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
        say("dry run: nothing was changed")
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


def remark(names: dict[str, str], labels: dict[str, dict[str, str]]) -> None:
    """What got its name before names that look like something else were refused."""
    for whose, what in remarks(names, labels):
        say(f"warning: {whose}: {what}; give it another one")


@host_app.command(name="token")
def host_token(
    *,
    label: Label = None,
    host_id: str | None = None,
    ttl_seconds: int = 3600,
    config: Config = None,
    data_dir: DataDir = None,
    port_base: PortBase = None,
) -> None:
    """Make an enrolment token for one host and print it: a secret.

    Example: aegisflux hosts token --label role=web | aegisflux agent enroll --host-id web-1
    """
    _place(config, data_dir, port_base)
    body = {"labels": labels_of(label), "host_id": host_id, "ttl_seconds": ttl_seconds}
    answer = call("POST", "/api/v1/hosts/tokens", body)
    say(f"for one host, within {ttl_seconds} s; on the host: aegisflux agent enroll")
    line(answer["token"])


@host_app.command(name="list")
def list_hosts(*, output: Output = "table") -> None:
    """Enrolled hosts."""
    columns = (
        "host_id",
        "labels",
        "serial",
        "observed_serial",
        "silent",
        "panicked",
        "suspicious",
        "agent_version",
        "services",
    )
    found = call("GET", "/api/v1/hosts")
    show(found, output, (*columns, "troubles", "address_conflicts") if output == "wide" else columns)
    remark(
        {f"host {row['host_id']}": row["host_id"] for row in found},
        {f"host {row['host_id']}": row["labels"] for row in found},
    )


@host_app.command(name="show")
def show_host(host_id: str, *, output: Output = "json") -> None:
    """One host: its labels, what it reports, its troubles, and the addresses that others report too.

    Example: aegisflux hosts show web-1
    """
    columns = ("host_id", "labels", "serial", "observed_serial", "silent", "services", "troubles")
    show(call("GET", f"/api/v1/hosts/{quoted(host_id)}"), output, (*columns, "address_conflicts"))


@host_app.command
def suspect(
    host_id: str,
    why: str = "",
    *,
    finding: Annotated[str, Parameter(help="the finding that says so; else you do")] = "",
) -> None:
    """Mark a host as suspicious: until somebody trusts it again, no proposal learns from its flows.

    Example: aegisflux hosts suspect web-7 "calls an unknown address every 60 s"
    """
    said = {"suspicious": True, "detail": why, "finding": finding}
    call("POST", f"/api/v1/hosts/{quoted(host_id)}/suspicion", said)


@host_app.command
def trust(
    host_id: str,
    why: str = "",
    *,
    finding: Annotated[str, Parameter(help="the finding that said so; else what you said")] = "",
) -> None:
    """Take a suspicion of a host back; those of others stay."""
    said = {"suspicious": False, "detail": why, "finding": finding}
    call("POST", f"/api/v1/hosts/{quoted(host_id)}/suspicion", said)


@host_app.command(name="release")
def release_host(host_id: str) -> None:
    """Free a host's name and revoke its key."""
    call("DELETE", f"/api/v1/hosts/{quoted(host_id)}")


@token_app.command(name="list")
def list_tokens(*, output: Output = "table") -> None:
    """API tokens; what is wrong with one is said beside."""
    found: Any = call("GET", "/api/v1/tokens")
    show(found, output, ("id", "name", "role", "host_id", "expires_at", "last_used", "revoked_at"))
    for one in found:
        for trouble in one.get("troubles", ()):
            say(f"warning: token {one['id']}: {trouble}")


@token_app.command(name="create")
def create_token(
    name: str, role: Literal["viewer", "operator", "approver", "admin"], *, ttl_seconds: int | None = None
) -> None:
    """Make an API token and print it: a secret."""
    line(call("POST", "/api/v1/tokens", {"name": name, "role": role, "ttl_seconds": ttl_seconds})["token"])


@token_app.command(name="issue")
def issue_token(
    *,
    role: Literal["source", "viewer", "operator", "approver", "admin"],
    name: Annotated[str | None, Parameter(help="whose it is; by default role, host and a number")] = None,
    host_id: Annotated[str | None, Parameter(help="whose events a token of the role source may post")] = None,
    ttl_seconds: int | None = None,
) -> None:
    """Make an API token and print it: a secret. One of the role source posts the events of one host.

    Example: aegisflux token issue --role source --host-id web-1
    """
    body = {
        "name": name or f"{'-'.join(filter(None, (role, host_id)))[:57]}-{secrets.token_hex(3)}",
        "role": role,
        "ttl_seconds": ttl_seconds,
        "host_id": host_id,
    }
    line(call("POST", "/api/v1/tokens", body)["token"])


@token_app.command(name="revoke")
def revoke_token(
    token_id: str,
    *,
    force: Annotated[bool, Parameter(help="also the last one of an admin", negative="")] = False,
) -> None:
    """End a token."""
    call("DELETE", f"/api/v1/tokens/{quoted(token_id)}", None, {"force": "true"} if force else {})


@token_app.command(name="replace")
def replace_token(
    role: Literal["admin", "viewer"], *, config: Config = None, data_dir: DataDir = None
) -> None:
    """Make a new token of the control plane's own admin or viewer, and end the one before.

    Run it as root on the control plane, for example when no admin's token is left. It needs no token. The new
    one is in `secrets/admin-token` or `secrets/viewer-token` of the data folder.

    Example: aegisflux token replace admin
    """
    from aegisflux import maintenance

    path = asyncio.run(maintenance.replace_token(known(config, data_dir), role))
    say(f"a new token of the role {role} is in {path}")


@keys_app.command(name="list")
def list_keys(*, output: Output = "json") -> None:
    """The key set in force."""
    show(
        call("GET", "/api/v1/keys"),
        output,
        ("version", "keys", "signing", "phase", "waiting_for", "waits_until"),
    )


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
) -> None:
    """Rotate the key that signs, and wait until the old one is gone."""
    body = {"without": without or [], **({} if wait_seconds is None else {"wait_seconds": wait_seconds})}
    found = call("POST", "/api/v1/keys/rotate", body, trying(dry_run))
    if dry_run:
        show(found, "json")
        say(f"dry run: nothing was changed; {_waits(found, 'it would wait')}")
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
    show(found, "json")


def _waits(found: Any, verb: str) -> str:
    names = ", ".join(found["waiting_for"][:MOST_NAMED])
    return f"{verb} for {found['waiting']} hosts{': ' if names else ''}{names}"


@audit_app.command
def verify(*, config: Config = None, data_dir: DataDir = None) -> None:
    """Check the audit log in the store: edits, gaps, a cut-off tail; and that tokens, hosts, services, plans,
    rollouts and keys are as its lines say. Exit status 1 when something does not agree; 3 or 4 when it cannot
    be read.
    """
    from aegisflux import maintenance

    count, problems = asyncio.run(maintenance.audit_problems(known(config, data_dir)))
    for problem in problems:
        line(problem)
    say(f"{count} lines, {len(problems)} problems")
    sys.exit(1 if problems else 0)


@audit_app.command
def accept(
    *,
    yes: Annotated[bool, Parameter(help="believe it", negative="")] = False,
    dry_run: Annotated[
        bool, Parameter(name="--dry-run", help="print what would be believed; change nothing", negative="")
    ] = False,
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
    for word, lines in parts.items():
        for text in lines:
            line(f"{word}: {text}")
    what = "nothing was changed: it would accept the log" if dry_run else "accepted"
    say(f"{what} up to line {found.line}")


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


def _place(config: Path | None, data_dir: str | None, port_base: int | None) -> None:
    if config or data_dir or port_base:
        given = known(config, data_dir, port_base)
        os.environ.setdefault("AEGISFLUX_URL", given.url)
        os.environ["AEGISFLUX_DATA_DIR"] = str(given.data)
