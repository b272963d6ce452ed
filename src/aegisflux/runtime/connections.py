"""HTTP/1.1 connections with an end: uvicorn reads requests and writes answers, and here is what bounds it.

A connection has a time-out from its first moment, a bound on what is kept of it in memory, and a place that
it can lose to others while it waits for its client (runtime.admission). One on which a valid token was shown
is counted by that token from then on, and not by its address.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from aegisflux.runtime import metrics
from aegisflux.runtime.admission import Pool

if TYPE_CHECKING:
    from aegisflux.runtime.listener import Listener

CONNECTION: Final = "aegisflux.connection"
MAX_HEAD: Final = 32 << 10
MAX_HEADERS: Final = 100
MAX_PIPELINED: Final = 8
MAX_UNPROVED: Final = 128 << 10  # of a request, with what chunks add; its body alone has 64 KiB
UNPROVED_READ, PROVED_READ = 16 << 10, 64 << 10
UNPROVED_AHEAD: Final = 32 << 10  # read before anybody asked for the body
STALL_SECONDS: Final = 10.0
STALL_BYTES: Final = 16 << 10  # that a client has to take of an answer within STALL_SECONDS
LINGER_SECONDS: Final = 1.0
QUIET: Final = logging.getLogger("aegisflux.uvicorn")
QUIET.setLevel(logging.CRITICAL)
QUIET.propagate = False
State = Literal["head", "work", "answer", "idle", "closing"]


class _Http(HttpToolsProtocol):
    """uvicorn's protocol, which logs nothing that a client chose, and says when an answer is whole."""

    def __init__(self, connection: "Connection", listener: "Listener") -> None:
        state = {CONNECTION: connection}
        super().__init__(listener.config, listener.state, state, asyncio.get_running_loop())
        self.logger, self._connection = QUIET, connection

    def on_message_begin(self) -> None:
        """Refuse requests that are sent far ahead of their answers, before they are read."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests ahead of their answers")
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Refuse more headers, or trailers, than anybody needs, before they are kept."""
        if len(self.headers) >= MAX_HEADERS:
            self._connection.too_large("more than 100 headers")
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Take no request without one Host, as RFC 9112 (3.2) wants, and no offer to speak something else: a
        body that comes with one would be taken for that, and not for the request's."""
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            detail = f"expected one Host header, got {hosts}"
            self._connection.refuse(400, "Not HTTP/1.1", detail, "malformed")
            raise ValueError(detail)
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False
            if any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
                detail = "a request with a body that asks for another protocol cannot be read in one way only"
                self._connection.refuse(400, "Not HTTP/1.1", detail, "malformed")

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, as a problem."""
        del msg
        if self._connection.lost:
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            self._connection.evict("pipelined")
            return
        self._connection.refuse(400, "Not HTTP/1.1", "the request cannot be read as HTTP/1.1", "malformed")

    def on_response_complete(self) -> None:
        """See `HttpToolsProtocol.on_response_complete`."""
        super().on_response_complete()
        self._connection.answered()


class _Transport:
    """What uvicorn writes to: `close` lets a client read the answer to a request that was not read whole."""

    def __init__(self, transport: asyncio.Transport, connection: "Connection") -> None:
        self._transport, self._connection = transport, connection
        self.write, self.get_extra_info = transport.write, transport.get_extra_info
        self.pause_reading = transport.pause_reading

    def is_closing(self) -> bool:
        """Whether no further request is read."""
        return self._connection.lost or self._transport.is_closing()

    def resume_reading(self) -> None:
        """Read on, but not what follows the last request."""
        if not self.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Close, after a moment where bytes of the client are still to come."""
        self._connection.close()


