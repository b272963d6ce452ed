"""The bus: last values, streams with durable consumers, requests. Subjects and streams come from
`wire.subjects`.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from aegisflux.domain.shares import Share
from aegisflux.domain.windows import Asking


@dataclass(frozen=True, slots=True)
class Message:
    """What arrived. `sequence` is its place in its stream, 0 outside of streams; `deliveries` counts from
    1; `stored_ns` is when a stream stored it, in nanoseconds since the epoch, 0 where nobody says.
    """

    subject: str
    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    sequence: int = 0
    deliveries: int = 1
    stored_ns: int = 0


PULL_BYTES: Final = 4 << 20  # at once; what a service may have asked for fits in what the server keeps for it


@dataclass(frozen=True, slots=True)
class Fair:
    """What one host may have handled of a stream: `messages`, `payload` bytes, and `parts`, which are what
    `count` finds in a payload. A message beyond it comes again `later`, and holds the place of others of that
    host meanwhile, or is not handled at all. Of last values the `newest` comes again, as soon as it may.

    While `is_scarce` (room to store it is), a host has no more of `payload` than `scarce`.
    """

    messages: Share
    payload: Share | None = None
    parts: Share | None = None
    count: Callable[[bytes], int] = len
    beyond: Literal["later", "dropped", "newest"] = "later"
    scarce: Share | None = None
    is_scarce: Callable[[], bool] = bool  # False


Handler = Callable[[Message], Awaitable[None]]
BatchHandler = Callable[[Sequence[Message]], Awaitable[None]]
Responder = Callable[[Message], Awaitable[bytes]]
Callback = Callable[[], Awaitable[None]]


class Subscription(Protocol):
    """Something that is heard until it is closed. It survives reconnects."""

    async def close(self) -> None:
        """Hear no more."""
        ...


class Serving(Subscription, Protocol):
    """Requests of some hosts, answered. A host that is not among them is heard by nobody."""

    async def add(self, host: str) -> None:
        """Hear this host too."""
        ...

    async def remove(self, host: str) -> None:
        """Hear this host no more."""
        ...

    async def only(self, hosts: Iterable[str]) -> None:
        """Hear these hosts and no others."""
        ...


ASKING: Final = Asking()


class Bus(Protocol):
    """One user's connection. Every method raises Unavailable when the bus cannot be used, Forbidden when
    it refuses us.
    """

    @property
    def connected(self) -> bool:
        """Whether the bus can be reached now."""
        ...

    async def publish(
        self, subject: str, payload: bytes, *, msg_id: str = "", headers: Mapping[str, str] | None = None
    ) -> int:
        """Store a message of a stream, tried again until it is stored; gives its sequence.

        Where only our services publish, the same id within two minutes is stored once. Where hosts publish,
        ids are not sent, since any of them could choose that of another: a message may be stored twice, and
        its reader knows by what it says. On a last-value subject this is the put.
        """
        ...

    async def last(self, subject: str) -> Message | None:
        """The newest stored message of a subject."""
        ...

    async def watch(self, subject: str, handler: Handler) -> Subscription:
        """Hear new messages while connected; what was published meanwhile is found by `last` alone."""
        ...

    async def request(self, subject: str, payload: bytes, timeout: float = 5.0) -> bytes:
        """One request, one answer. A Refused raised by the responder is raised here as Refused, with its
        text. Unheard: nobody hears this subject now; where it is served, ask again in a moment. Busy: too
        many requests of all hosts wait; ask again in a second.
        """
        ...

    async def serve(
        self, subject: str, responder: Responder, hosts: Iterable[str] = (), asking: Asking = ASKING
    ) -> Serving:
        """Answer requests of these hosts, up to 64 at once, of each host in turn.

        `subject`: with `*` as its last token, which stands for the host, or of one host. What a host asks
        beyond its window or its share (`asking`) is dropped before it reaches us, and it has its share of the
        bytes of answers. A request that is larger than `asking` says is refused unread, and nothing is heard
        of its host for 30 s.
        """
        ...

    async def consume(
        self,
        stream: str,
        durable: str,
        handler: BatchHandler,
        *,
        batch: int = 256,
        linger: float = 0,
        max_bytes: int = PULL_BYTES,
        fair: Fair | None = None,
    ) -> Subscription:
        """Read a stream from where this durable name stopped; a batch that returns is done.

        `linger`: seconds that the first message of a batch waits for others, which costs less for each.
        `max_bytes`: no more of the stream is in hand at once; at least one message is. `fair`: each host's
        share, by the last token of the subject.
        When the handler raises, the halves of its messages are handled, until the one that it raises for is
        alone: Refused puts it on the dead-letter subject, Unavailable brings it again later for ever,
        anything else once more, then it is a dead letter.
        """
        ...

    async def read(self, stream: str, after: int, limit: int, subject: str = ">") -> Sequence[Message]:
        """Stored messages with a sequence above `after`, oldest first, of one subject or all; takes nothing
        away. Fewer than `limit` where they are large, but one at least while there are any.
        """
        ...

    async def lag(self, stream: str, durable: str) -> int:
        """How many messages of the stream the durable name has not handled."""
        ...

    async def ensure_streams(self) -> tuple[str, ...]:
        """Make the streams of the register that are missing; gives their names. Harmless at any time."""
        ...

    def on_connect(self, callback: Callback) -> None:
        """Call after every connect from now on: the time to compare and publish or fetch again."""
        ...

    async def close(self) -> None:
        """Close all subscriptions and the connection."""
        ...
