"""The orchestrator's API for the command line: the token comes from AEGISFLUX_TOKEN, never from an
argument.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from aegisflux.cli.control import loaded
from aegisflux.domain.errors import Forbidden, Refused, Unavailable

SECONDS = 30.0
TIMES = {
    "since": 1,
    "lease_until": 1,
    "created_at": 1,
    "expires_at": 1,
    "last_used": 1,
    "revoked_at": 1,
    "at": 1000,
}


def facts(path: str, query: Mapping[str, object] | None = None) -> Any:
    """One question to enrich; raises as `call`."""
    base = os.environ.get("AEGISFLUX_ENRICH_URL") or loaded().enrich_url
    return call("GET", path, query=query, base=base)


def ingest(method: str, path: str, body: object = None, query: Mapping[str, object] | None = None) -> Any:
    """One request to ingest; raises as `call`."""
    base = os.environ.get("AEGISFLUX_INGEST_URL") or loaded().ingest_url
    return call(method, path, body, query, base)


def call(
    method: str,
    path: str,
    body: object = None,
    query: Mapping[str, object] | None = None,
    base: str | None = None,
) -> Any:
    """One request; raises Refused with the problem's detail, or Unavailable."""
    given = {name: value for name, value in (query or {}).items() if value is not None}
    base = base or _url()
    url = base + path + (f"?{urlencode(given, doseq=True)}" if given else "")
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {_token()}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 - our own URL
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            text = answer.read()
            return json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        with error:
            detail = _detail(error.read(), str(error.reason))
        if error.code in (401, 403):
            raise Forbidden(
                f"{detail} (the token is that of AEGISFLUX_TOKEN, else the first admin's)"
            ) from None
        kind = Refused if error.code < 500 else Unavailable
        raise kind(f"{error.code} {detail}") from None
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(f"{base}: {getattr(error, 'reason', error)}; is aegisflux up running?") from None


def show(value: Any, output: str, columns: tuple[str, ...] = ()) -> None:
    """Data on stdout: json, jsonl, or a table of some columns."""
    rows = value if isinstance(value, list) else [value]
    if output == "json":
        print(json.dumps(value, indent=2))  # noqa: T201
    elif output == "jsonl":
        for row in rows:
            print(json.dumps(row))  # noqa: T201
    else:
        _table(rows, columns)


def say(text: str) -> None:
    """Talk on stderr."""
    print(printable(text), file=sys.stderr)  # noqa: T201


def printable(text: str) -> str:
    """Control characters of what hosts said never reach a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    cells = [[name.upper() for name in columns]]
    cells += [[printable(_cell(row.get(name), TIMES.get(name))) for name in columns] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201


def _cell(value: Any, per_second: int | None = None) -> str:
    if value is None or value in ([], {}):
        return "-"
    if per_second is not None:
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


def _url() -> str:
    return os.environ.get("AEGISFLUX_URL") or loaded().url


def _token() -> str:
    given = os.environ.get("AEGISFLUX_TOKEN")
    if given:
        return given
    from aegisflux import bootstrap

    found = bootstrap.admin_token(loaded())
    if found is None:
        raise Refused("no token: set AEGISFLUX_TOKEN")
    return found


def _detail(body: bytes, reason: str) -> str:
    try:
        problem = json.loads(body)
        return str(problem.get("detail") or problem.get("title") or reason)
    except (ValueError, AttributeError):
        return reason
