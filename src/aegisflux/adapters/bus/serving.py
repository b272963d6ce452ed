"""Serving: requests of hosts, of each no more than its window, answered host by host (ADR 0038)."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from nats.errors import Error as NatsError

from aegisflux.adapters.bus.admission import host_in
from aegisflux.adapters.bus.line import Line
from aegisflux.adapters.bus.subscribed import header_text, taken
from aegisflux.domain.errors import AegisError, OverLimit, Refused
from aegisflux.domain.shares import FairQueue, Share, Shares
from aegisflux.domain.windows import Asking, Windows
from aegisflux.ports.bus import Message, Responder
from aegisflux.runtime.over_share import Refusals
from aegisflux.wire.subjects import host_token

if TYPE_CHECKING:
    from aegisflux.adapters.bus.nats import NatsBus

REFUSED, UNAVAILABLE, BUSY = "Aegisflux-Refused", "Aegisflux-Unavailable", "Aegisflux-Busy"
AT_ONCE = 64
IN_ALL = 16_384
# Bytes of answers: a host that begins has 64 MiB of contents at once, then 8 MiB a second.
ANSWERS = Share(rate=float(8 << 20), burst=float(64 << 20))
ANSWER_COST = 16 << 10
HOSTS_AT_ONCE: Final = 512  # are subscribed in one turn of the loop
TOO_MANY = "too many requests of all hosts wait: ask again in a second"


class Request(NamedTuple):
    """What came, and the connection on which its answer goes."""

    line: Line
    reply: str
    message: Message


@dataclass(frozen=True, slots=True)
class Told:
    """Who hears what is wrong: requests beyond a share, requests that are too large, anything else."""

    over_share: Refusals
    too_large: Refusals
    trouble: Callable[[str], None]


class Service:
    """`Serving` on NATS: each host has a subscription of its own, which the server ends after as many
    requests as its window has. It drops the next ones itself, and their sender hears so at once.
    """

    def __init__(self, subject: str, responder: Responder, asking: Asking, told: Told) -> None:
        self._subject, self._responder, self._asking, self._told = subject, responder, asking, told
        self._windows = Windows(asking)
        self._queue: FairQueue[Request] = FairQueue(asking.window, IN_ALL)
        self._answers = Shares(ANSWERS)
        self._bus: NatsBus | None = None
        self._line: Line | None = None
        self._numbers: dict[str, int] = {}
        self._waits: dict[str, asyncio.TimerHandle] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening: set[asyncio.Task[None]] = set()

    async def attach(self, bus: "NatsBus", nc: Line) -> None:
        """Be heard on the connection: all windows anew."""
        self._bus, self._line = bus, nc
        self._numbers.clear()
        self._windows.close_all()
        await self._open_all(tuple(self._windows))
        await taken(nc)

    async def add(self, host: str) -> None:
        """See `Serving.add`."""
        self._windows.add(host_token(host))
        await self._open(host)

    async def remove(self, host: str) -> None:
        """See `Serving.remove`."""
        await self._drop([host])

    async def only(self, hosts: Iterable[str]) -> None:
        """See `Serving.only`."""
        wanted = {host_token(host) for host in hosts}
        await self._drop(set(self._windows) - wanted)
        new = sorted(wanted - set(self._windows))
        for host in new:
            self._windows.add(host)
        await self._open_all(new)

    async def close(self) -> None:
        """Hear no more, and give up answers that are under way."""
        if self._bus is not None:
            self._bus.detach(self)
        await self.only(())
        self._line = None
        if self._timer is not None:
            self._timer.cancel()
        for task in (*self._tasks, *self._opening):
            task.cancel()

    async def _drop(self, hosts: Collection[str]) -> None:
        for host in hosts:
            self._windows.remove(host)
            if (timer := self._waits.pop(host, None)) is not None:
                timer.cancel()
        await self._shut(*hosts)

    async def _open_all(self, hosts: Iterable[str]) -> None:
        """In parts, so that many hosts do not stop the loop."""
        left = list(hosts)
        while left:
            await self._open(*left[:HOSTS_AT_ONCE])
            del left[:HOSTS_AT_ONCE]
            await asyncio.sleep(0)

    async def _open(self, *hosts: str) -> None:
        """Open the windows of these hosts, those that may not yet as soon as they may."""
        line, now, commands = self._line, time.monotonic(), bytearray()
        if line is None:
            return
        for host in hosts:
            if count := self._windows.open(host, now):
                commands += self._subscribed(line, host, count)
            elif seconds := self._windows.wait(host, now):
                self._wait(host, seconds)
        await line.say(bytes(commands))

    def _subscribed(self, line: Line, host: str, count: int) -> bytes:
        number = self._numbers[host] = line.next_number()
        line.served[number] = partial(self._take, line, host)
        subject = self._subject.removesuffix("*") + host if self._subject.endswith("*") else self._subject
        return b"SUB %s  %d\r\nUNSUB %d %d\r\n" % (subject.encode(), number, number, count)

    async def _shut(self, *hosts: str) -> None:
        """End the subscriptions of these hosts, where they have one."""
        line, commands = self._line, bytearray()
        for host in hosts:
            number = self._numbers.pop(host, None)
            if number is not None and line is not None and line.served.pop(number, None) is not None:
                commands += b"UNSUB %d\r\n" % number
        if line is not None:
            await line.say(bytes(commands))

    def _wait(self, host: str, seconds: float) -> None:
        if host not in self._waits:
            self._waits[host] = asyncio.get_running_loop().call_later(seconds, self._waited, host)
            if not self._windows.is_barred(host, time.monotonic()):
                self._told.over_share.note(host)

    def _waited(self, host: str) -> None:
        del self._waits[host]
        task = asyncio.create_task(self._open(host))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _take(self, line: Line, host: str, reply: bytes, payload: bytes, headers: int) -> None:
        """A request, as the connection reads it."""
        self._windows.came(host, time.monotonic())
        if not self._windows.is_open(host):  # the server has ended the subscription
            line.served.pop(self._numbers.pop(host, 0), None)
        size = headers + len(payload)
        if size > self._asking.most_bytes:
            await self._misused(line, host, reply, size)
            return
        if not reply:  # nobody waits for an answer
            self._windows.handled(host)
        else:
            subject = self._subject.replace("*", host)
            request = Request(line, reply.decode(errors="replace"), Message(subject, payload))
            if lost := self._queue.put(host, request):
                await self._refuse(*lost)
        self._start()
        await self._open(host)

    async def _misused(self, line: Line, host: str, reply: bytes, size: int) -> None:
        self._windows.misused(host, time.monotonic())
        self._told.too_large.note(host)
        await self._shut(host)
        await self._open(host)
        if reply:
            words = str(OverLimit("request", self._asking.most_bytes, size, self._subject))
            await self._send(line, reply.decode(errors="replace"), b"", {REFUSED: header_text(words)})

    async def _refuse(self, host: str, request: Request) -> None:
        self._told.over_share.note(host)
        self._windows.handled(host)
        await self._open(host)
        await self._send(request.line, request.reply, b"", {BUSY: TOO_MANY})

    def _start(self) -> None:
        """Begin with as many answers as there is room for; with none of a host that used up its share."""
        now = time.monotonic()
        while len(self._tasks) < AT_ONCE:
            found = self._queue.get(lambda host: self._answers.wait(host, now))
            if not isinstance(found, tuple):
                if found is not None and self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(found, self._again)
                return
            self._answers.use(found[0], ANSWER_COST, now)
            task = asyncio.create_task(self._answer(found[1]))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _again(self) -> None:
        self._timer = None
        self._start()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._start()

    async def _answer(self, request: Request) -> None:
        host = host_in(request.message.subject)
        body, headers = await self._made(request.message)
        self._answers.use(host, float(len(body)), time.monotonic())
        self._windows.handled(host)
        await self._open(host)  # before the answer: who asks one after the other finds it open
        await self._send(request.line, request.reply, body, headers)

    async def _made(self, message: Message) -> tuple[bytes, dict[str, str] | None]:
        try:
            return await self._responder(message), None
        except Refused as error:
            return b"", {REFUSED: header_text(str(error))}
        except AegisError as error:
            return b"", {UNAVAILABLE: header_text(str(error))}
        except Exception as error:  # noqa: BLE001 - a message loop's edge
            self._told.trouble(f"{message.subject}: {type(error).__name__}: {error}")
            return b"", {UNAVAILABLE: "the service failed; its log says why"}

    async def _send(self, line: Line, reply: str, body: bytes, headers: dict[str, str] | None) -> None:
        try:
            await line.publish(reply, body, headers=headers)
        except NatsError as error:
            self._told.trouble(f"{self._subject}: answer not sent: {error}")