class Connection(asyncio.BufferedProtocol):
    """One connection of the listener; `peer` is the key of its address."""

    def __init__(self, listener: "Listener", peer: str, pool: "Pool[Connection]", *, private: bool) -> None:
        self.peer, self.private, self.proved = peer, private, private
        self._listener, self._pool = listener, pool
        self._state: State = "head"
        self._deadline = listener.now() + listener.limits.header_seconds
        self._received = self._unsent = 0
        self._transport: asyncio.Transport | None = None
        self._http: Any = None  # uvicorn's types leave out that it has no request yet
        self.opening: asyncio.Task[None] | None = None
        self.queued: asyncio.Task[Any] | None = None

    # of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._http = _Http(self, self._listener)
        self._http.connection_made(cast("asyncio.Transport", _Transport(self._transport, self)))

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`: one buffer for all, since it is read at once."""
        del sizehint
        return self._listener.buffer[: PROVED_READ if self.proved else UNPROVED_READ]

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        http = self._http
        if self._state == "closing" or http is None:
            return
        before = http.cycle
        self._received += nbytes
        http.data_received(bytes(self._listener.buffer[:nbytes]))
        if self.lost or not self._bounded(http, begun=http.cycle is not before, nbytes=nbytes):
            return
        if not self.proved:
            self._hold(self._received)
            self._pause()

    def eof_received(self) -> bool:
        """See `asyncio.BaseProtocol`: who sends no more is gone, and its requests wait for nothing."""
        return False

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        if self._http is not None:
            self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._pool.remove(self)
        self._listener.forget(self)
        self._state = "closing"
        if self.queued is not None:
            self.queued.cancel()
        if self._http is not None:
            self._http.connection_lost(exc)
            self._http.cycle = self._http = None  # else all of it waits for the garbage collector

    # of the front

    @property
    def lost(self) -> bool:
        """Whether nothing more is to be done for it."""
        return self._state == "closing"

    def prove(self, key: str) -> None:
        """A valid token was shown: the connection counts as one of `key` from now on."""
        if self.proved or self.lost:
            return
        self._pool.remove(self)
        self._pool, self.proved = self._listener.authenticated, True
        gone = self._pool.admit(key, self)
        if self._state == "work":
            self._pool.work(self)
        for one in gone:
            one.evict("token_limit")

    def reads(self) -> None:
        """The request's body is being read: until `works` its client is waited for."""
        if self in self._pool:
            for one in self._pool.wait(self):
                one.evict("connection_limit" if not one.proved else "token_limit")

    def works(self) -> None:
        """All that is needed of the client is here."""
        if self in self._pool:
            self._pool.work(self)

    def answered(self) -> None:
        """An answer was handed to the transport."""
        if self.lost or self._http is None or self._transport is None:
            return
        self._received = 0
        cycle = self._http.cycle
        if cycle is None or cycle.response_complete:
            self.reads()
            self._answer(self._listener.now())
            if cycle is not None and cycle.more_body:
                self.close()

    def refuse(self, status: int, title: str, detail: str, reason: str) -> None:
        """Answer what never became a request, and close."""
        metrics.http_refused.labels(reason).inc()
        transport, http = self._transport, self._http
        if transport is None or http is None or self.lost:
            return
        cycle = http.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or http.pipeline:
                self.evict("")
                return
            cycle.disconnected = True  # what it was given to answers nothing any more
        transport.write(_refusal(status, title, detail))
        self._linger(transport)

    def too_large(self, what: str) -> bool:
        """Refuse a request for its head; False: it does not go on."""
        title, detail = "Request Header Fields Too Large", f"the head of the request has {what}"
        self.refuse(431, title, detail, "large_head")
        return False

    def close(self) -> None:
        """Close once what was written is sent."""
        transport, http = self._transport, self._http
        if transport is None or http is None or transport.is_closing():
            return
        cycle = http.cycle
        if cycle is None or (cycle.response_complete and not cycle.more_body):
            if self._state != "closing":
                self._state, self._deadline = "answer", self._listener.now() + STALL_SECONDS
            transport.close()
            return
        self._linger(transport)

    def _linger(self, transport: asyncio.Transport) -> None:
        """Close in a moment, and read nothing more: the client may still send, so that a close now would
        reset the connection before it has read the answer."""
        self._state, self._deadline = "closing", self._listener.now() + LINGER_SECONDS
        self.reads()
        if transport.can_write_eof():
            transport.write_eof()
        transport.pause_reading()

    def evict(self, reason: str) -> None:
        """End it at once."""
        if reason:
            metrics.http_refused.labels(reason).inc()
        self._pool.remove(self)
        self._state = "closing"
        if self._transport is not None:
            self._transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def sweep(self, now: float) -> None:
        """Look at the clock."""
        if self._state == "answer" and self._transport is not None:
            self._answer(now)
        if now > self._deadline and self._state != "work":
            if self._state == "head" and self._received:
                self.refuse(
                    408, "Request Timeout", "the head of the request did not come in time", "slow_head"
                )
                self._deadline = now + LINGER_SECONDS
            else:
                self.evict("silent" if self._state == "head" else "slow_reader" if self._unsent else "")

    # inside

    def _pause(self) -> None:
        """Read no more of a body ahead of who asks for it."""
        if self._state == "work" and self._received > UNPROVED_AHEAD:
            self._http.flow.pause_reading()

    def _bounded(self, http: Any, *, begun: bool, nbytes: int) -> bool:
        """Note a request that began; whether the connection goes on."""
        if begun:
            self._received, self._state = nbytes, "work"
            self.works()
        if begun and len(http.url) + sum(len(name) + len(value) for name, value in http.headers) > MAX_HEAD:
            return self.too_large("more than 32 KiB")
        if http.cycle is None or http.cycle.response_complete:
            if self._state == "idle":
                self._state, self._received = "head", nbytes
                self._deadline = self._listener.now() + self._listener.limits.header_seconds
            if self._received > MAX_HEAD:
                return self.too_large("more than 32 KiB")
        elif not self.proved and self._received > MAX_UNPROVED:
            self.evict("large_body")
            return False
        return True

    def _answer(self, now: float) -> None:
        """Where an answer is: taken, or how much of it is not."""
        assert self._transport is not None
        unsent = self._transport.get_write_buffer_size()
        if not unsent and not self._transport.is_closing():
            self._state, self._deadline, self._unsent = "idle", now + self._listener.limits.idle_seconds, 0
        elif self._state != "answer" or self._unsent - unsent >= STALL_BYTES:
            self._state, self._deadline, self._unsent = "answer", now + STALL_SECONDS, unsent
        self._hold(unsent)

    def _hold(self, size: int) -> None:
        if self in self._pool:
            for one in self._pool.hold(self, size):
                one.evict("memory")


def _refusal(status: int, title: str, detail: str) -> bytes:
    kind = {400: "malformed", 408: "toolate", 413: "toolarge", 431: "toolarge"}.get(status, "unavailable")
    problem = {"type": f"urn:aegisflux:problem:{kind}", "title": title, "status": status, "detail": detail}
    body = msgspec.json.encode(problem) + b"\n"
    head = (
        f"HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
