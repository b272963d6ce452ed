"""`aegisflux dead`: what was refused, why, and once more."""

import base64
from datetime import UTC, datetime
from typing import Annotated

from cyclopts import App, Parameter

from aegisflux.cli.client import ingest, trying
from aegisflux.cli.nouns import DryRun
from aegisflux.cli.output import UNCHANGED, Output, columnar, say, show
from aegisflux.cli.output import raw as raw_bytes

COLUMNS = ("id", "time", "stream", "subject", "host_id", "size", "reason")
Stream = Annotated[str | None, Parameter(help="only of this stream: telemetry, http, acks, ...")]

app = App(name="dead", help="Dead letters: what was refused, with its reason and its bytes.")


@app.command(name="list")
def list_letters(
    *, stream: Stream = None, limit: int = 100, cursor: int = 0, output: Output = "table"
) -> None:
    """Dead letters, oldest first.

    Example: aegisflux dead list --stream telemetry -o json
    """
    found = ingest("GET", "/api/v1/dead", None, {"stream": stream, "limit": limit, "cursor": cursor})
    if columnar(output):
        show([_row(letter) for letter in found["items"]], output, COLUMNS)
    else:
        show(found["items"], output)
    if found["next_cursor"] is not None:
        say(f"more: --cursor {found['next_cursor']}")


@app.command(name="show")
def show_letter(letter: int, *, raw: bool = False, output: Output = "json") -> None:
    """A dead letter, with what its bytes say; --raw writes the bytes themselves."""
    found = ingest("GET", f"/api/v1/dead/{letter}")
    if raw:
        raw_bytes(base64.b64decode(found["payload"]))
    elif columnar(output):
        show(_row(found["letter"]), output, COLUMNS)
    else:
        show(found, output)


@app.command
def replay(letter: int, *, dry_run: DryRun = False, output: Output = "json") -> None:
    """Put a dead letter in again, through the checks of its way.

    Example: aegisflux dead replay 7 --dry-run
    """
    found = ingest("POST", f"/api/v1/dead/{letter}/replay", {}, trying(dry_run))
    if dry_run:
        say(UNCHANGED)
    show(found, output, ("id", "subject", "accepted", "refused", "sequence"))


def _row(letter: dict[str, object]) -> dict[str, object]:
    """A letter for people."""
    when = datetime.fromtimestamp(int(str(letter["time_ns"])) // 1_000_000_000, UTC)
    return letter | {"time": when.strftime("%Y-%m-%dT%H:%M:%SZ")}
