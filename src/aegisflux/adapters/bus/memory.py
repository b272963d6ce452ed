"""The bus in one process: the twin of NATS for tests and simulations, with the same streams and the same
promises.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aegisflux.adapters.bus.admission import Admission, host_in
from aegisflux.domain.errors import AegisError, OverLimit, Refused, Unavailable, Unheard
from aegisflux.domain.windows import Asking, Windows
from aegisflux.ports.bus import (
    ASKING,
    PULL_BYTES,
    BatchHandler,
    Callback,
    Fair,
    Handler,
    Message,
    Responder,
    Serving,
    Subscription,
)
from aegisflux.runtime.ending import end
from aegisflux.wire import subjects

MAX_DELIVERIES = 2
RETRY_SECONDS = 0.01


@dataclass(slots=True)
class Log:
    """One stream: its messages, the ids it has seen, and how far each durable name has read."""

    stream: subjects.Stream
    messages: dict[int, Message] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    done: dict[str, set[int]] = field(default_factory=dict)
    head: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    def append(
        self, subject: str, payload: bytes, msg_id: str, headers: Mapping[str, str]
    ) -> tuple[int, bool]:
        """Sequence of the message, and whether it is new."""
        if msg_id and msg_id in self.ids:
            return self.ids[msg_id], False
        self.head += 1
        if not self.stream.queue and self.stream.per_subject:
            self._make_room(subject)
        self.newest[subject] = self.head
        self.messages[self.head] = Message(subject, payload, headers, self.head, 1, time.time_ns())
        if msg_id:
            self.ids[msg_id] = self.head
        self.grown.set()
        return self.head, True

    def _make_room(self, subject: str) -> None:
        if self.stream.last_value:
            if subject in self.newest:
                del self.messages[self.newest[subject]]
            return
        those = [sequence for sequence, one in self.messages.items() if one.subject == subject]
        if len(those) >= self.stream.per_subject:
            del self.messages[those[0]]

    def full(self, subject: str) -> bool:
        """Whether a queue has as many messages of a subject as one host may have there."""
        if not self.stream.queue or not self.stream.per_subject:
            return False
        done = set[int]().union(*self.done.values())
        those = (sequence for sequence, one in self.messages.items() if one.subject == subject)
        return sum(sequence not in done for sequence in those) >= self.stream.per_subject

    def waiting(self, durable: str, most: int, most_bytes: int) -> list[Message]:
        """Messages that the durable name has not done."""
        done, found, size = self.done.setdefault(durable, set()), list[Message](), 0
        for sequence, message in self.messages.items():
            if sequence in done:
                continue
            size += len(message.payload)
            if len(found) == most or (found and size > most_bytes):
                break
            found.append(message)
        return found


class Broker:
    """What the buses of one process share. `down` makes everything Unavailable, until `recover`; `full` names
    queues that refuse.
    """

    def __init__(self) -> None:
        self.down = False
        self.full: set[str] = set()
        self.logs: dict[str, Log] = {}
        self.watches: list[_Watch] = []
        self.services: list[_Service] = []
        self.buses: list[MemoryBus] = []

    def forget(self) -> None:
        """Lose all data, as a deleted store does."""
        self.logs.clear()

    async def recover(self) -> None:
        """Be available again, and let every bus compare."""
        self.down = False
        for bus in list(self.buses):
            await bus.reconnected()

    def log(self, subject: str) -> Log:
        """The log that keeps a subject; Unavailable when the streams were not made."""
        name = subjects.stream_of(subject).name
        if self.down:
            raise Unavailable("the bus is not connected")
        if name not in self.logs:
            raise Unavailable(f"{subject}: nobody answers there")
        return self.logs[name]


class MemoryBus:
    """`Bus` over a shared `Broker`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._subscriptions: list[Subscription] = []
        self._callbacks: list[Callback] = []
        broker.buses.append(self)

    @property
    def connected(self) -> bool:
        """See `Bus.connected`."""
        return not self._broker.down

    async def publish(
        self, subject: str, payload: bytes, *, msg_id: str = "", headers: Mapping[str, str] | None = None
    ) -> int:
        """See `Bus.publish`; does not wait for a broker that is down."""
        if len(payload) > subjects.MAX_MESSAGE:
            raise OverLimit("message", subjects.MAX_MESSAGE, len(payload), subject)
        log = self._broker.log(subject)
        tagged = dict(headers or {})
        msg_id = "" if log.stream.of_hosts else msg_id
        if msg_id:
            tagged["Nats-Msg-Id"] = msg_id
        if log.stream.name in self._broker.full:
            raise Unavailable(f"{subject}: not stored: maximum bytes exceeded")
        if log.stream.max_message and len(payload) > log.stream.max_message:
            raise OverLimit("message", log.stream.max_message, len(payload), subject)
        if msg_id not in log.ids and log.full(subject):
            raise Unavailable(f"{subject}: not stored: maximum messages per subject exceeded")
        sequence, new = log.append(subject, bytes(payload), msg_id, tagged)
        if new:
            for watch in list(self._broker.watches):
                watch.offer(Message(subject, bytes(payload), tagged))
        return sequence

    async def last(self, subject: str) -> Message | None:
        """See `Bus.last`."""
        log = self._broker.log(subject)
        return log.messages[log.newest[subject]] if subject in log.newest else None

    async def request(self, subject: str, payload: bytes, timeout: float = 5.0) -> bytes:
        """See `Bus.request`."""
        if self._broker.down:
            raise Unavailable("the bus is not connected")
        service = next((one for one in self._broker.services if one.hears(subject)), None)
        if service is None:
            raise Unheard(f"{subject}: nobody answers there")
        try:
            async with asyncio.timeout(timeout):
                return await service.answer(Message(subject, bytes(payload)))
        except TimeoutError:
            raise Unavailable(f"{subject}: no answer within {timeout:g} s") from None

    async def watch(self, subject: str, handler: Handler) -> Subscription:
        """See `Bus.watch`."""
        return self._kept(_Watch(self._broker, subject, handler))

    async def serve(
        self, subject: str, responder: Responder, hosts: Iterable[str] = (), asking: Asking = ASKING
    ) -> Serving:
        """See `Bus.serve`."""
        made = _Service(self._broker, subject, responder, asking)
        await made.only(hosts if subject.endswith("*") else [host_in(subject)])
        self._kept(made)
        return made

    async def consume(
        self,
        stream: str,
        durable: str,
        handler: BatchHandler,
        *,
        batch: int = 256,
        linger: float = 0,  # noqa: ARG002
        max_bytes: int = PULL_BYTES,
        fair: Fair | None = None,
    ) -> Subscription:
        """See `Bus.consume`."""
        admission = Admission(fair, stream, lambda _words: None, lambda _queue, _count: None)
        return self._kept(
            _Consumer(self, self._broker, stream, durable, handler, admission, batch, max_bytes)
        )

    async def read(self, stream: str, after: int, limit: int, subject: str = ">") -> Sequence[Message]:
        """See `Bus.read`."""
        found = self._log(stream).messages.values()
        wanted = [m for m in found if m.sequence > after and subjects.matches(subject, m.subject)]
        return wanted[:limit]

    async def lag(self, stream: str, durable: str) -> int:
        """See `Bus.lag`."""
        log = self._log(stream)
        return len(log.messages.keys() - log.done.get(durable, set()))

    def _log(self, stream: str) -> Log:
        found = self._broker.logs.get(stream)
        if self._broker.down or found is None:
            raise Unavailable(f"{stream}: nobody answers there")
        return found

    async def ensure_streams(self) -> tuple[str, ...]:
        """See `Bus.ensure_streams`."""
        if self._broker.down:
            raise Unavailable("the bus is not connected")
        missing = [stream for stream in subjects.STREAMS if stream.name not in self._broker.logs]
        self._broker.logs |= {stream.name: Log(stream) for stream in missing}
        return tuple(stream.name for stream in missing)

    def on_connect(self, callback: Callback) -> None:
        """See `Bus.on_connect`."""
        self._callbacks.append(callback)

    async def reconnected(self) -> None:
        """Call what waits for a connect."""
        for callback in self._callbacks:
            await callback()

    async def close(self) -> None:
        """See `Bus.close`."""
        for subscription in self._subscriptions:
            await subscription.close()
        if self in self._broker.buses:
            self._broker.buses.remove(self)

    def _kept(self, subscription: Subscription) -> Subscription:
        self._subscriptions.append(subscription)
        return subscription


