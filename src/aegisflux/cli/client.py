"""The orchestrator's API for the command line: the token comes from AEGISFLUX_TOKEN, never from an
argument.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from aegisflux.cli.control import known
from aegisflux.domain.digits import integer
from aegisflux.domain.errors import Forbidden, Invalid, Misused, Refused, Unavailable, shown
from aegisflux.domain.names import close, literal_of

SECONDS = 30.0
LONG_SECONDS = 600.0  # of a panic: it goes over every service of the fleet
INTEGER = "an integer in ASCII digits without leading zeros"
URLS = ("AEGISFLUX_URL", "AEGISFLUX_ENRICH_URL", "AEGISFLUX_SEGMENTER_URL", "AEGISFLUX_INGEST_URL")


def facts(path: str, query: Mapping[str, object] | None = None) -> Any:
    """One question to enrich; raises as `call`."""
    base = os.environ.get("AEGISFLUX_ENRICH_URL") or known().enrich_url
    return call("GET", path, query=query, base=base)


def segmenter(method: str, path: str, body: object = None, query: Mapping[str, object] | None = None) -> Any:
    """One request to the segmenter; raises as `call`."""
    base = os.environ.get("AEGISFLUX_SEGMENTER_URL") or known().segmenter_url
    return call(method, path, body, query, base)


def ingest(method: str, path: str, body: object = None, query: Mapping[str, object] | None = None) -> Any:
    """One request to ingest; raises as `call`."""
    base = os.environ.get("AEGISFLUX_INGEST_URL") or known().ingest_url
    return call(method, path, body, query, base)


def trying(dry_run: bool) -> dict[str, object]:
    """The query of a request that may only try."""
    return {"dry_run": "true"} if dry_run else {}


def call(
    method: str,
    path: str,
    body: object = None,
    query: Mapping[str, object] | None = None,
    base: str | None = None,
    seconds: float = SECONDS,
) -> Any:
    """One request; raises Refused with the problem's detail, or Unavailable, as after so many seconds."""
    given = {name: value for name, value in (query or {}).items() if value is not None}
    base = base or _url()
    data = body if isinstance(body, bytes) else None if body is None else _encoded(body)
    headers = {"Authorization": f"Bearer {_token()}", "Content-Type": "application/json"}
    try:
        _checked_base(base)
        url = base + path + (f"?{urlencode(given, doseq=True)}" if given else "")
        request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 - our own URL
    except UnicodeEncodeError as error:
        raise _no_text(error) from None
    except ValueError:
        raise _no_url(base) from None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=seconds) as answer:
            return _decoded(answer.read(), base)
    except urllib.error.HTTPError as error:
        with error:
            detail = _detail(error.read(), str(error.reason))
        if error.code in (401, 403):
            raise Forbidden(
                f"{detail} (the token is that of AEGISFLUX_TOKEN, else the first admin's)"
            ) from None
        kind = Refused if error.code < 500 else Unavailable
        raise kind(f"{error.code} {detail}") from None
    except (OSError, HTTPException) as error:
        raise Unavailable(f"{base}: {getattr(error, 'reason', error)}; is aegisflux up running?") from None


def _checked_base(base: str) -> None:
    """Raise Refused for what is no URL of a control plane; the library takes `localhost:` for a scheme."""
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise _no_url(base)


def _no_url(base: str) -> Refused:
    names = [name for name in URLS if os.environ.get(name) == base]
    return Refused(f"{names[0] if names else URLS[0]}: expected http://host:port, got {shown(base)}")


def number_of(service: str) -> int:
    """Return the number of a service that is named by it or by its name; raises Misused for another spelling
    of numbers, or Refused."""
    number = integer(service)
    if number is not None:
        return number
    if not service or literal_of(service):
        raise Misused("SERVICE_ID", f"{INTEGER}, or the name of a service", service)
    known = {row["name"]: int(row["id"]) for row in call("GET", "/api/v1/services")}
    if service not in known:
        hint = close(service, known) or "; aegisflux service list shows them"
        raise Invalid("SERVICE_ID", f"the number or the name of a service{hint}", service)
    return known[service]


def quoted(name: str) -> str:
    """Return a name as one part of a path, whatever is in it; raises Refused for what is no text."""
    try:
        return quote(name, safe="")
    except UnicodeEncodeError as error:
        raise _no_text(error) from None


def _no_text(error: UnicodeEncodeError) -> Refused:
    return Refused(f"expected text that is UTF-8, got {shown(error.object)}")


def _url() -> str:
    return os.environ.get("AEGISFLUX_URL") or known().url


def _decoded(text: bytes, base: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        raise Unavailable(f"{base}: expected an answer of JSON, got {shown(text[:60])}") from None


def _encoded(body: object) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _no_text(error) from None


def _token() -> str:
    given = os.environ.get("AEGISFLUX_TOKEN")
    if given:
        if not (given.isascii() and given.isprintable()):
            raise Refused("AEGISFLUX_TOKEN: expected a token, got characters that no token has")
        return given
    from aegisflux import bootstrap

    found = bootstrap.admin_token(known())
    if found is None:
        raise Refused("no token: set AEGISFLUX_TOKEN")
    return found


def _detail(body: bytes, reason: str) -> str:
    try:
        problem = json.loads(body)
        return str(problem.get("detail") or problem.get("title") or reason)
    except (ValueError, AttributeError, RecursionError):
        return reason
