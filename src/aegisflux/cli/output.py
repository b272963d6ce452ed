"""What the command line prints: data on stdout in the form that was asked for, talk on stderr.

What hosts said never reaches a terminal as control characters: JSON and YAML escape them, the rest is made
printable.
"""

import csv
import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

Output = Annotated[
    Literal["table", "wide", "json", "jsonl", "yaml", "csv", "name"], Parameter(name=("--output", "-o"))
]
Row = dict[str, Any]
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


def columnar(output: str) -> bool:
    """Whether the form has columns; the others show what the API says."""
    return output in ("table", "wide", "csv", "name")


def show(value: Any, output: str, columns: tuple[str, ...] = (), headed: bool = True) -> None:
    """Print rows (or one) in one of the forms of `Output`; those with columns have these, below their names
    where `headed`."""
    rows = value if isinstance(value, list) else [value]
    if output == "json":
        _line(json.dumps(value, indent=2))
    elif output == "yaml":
        _yaml(value)
    elif output == "jsonl":
        for row in rows:
            _line(json.dumps(row))
    elif output == "csv":
        _csv(rows, columns, headed)
    elif output == "name":
        for row in rows:
            _line(printable(_cell(row[next((n for n in NAMES if n in row), columns[0])])))
    else:
        _table(rows, columns)


def say(text: str) -> None:
    """Talk on stderr."""
    print(printable(text), file=sys.stderr)  # noqa: T201


def _line(text: str) -> None:
    print(text)  # noqa: T201


def printable(text: str) -> str:
    """Control characters of what hosts said never reach a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _table(rows: Sequence[Row], columns: tuple[str, ...]) -> None:
    cells = [[name.upper() for name in columns]]
    cells += [[printable(_cell(row.get(name), TIMES.get(name))) for name in columns] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        _line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _yaml(value: Any) -> None:
    from ruamel.yaml import YAML

    writer: Any = YAML(typ="safe", pure=True)
    writer.default_flow_style, writer.allow_unicode, writer.width = False, False, 110
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
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


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
