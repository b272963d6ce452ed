"""The register of subjects: no other file spells one.

`REGISTER` names every subject with its payload, both ends and its delivery; `STREAMS` is where JetStream
keeps them.
What an agent may do on the bus (`agent_publishes`, `agent_subscribes`) follows from the register, and so does
what crosses between the account of a host and ours (`host_requests`, `host_hears`).
"""

import re
from dataclasses import dataclass
from typing import Literal

from aegisflux.domain.errors import Invalid

Delivery = Literal["stream", "last value", "request and reply"]
HOST = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
NAME_TEMPLATE = "{{name()}}"
MAX_MESSAGE = 1 << 20
MAX_LETTER = MAX_MESSAGE - 8192  # of a dead letter, beside its headers
MAX_ANSWER = 16 << 10  # of an ack or a nack, whose longest text has 1,000 characters
MAX_TELEMETRY = (512 << 10) + 4096  # a batch, and its headers
# How much of a stream one host can fill: what its agent has under way at once, several times.
ANSWERS_EACH, TELEMETRY_EACH = 1024, 32


@dataclass(frozen=True, slots=True)
class Subject:
    """One row: `<host>` and `<stream>` stand for one token."""

    subject: str
    payload: str
    producer: str
    consumers: tuple[str, ...]
    delivery: Delivery
    meaning: str

    @property
    def pattern(self) -> str:
        """The row as NATS writes it, one `*` for the open token."""
        return re.sub(r"<\w+>", "*", self.subject)


@dataclass(frozen=True, slots=True)
class Stream:
    """A JetStream stream; sizes in bytes, ages in seconds, 0 = no bound of that kind.

    per_subject: messages of one subject, which is one host's where the subject names one. When there are
    more, the oldest of that subject go; a queue refuses the new one
    queue: a work queue: what its one consumer has handled is gone, and a full one refuses instead of
    forgetting, so that the sender keeps what cannot be taken
    max_message: of one message with its headers
    """

    name: str
    subjects: tuple[str, ...]
    per_subject: int
    max_bytes: int
    max_age: int
    queue: bool = False
    max_message: int = 0

    @property
    def last_value(self) -> bool:
        """Whether the stream keeps only the newest message of each subject."""
        return self.per_subject == 1

    @property
    def of_hosts(self) -> bool:
        """Whether hosts publish into the stream: then no message of it is a duplicate of another one by its
        id, which any of them could choose.
        """
        written = {row.pattern for row in REGISTER if row.producer == "agent"}
        return not written.isdisjoint(self.subjects)


MAPS = "actions.seg.maps"
RAW, ENRICHED = "events.raw", "events.enriched"

REGISTER: tuple[Subject, ...] = (
    Subject(MAPS, "SnapshotAnnouncement", "orchestrator", ("viewer",), "stream",
            "every accepted snapshot, in the order of the commits"),
    Subject("actions.seg.desired.<host>", "HostManifest", "orchestrator", ("agent",), "last value",
            "the whole desired state of a host, signed"),
    Subject("actions.seg.confirm.<host>", "Confirm", "orchestrator", ("agent",), "last value",
            "the signed word that a commit-confirm of a host is to stay; without it the agent goes back"),
    Subject("agent.content.<host>", "ContentRequest", "agent", ("orchestrator",), "request and reply",
            "one chunk of a Content for one request"),
    Subject("agent.credentials.<host>", "empty", "agent", ("orchestrator",), "request and reply",
            "a user JWT of the host that ends later than the one it has"),
    Subject("agent.acks.<host>", "SnapshotAck | SnapshotNack", "agent", ("orchestrator",), "stream",
            "what the kernel of a host holds, or why it does not; signed with the host's key"),
    Subject("agent.heartbeat.<host>", "Heartbeat", "agent", ("orchestrator",), "last value",
            "state of a host; signed with the host's key"),
    Subject("telemetry.<host>", "EventBatch", "agent", ("ingest",), "stream",
            "what happened on a host, in batches"),
    Subject("inventory.packages.<host>", "PackageInventory", "agent", ("enrich",), "last value",
            "all packages of a host, sent again when their digest changes; zstd"),
    Subject(RAW, "[Taken]", "ingest", ("enrich",), "stream",
            "batches that ingest has checked; those in which all is well as the bytes that came"),
    Subject(ENRICHED, "[EnrichedBatch]", "enrich", ("viewer",), "stream",
            "events with what was known about them; after a crash a batch may come twice"),
    Subject("dead.<stream>", "DeadLetter", "whoever refused", ("operators",), "stream",
            "a message that was refused, with the reason and its bytes"),
)  # fmt: skip

