"""Sockets of another network namespace, and HTTP over them: a socket stays in the namespace that made it."""

import ctypes
import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(netns: str | None) -> Iterator[None]:
    """Be in a named namespace for a moment; None stays here."""
    if netns is None:
        yield
        return
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    other = os.open(Path("/run/netns", netns), os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(other)
        yield
    finally:
        _setns(own)
        os.close(other)
        os.close(own)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@dataclass(frozen=True, slots=True)
class Answer:
    """What HTTP answered; `body` is the parsed JSON, or the text where it is none."""

    status: int
    body: Any

    @property
    def detail(self) -> str:
        """The sentence of a problem document."""
        if not isinstance(self.body, dict):
            return str(self.body)[:200]
        errors = "; ".join(_error(e) for e in self.body.get("errors") or [])
        return str(errors or self.body.get("detail") or self.body.get("title") or self.body)


def _error(entry: Any) -> str:
    return (
        str(entry.get("detail") or entry.get("message") or entry) if isinstance(entry, dict) else str(entry)
    )


class Api:
    """The orchestrator as a user of curl sees it, from inside a namespace."""

    def __init__(self, netns: str | None, port: int, token: str = "") -> None:
        self.netns, self.port, self.token = netns, port, token

    def call(self, method: str, path: str, body: object = None, token: str | None = None) -> Answer:
        """One request; raises OSError when nobody answers."""
        with inside(self.netns):
            sock = socket.create_connection(("127.0.0.1", self.port), 15)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        connection.sock = sock
        headers = {"Content-Type": "application/json"}
        bearer = self.token if token is None else token
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        try:
            return Answer(response.status, json.loads(text))
        except ValueError:
            return Answer(response.status, text)

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def post(self, path: str, body: object) -> Answer:
        return self.call("POST", path, body)
