"""The streams of the register on a real JetStream."""

from collections.abc import Mapping

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from aegisflux.wire.subjects import STREAMS, Stream, stream_of

DUPLICATE_SECONDS = 120.0
SHORTEST_SECONDS = 0.1  # the server has no "never"


def tagged(subject: str, msg_id: str, headers: Mapping[str, str] | None) -> dict[str, str]:
    """The headers of a message: with its id where no host can choose the same one."""
    found = dict(headers or {})
    if msg_id and not stream_of(subject).of_hosts:
        found["Nats-Msg-Id"] = msg_id
    return found


async def ensure(js: JetStreamContext) -> tuple[str, ...]:
    """Make what is missing and bring the others up to the register; gives the names of those made."""
    made = []
    for stream in STREAMS:
        wanted = _config(stream)
        try:
            found = (await js.stream_info(stream.name)).config
        except NotFoundError:
            await js.add_stream(wanted)
            made.append(stream.name)
            continue
        if _differs(found, wanted):
            await js.update_stream(wanted)
    return tuple(made)


def _config(stream: Stream) -> StreamConfig:
    return StreamConfig(
        name=stream.name,
        subjects=list(stream.subjects),
        retention=RetentionPolicy.WORK_QUEUE if stream.queue else RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW if stream.queue else DiscardPolicy.OLD,
        max_msgs_per_subject=stream.per_subject or -1,
        discard_new_per_subject=stream.queue and stream.per_subject > 0,
        max_msg_size=stream.max_message or -1,
        max_bytes=stream.max_bytes or -1,
        max_age=float(stream.max_age),
        duplicate_window=SHORTEST_SECONDS if stream.of_hosts else DUPLICATE_SECONDS,
        allow_direct=True,
        num_replicas=1,
    )


def _differs(found: StreamConfig, wanted: StreamConfig) -> bool:
    names = (
        "subjects", "max_msgs_per_subject", "discard_new_per_subject", "max_msg_size", "max_bytes", "max_age",
        "duplicate_window", "allow_direct",
    )  # fmt: skip
    return any((getattr(found, name) or None) != (getattr(wanted, name) or None) for name in names)
