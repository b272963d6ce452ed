"""Looking into a stream without consuming it, and how far a durable name has read."""

import json

from nats.aio.client import Client

from aegisflux.adapters.bus.subscribed import message_of, unsubscribe
from aegisflux.domain.errors import Unavailable
from aegisflux.ports.bus import Message

READ_SECONDS = 5.0
ANSWER_SECONDS, MAX_SERVERS = 1.0, 64
MAX_READ_BYTES = 8 << 20


async def read(nc: Client, stream: str, after: int, limit: int, subject: str) -> list[Message]:
    """Stored messages above a sequence, up to `limit` and about 8 MiB."""
    ask = {"seq": after + 1, "batch": limit, "max_bytes": MAX_READ_BYTES, "next_by_subj": subject}
    box = nc.new_inbox()
    sub = await nc.subscribe(box, pending_bytes_limit=4 * MAX_READ_BYTES)
    found: list[Message] = []
    try:
        await nc.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(ask).encode(), reply=box)
        while True:
            raw = await sub.next_msg(timeout=READ_SECONDS)
            headers = raw.headers or {}
            status = headers.get("Status")
            if status in ("204", "404"):  # the end of the batch; nothing there
                return found
            if status is not None:
                raise Unavailable(
                    f"{stream}: the bus answered {status} {headers.get('Description', 'nobody answers')}"
                )
            found.append(message_of(raw, headers["Nats-Subject"]))
    except TimeoutError:
        raise Unavailable(f"{stream}: no answer within {READ_SECONDS:g} s") from None
    finally:
        await unsubscribe(sub)


async def answers(nc: Client, subject: str) -> list[bytes]:
    """What each server answers, until none has for a second."""
    box = nc.new_inbox()
    sub = await nc.subscribe(box)
    found: list[bytes] = []
    try:
        await nc.publish(subject, reply=box)
        while len(found) < MAX_SERVERS:
            found.append((await sub.next_msg(timeout=ANSWER_SECONDS)).data)
    except TimeoutError:
        pass
    finally:
        await unsubscribe(sub)
    return found


def lag_of(answer: bytes) -> int:
    """Messages that a consumer has not handled yet, by what the server says of it; 0 of one that never
    was.
    """
    info = json.loads(answer)
    if "error" in info:
        if info["error"].get("code") == 404:
            return 0
        raise Unavailable(f"consumer: {info['error'].get('description')}")
    return int(info["num_pending"]) + int(info["num_ack_pending"])