DAY = 86_400
STREAMS: tuple[Stream, ...] = (
    Stream("MAPS", (MAPS,), 0, 1 << 30, 30 * DAY),
    Stream("DESIRED", ("actions.seg.desired.*",), 1, 0, 0),
    Stream("CONFIRM", ("actions.seg.confirm.*",), 1, 0, DAY),
    Stream("ACKS", ("agent.acks.*",), ANSWERS_EACH, 1 << 30, 7 * DAY, max_message=MAX_ANSWER),
    Stream("HEARTBEATS", ("agent.heartbeat.*",), 1, 0, DAY),
    Stream("TELEMETRY", ("telemetry.*",), TELEMETRY_EACH, 4 << 30, 0, queue=True, max_message=MAX_TELEMETRY),
    Stream("INVENTORY", ("inventory.packages.*",), 1, 0, 0),
    Stream("EVENTS_RAW", (RAW,), 0, 4 << 30, 0, queue=True),
    Stream("EVENTS", (ENRICHED,), 0, 2 << 30, DAY),
    Stream("DEAD", ("dead.*",), 0, 1 << 30, 30 * DAY),
)

HTTP = "http"
# Whose letters there can be: those of each stream, and what came over HTTP.
DEAD_STREAMS = (*(stream.name.lower() for stream in STREAMS if stream.name != "DEAD"), HTTP)


def host_token(host: str) -> str:
    """The host's name when it may stand in a subject and in a JWT; raises Invalid otherwise."""
    if not HOST.fullmatch(host):
        raise Invalid("host_id", "[a-z0-9][a-z0-9_-]{0,62}", host)
    return host


def desired(host: str) -> str:
    """Where the host finds its manifest."""
    return "actions.seg.desired." + host_token(host)


def confirm(host: str) -> str:
    """Where the host finds the confirmation of a commit-confirm."""
    return "actions.seg.confirm." + host_token(host)


def content(host: str) -> str:
    """Where the host asks for contents."""
    return "agent.content." + host_token(host)


def credentials(host: str) -> str:
    """Where the host asks for a user JWT that ends later."""
    return "agent.credentials." + host_token(host)


def acks(host: str) -> str:
    """Where the host's acks and nacks go."""
    return "agent.acks." + host_token(host)


def heartbeat(host: str) -> str:
    """Where the host's heartbeats go."""
    return "agent.heartbeat." + host_token(host)


def telemetry(host: str) -> str:
    """Where the host's events go."""
    return "telemetry." + host_token(host)


def inventory(host: str) -> str:
    """Where the host's packages go."""
    return "inventory.packages." + host_token(host)


def dead(stream: str) -> str:
    """Where refused messages of a stream go."""
    return "dead." + stream.lower()


def every(subject: str) -> str:
    """The wildcard of a row of the register, for those who serve or read all hosts; KeyError on no row."""
    return next(row.pattern for row in REGISTER if row.subject == subject)


ALL_ACKS = every("agent.acks.<host>")
ALL_HEARTBEATS = every("agent.heartbeat.<host>")
ALL_CONTENT = every("agent.content.<host>")
ALL_CREDENTIALS = every("agent.credentials.<host>")
ALL_DESIRED = every("actions.seg.desired.<host>")
ALL_TELEMETRY = every("telemetry.<host>")
ALL_INVENTORIES = every("inventory.packages.<host>")
ALL_DEAD = every("dead.<stream>")


def host_of(subject: str) -> str:
    """The host that a subject of the register names: its last token, checked."""
    return host_token(subject.rpartition(".")[2])


def stream_of(subject: str) -> Stream:
    """The stream that keeps the subject; raises Invalid when none does."""
    for stream in STREAMS:
        if any(matches(pattern, subject) for pattern in stream.subjects):
            return stream
    raise Invalid("subject", "a subject of a stream of the register", subject)


