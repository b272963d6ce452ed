"""What the command line prints: data on stdout in the form that was asked for, talk on stderr.

What hosts said never reaches a terminal as control characters: JSON and YAML escape them, the rest is made
`printable`. All that the command line prints passes here: `show`, `line` and `say`, or `raw` for bytes.
"""

import csv
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from aegisflux.domain.errors import Refused
from aegisflux.domain.text import encodable_all, is_printable, printable

Form = Literal["table", "wide", "json", "jsonl", "yaml", "csv", "name"]
Output = Annotated[Form, Parameter(name=("--output", "-o"))]
SecretOutput = Annotated[
    Form | None,
    Parameter(name=("--output", "-o"), help="all that is known of it; by default the secret alone"),
]
Row = dict[str, Any]
PEOPLES: Final = ("table", "wide")
UNCHANGED: Final = "dry run: nothing was changed"
EFFECT: Final = ("object", "action", "did")
TIMES: Final = {
    "since": 1,
    "lease_until": 1,
    "created_at": 1,
    "expires_at": 1,
    "last_used": 1,
    "revoked_at": 1,
    "approved_at": 1,
    "at": 1000,
}
NAMES: Final = ("id", "name", "host_id")
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def columnar(output: str) -> bool:
    """Whether the form has columns; the others show what the API says."""
    return output in ("table", "wide", "csv", "name")


def show(value: Any, output: str, columns: tuple[str, ...] = (), headed: bool = True) -> None:
    """Print rows (or one) in one of the forms of `Output`; those with columns have these, below their names
    where `headed`."""
    rows = value if isinstance(value, list) else [value]
    if output == "json":
        _write(as_json(value, indent=2) + "\n")
    elif output == "yaml":
        _yaml(encodable_all(value))
    elif output == "jsonl":
        for row in rows:
            _write(as_json(row) + "\n")
    elif output == "csv":
        _csv(rows, columns, headed)
    elif output == "name":
        for row in rows:
            line(_cell(row[next((n for n in NAMES if n in row), columns[0])]))
    else:
        _table(rows, columns)
    sys.stdout.flush()  # a pipe wants rows now that come one by one


def show_effect(found: Row, output: str) -> None:
    """Print what a request changed, or would change: a line each for people."""
    if output in PEOPLES:
        for text in found["did"]:
            line(text)
    else:
        show(found, output, EFFECT)
    if found["dry_run"]:
        say(UNCHANGED)


def say(text: str) -> None:
    """Talk on stderr; what nobody reads or has room for stops no command."""
    with suppress(OSError):
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


def line(text: str) -> None:
    """Print one line of data, whoever wrote it."""
    _write(printable(text) + "\n")
    sys.stdout.flush()


def screen(lines: Sequence[str], before: str = "") -> None:
    """Print lines after `before`, which is a control sequence of ours."""
    _write(before + "".join(printable(one) + "\n" for one in lines))
    sys.stdout.flush()


def document(text: str) -> None:
    """Print a text byte for byte for a file or a pipe; on a terminal each line is made printable."""
    if sys.stdout.isatty():
        screen(text.split("\n")[:-1] if text.endswith("\n") else text.split("\n"))
    else:
        _write(text)


def raw(data: bytes) -> None:
    """Write bytes as they are; raises Refused where a terminal would obey what is in them."""
    if sys.stdout.isatty():
        raise Refused("--raw: expected a file or a pipe as standard output, got a terminal; add > FILE")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def as_json(value: Any, indent: int | None = None, compact: bool = False) -> str:
    """Return JSON of ASCII alone, without lone surrogates, which are no text to other readers."""
    return json.dumps(encodable_all(value), indent=indent, separators=(",", ":") if compact else None)


def _write(text: str) -> None:
    sys.stdout.write(text)


def _table(rows: Sequence[Row], columns: tuple[str, ...]) -> None:
    cells = [[name.upper() for name in columns]]
    cells += [[printable(_cell(row.get(name), TIMES.get(name))) for name in columns] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        _write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")


def _yaml(value: Any) -> None:
    from ruamel.yaml import YAML

    # The writer leaves characters that turn or hide text as they are: then it writes ASCII alone.
    unicode = is_printable(json.dumps(value, ensure_ascii=False))
    writer: Any = YAML(typ="safe", pure=True)
    writer.default_flow_style, writer.allow_unicode, writer.width = False, unicode, 110
    writer.sort_base_mapping_type_on_output = False
    writer.dump(value, sys.stdout)


def _csv(rows: Sequence[Row], columns: tuple[str, ...], headed: bool) -> None:
    """RFC 4180 but for line ends, which are ours; what has parts is JSON, and nothing is an empty field."""
    lines = csv.writer(sys.stdout, lineterminator="\n")
    if headed:
        lines.writerow(columns)
    for row in rows:
        lines.writerow([printable(_field(row.get(name))) for name in columns])


def _field(value: Any) -> str:
    """A text that a spreadsheet would compute gets an apostrophe in front, by which it stays a text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return as_json(value)
    return f"'{value}" if len(value) > 1 and value.startswith(FORMULA) else value


def _cell(value: Any, per_second: int | None = None) -> str:
    if value is None or value in ([], {}):
        return "-"
    if per_second is not None and isinstance(value, int | float):
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(value / per_second))
    if isinstance(value, dict):
        if "reason" in value:
            return str(value["reason"])
        if "version" in value:
            return str(value["version"])
        return ",".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)
