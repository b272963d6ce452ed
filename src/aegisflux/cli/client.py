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
from urllib.parse import quote, urlencode

from aegisflux.cli.control import known
from aegisflux.domain.errors import Forbidden, Refused, Unavailable, shown

SECONDS = 30.0


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
    data = body if isinstance(body, bytes) else None if body is None else _encoded(body)
    headers = {"Authorization": f"Bearer {_token()}", "Content-Type": "application/json"}
    try:
        url = base + path + (f"?{urlencode(given, doseq=True)}" if given else "")
        request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 - our own URL
    except UnicodeEncodeError as error:
        raise _no_text(error) from None
    except ValueError:
        raise Refused(f"AEGISFLUX_URL: expected http://host:port, got {shown(base)}") from None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SECONDS) as answer:
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
