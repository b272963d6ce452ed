"""`aegisflux hosts`: enrolled hosts, enrolment tokens, labels and suspicions."""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from aegisflux.cli.client import call, quoted, trying
from aegisflux.cli.control import Config, DataDir, PortBase, known
from aegisflux.cli.nouns import DryRun, Label, labels_of, say_remarks
from aegisflux.cli.output import UNCHANGED, Output, SecretOutput, line, say, show, show_effect
from aegisflux.domain.errors import Misused

HOST = (
    "host_id", "labels", "serial", "observed_serial", "silent", "panicked", "suspicious", "agent_version",
    "services",
)  # fmt: skip
WIDE = (*HOST, "troubles", "address_conflicts")
ONE = (
    "host_id",
    "labels",
    "serial",
    "observed_serial",
    "silent",
    "services",
    "troubles",
    "address_conflicts",
)
TOKEN = ("host_id", "labels", "expires_at", "token")

host_app = App(name=("hosts", "host"), help="Enrolled hosts and enrolment tokens.")


@host_app.command(name="token")
def host_token(
    *,
    label: Label = None,
    host_id: str | None = None,
    ttl_seconds: int = 3600,
    output: SecretOutput = None,
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
    if output is None:
        line(answer["token"])
    else:
        show(answer, output, TOKEN)


@host_app.command(name="list")
def list_hosts(*, output: Output = "table") -> None:
    """Enrolled hosts; with -o wide also their troubles, and addresses that other hosts report too."""
    found = call("GET", "/api/v1/hosts")
    show(found, output, WIDE if output in ("wide", "csv") else HOST)
    if output == "table" and (odd := sum(1 for row in found if _troubles(row))):
        say(f"{odd} of these hosts have troubles: aegisflux hosts list -o wide, or aegisflux hosts show HOST")
    say_remarks(
        {f"host {row['host_id']}": row["host_id"] for row in found},
        {f"host {row['host_id']}": row["labels"] for row in found},
    )


@host_app.command(name="show")
def show_host(host_id: str, *, output: Output = "json") -> None:
    """One host: its labels, what it reports, its troubles, and the addresses that others report too.

    Example: aegisflux hosts show web-1
    """
    show(call("GET", f"/api/v1/hosts/{quoted(host_id)}"), output, ONE)


@host_app.command(name="label")
def label_host(
    host_id: str,
    *,
    label: Label = None,
    clear: Annotated[bool, Parameter(help="take every label from it", negative="")] = False,
    dry_run: DryRun = False,
    output: Output = "table",
) -> None:
    """Give a host these labels instead of all that it has; services that match them then reach it.

    Example: aegisflux hosts label web-1 --label role=web --label env=prod --dry-run
    """
    if bool(label) == clear:
        raise Misused("hosts label", "--label with each label that it is to have, or --clear", _given(clear))
    path = f"/api/v1/hosts/{quoted(host_id)}"
    before = call("GET", path)
    after = call("PUT", f"{path}/labels", {"labels": labels_of(label)}, trying(dry_run))
    for name in sorted({*before["labels"], *after["labels"]}):
        was, now = before["labels"].get(name), after["labels"].get(name)
        if was != now:
            say(f"label {name}: {_shown(was)} becomes {_shown(now)}")
    for number in sorted({*after["services"]} - {*before["services"]}):
        say(f"service {number} reaches it by these labels")
    show(after, output, ONE)
    if dry_run:
        say(UNCHANGED)


@host_app.command
def suspect(
    host_id: str,
    why: str = "",
    *,
    finding: Annotated[str, Parameter(help="the finding that says so; else you do")] = "",
    output: Output = "table",
) -> None:
    """Mark a host as suspicious: until it is trusted again, its flows are excluded from learning.

    Example: aegisflux hosts suspect web-7 "calls an unknown address every 60 s"
    """
    _suspicion(host_id, {"suspicious": True, "detail": why, "finding": finding}, output)


@host_app.command
def trust(
    host_id: str,
    why: str = "",
    *,
    finding: Annotated[str, Parameter(help="the finding that said so; else what you said")] = "",
    output: Output = "table",
) -> None:
    """Withdraw a suspicion of a host; those of others stay."""
    _suspicion(host_id, {"suspicious": False, "detail": why, "finding": finding}, output)


@host_app.command(name="release")
def release_host(host_id: str, *, dry_run: DryRun = False, output: Output = "table") -> None:
    """Free a host's name and revoke its key.

    Example: aegisflux hosts release web-1 --dry-run
    """
    show_effect(call("DELETE", f"/api/v1/hosts/{quoted(host_id)}", None, trying(dry_run)), output)


def _suspicion(host_id: str, said: dict[str, object], output: str) -> None:
    show_effect(call("POST", f"/api/v1/hosts/{quoted(host_id)}/suspicion", said), output)


def _troubles(row: dict[str, object]) -> bool:
    return bool(row.get("troubles") or row.get("address_conflicts"))


def _shown(value: str | None) -> str:
    return "none" if value is None else value or '""'


def _given(clear: bool) -> str:
    return "both" if clear else "neither"


def _place(config: Path | None, data_dir: str | None, port_base: int | None) -> None:
    if config or data_dir or port_base:
        given = known(config, data_dir, port_base)
        os.environ.setdefault("AEGISFLUX_URL", given.url)
        os.environ["AEGISFLUX_DATA_DIR"] = str(given.data)