class _Watch:
    def __init__(self, broker: Broker, subject: str, handler: Handler) -> None:
        self.subject, self._broker, self._handler = subject, broker, handler
        self._queue: deque[Message] = deque()
        self._more = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        broker.watches.append(self)

    def offer(self, message: Message) -> None:
        if subjects.matches(self.subject, message.subject):
            self._queue.append(message)
            self._more.set()

    async def _run(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while self._queue:
                try:
                    await self._handler(self._queue.popleft())
                except Exception:  # noqa: BLE001, S112 - a message loop's edge
                    continue

    async def close(self) -> None:
        if self in self._broker.watches:
            self._broker.watches.remove(self)
        await end(self._task)


class _Service:
    """As on NATS, but for turns: one loop has no queue of its own in front of it."""

    def __init__(self, broker: Broker, subject: str, responder: Responder, asking: Asking) -> None:
        self.subject, self._broker, self._responder = subject, broker, responder
        self._asking, self._windows = asking, Windows(asking)
        broker.services.append(self)

    def hears(self, subject: str) -> bool:
        """Whether a request on the subject comes through now."""
        if not subjects.matches(self.subject, subject):
            return False
        host = host_in(subject)
        self._windows.open(host, time.monotonic())
        return self._windows.is_open(host)

    async def answer(self, message: Message) -> bytes:
        host, size = host_in(message.subject), len(message.payload)
        self._windows.came(host, time.monotonic())
        if size > self._asking.most_bytes:
            self._windows.misused(host, time.monotonic())
            raise Refused(str(OverLimit("request", self._asking.most_bytes, size, self.subject)))
        try:
            return await self._responder(message)
        except Refused as error:
            raise Refused(str(error)) from error
        except AegisError as error:
            raise Unavailable(str(error)) from error
        except Exception as error:
            raise Unavailable("the service failed; its log says why") from error
        finally:
            self._windows.handled(host)

    async def add(self, host: str) -> None:
        self._windows.add(subjects.host_token(host))

    async def remove(self, host: str) -> None:
        self._windows.remove(host)

    async def only(self, hosts: Iterable[str]) -> None:
        wanted = {subjects.host_token(host) for host in hosts}
        for host in set(self._windows) - wanted:
            self._windows.remove(host)
        for host in wanted:
            self._windows.add(host)

    async def close(self) -> None:
        if self in self._broker.services:
            self._broker.services.remove(self)


class _Consumer:
    def __init__(
        self,
        bus: MemoryBus,
        broker: Broker,
        stream: str,
        durable: str,
        handler: BatchHandler,
        admission: Admission,
        batch: int,
        max_bytes: int,
    ) -> None:
        self._bus, self._broker, self._handler, self._admission = bus, broker, handler, admission
        self._stream, self._durable, self._batch, self._max_bytes = stream, durable, batch, max_bytes
        self._tries: dict[int, int] = {}
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            log = self._broker.logs.get(self._stream)
            if log is None or self._broker.down:
                self._tries.clear()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            batch = log.waiting(self._durable, self._batch, self._max_bytes)
            if admitted := self._admitted(log, batch):
                await self._handle(log, admitted)
                continue
            log.grown.clear()
            try:
                async with asyncio.timeout(RETRY_SECONDS):
                    await log.grown.wait()
            except TimeoutError:
                continue

    def _admitted(self, log: Log, batch: Sequence[Message]) -> list[Message]:
        found = []
        for message in batch:
            if not self._admission.wait(message.subject, message.payload):
                found.append(message)
            elif self._admission.dropped:
                log.done[self._durable].add(message.sequence)
        return found

    async def _handle(self, log: Log, batch: Sequence[Message]) -> None:
        tries = self._tries
        told = [
            Message(m.subject, m.payload, m.headers, m.sequence, tries.get(m.sequence, 0) + 1, m.stored_ns)
            for m in batch
        ]
        try:
            await self._handler(told)
        except Exception as error:  # noqa: BLE001 - a message loop's edge
            if len(told) > 1:
                middle = len(batch) // 2
                await self._handle(log, batch[:middle])
                await self._handle(log, batch[middle:])
                return
            await self._settle(log, told[0], error)
            return
        log.done[self._durable].update(message.sequence for message in batch)

    async def _settle(self, log: Log, message: Message, error: Exception) -> None:
        self._tries[message.sequence] = message.deliveries
        last_try = message.deliveries >= MAX_DELIVERIES and not isinstance(error, Unavailable)
        if not (isinstance(error, Refused) or last_try):
            await asyncio.sleep(RETRY_SECONDS)
            return
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        headers = {"Aegisflux-Reason": reason, "Aegisflux-Subject": message.subject}
        msg_id = f"dead:{self._stream}:{self._durable}:{message.sequence}"
        await self._bus.publish(subjects.dead(self._stream), message.payload, msg_id=msg_id, headers=headers)
        log.done[self._durable].add(message.sequence)

    async def close(self) -> None:
        await end(self._task)