def matches(pattern: str, subject: str) -> bool:
    """Whether NATS delivers the subject to a subscription of the pattern."""
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(tokens) >= len(wanted) and all(
            w in ("*", t) for w, t in zip(wanted[:-1], tokens, strict=False)
        )
    return len(wanted) == len(tokens) and all(w in ("*", t) for w, t in zip(wanted, tokens, strict=True))


def direct_get(stream: str, subject: str) -> str:
    """The JetStream API subject that answers with the last message of a subject."""
    return f"$JS.API.DIRECT.GET.{stream}.{subject}"


# What crosses between a host's account and ours, with as few patterns as the register allows: what a server
# does with an account grows with them.
_HOST_SERVICES = (
    "agent.*.<host>", ALL_TELEMETRY.replace("*", "<host>"), ALL_INVENTORIES.replace("*", "<host>"),
    direct_get("*", "actions.seg.*.<host>"),
    direct_get("HEARTBEATS", "agent.heartbeat.<host>"),
    direct_get("INVENTORY", "inventory.packages.<host>"),
)  # fmt: skip
_HOST_STREAMS = ("actions.seg.*.<host>",)


def host_requests(host: str = "*") -> tuple[str, ...]:
    """Patterns of what the account of a host may ask ours: its requests, and what streams store of it."""
    return tuple(pattern.replace("<host>", host) for pattern in _HOST_SERVICES)


def host_hears(host: str = "*") -> tuple[str, ...]:
    """Patterns of what the account of a host hears of ours."""
    return tuple(pattern.replace("<host>", host) for pattern in _HOST_STREAMS)


def agent_requests() -> tuple[str, ...]:
    """Patterns of what agents ask the control plane, and of what they look up in its streams."""
    own = [row.pattern for row in REGISTER if row.producer == "agent"]
    looks = (*agent_hears(), ALL_INVENTORIES, ALL_HEARTBEATS)
    return (*own, *(direct_get(stream_of(pattern).name, pattern) for pattern in looks))


def agent_hears() -> tuple[str, ...]:
    """Patterns of what agents hear of the control plane."""
    return tuple(row.pattern for row in REGISTER if "agent" in row.consumers)


def agent_publishes(name: str = NAME_TEMPLATE) -> tuple[str, ...]:
    """All that the agent `name` may publish."""
    return tuple(_named(pattern, name) for pattern in agent_requests())


def agent_subscribes(name: str = NAME_TEMPLATE) -> tuple[str, ...]:
    """All that the agent `name` may subscribe."""
    return (*(_named(pattern, name) for pattern in agent_hears()), inbox(name) + ".>")


def viewer_subscribes(name: str = NAME_TEMPLATE) -> tuple[str, ...]:
    """All that the viewer `name` may subscribe; it may publish nothing."""
    return (*(row.pattern for row in REGISTER if "viewer" in row.consumers), inbox(name) + ".>")


def ingest_publishes(durable: str = "ingest") -> tuple[str, ...]:
    """All that ingest may publish: what it lets through, refuses and puts in again; its consumer, its
    acknowledgements, and the look at dead letters.
    """
    telemetry_stream, letters = stream_of(ALL_TELEMETRY).name, stream_of(ALL_DEAD).name
    consumer, api = f"{telemetry_stream}.{durable}", "$JS.API.CONSUMER."
    return (
        RAW, ALL_DEAD, ALL_TELEMETRY, ALL_INVENTORIES,
        f"{api}CREATE.{consumer}", f"{api}CREATE.{consumer}.>", f"{api}DURABLE.CREATE.{consumer}",
        f"{api}MSG.NEXT.{consumer}", f"{api}INFO.{consumer}",
        f"$JS.ACK.{consumer}.>", f"$JS.API.DIRECT.GET.{letters}",
    )  # fmt: skip


def inbox(name: str) -> str:
    """The prefix of a user's reply subjects."""
    return "_INBOX." + name


def _named(pattern: str, name: str) -> str:
    assert pattern.endswith(".*"), pattern
    return pattern[:-1] + name
