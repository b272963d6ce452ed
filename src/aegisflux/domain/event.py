"""What happened on a host: one tagged union of events, and the batch they travel in.

Names follow OCSF where OCSF has a name. An event's id is (host, boot id, sequence): the same event sent
twice has the same id. Times are nanoseconds since the epoch, UTC; `start_ns` of a process is on the boot
clock and tells two processes with one pid apart. Texts are bounded here; whoever makes an event cuts them.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from aegisflux.domain.bounds import BootId, Count, Name, Nanoseconds, ServiceId
from aegisflux.domain.manifest import HostId

MAX_BATCH: Final = 1000
MAX_BATCH_BYTES: Final = 512 << 10
MAX_ARGS: Final = 256
MAX_TEXT: Final = 4096
MAX_COUNTERS: Final = 1024

Sequence = Annotated[int, Meta(ge=1, le=(1 << 63) - 2)]  # a range of the store ends one above
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
IpProto = Annotated[int, Meta(ge=0, le=255)]
Pid = Annotated[int, Meta(ge=0, le=1 << 31)]
Direction = Literal["egress", "ingress"]
Verdict = Literal["allowed", "would block", "blocked", "unknown"]


class Common(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What each event has. `clamped`: its time lay in the future, and was set to that of its arrival."""

    seq: Sequence
    time_ns: Nanoseconds
    clamped: bool = False


class Ancestor(Struct, frozen=True, gc=False, omit_defaults=True, array_like=True):
    """One process above another, as the kernel had it at that moment."""

    pid: Pid
    start_ns: Nanoseconds
    comm: Name


class Exec(Common, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag="exec"):
    """A process became a program. Bytes that are not UTF-8 stand as `\\xNN`.

    path:      the binary's path in the mount namespace of the process
    args:      its arguments, the first `MAX_ARGS` that fit; `args_cut` when there were more
    ancestors: nearest first
    """

    pid: Pid
    start_ns: Nanoseconds
    uid: Count
    path: Text
    args: Annotated[tuple[Text, ...], Meta(max_length=MAX_ARGS)] = ()
    args_cut: bool = False
    comm: Name = ""
    cgroup: Text = ""
    ancestors: Annotated[tuple[Ancestor, ...], Meta(max_length=32)] = ()


class Exit(Common, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag="exit"):
    """A process (its last thread) ended: by `code`, or by `signal`."""

    pid: Pid
    start_ns: Nanoseconds
    code: Annotated[int, Meta(ge=0, le=255)] = 0
    signal: Annotated[int, Meta(ge=0, le=255)] = 0
    path: Text = ""
    comm: Name = ""


class FlowSeen(Common, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag="flow"):
    """Traffic since the last report of one flow: a 5-tuple without the ephemeral port.

    direction:   who initiated: egress the local side, ingress the peer
    port:        the one that the initiator addressed; 0 where the protocol has none
    first_ns, last_ns: of the packets counted here
    connections: how many began
    pid:         the process that made the last socket of it, 0 unknown; `path` is its binary
    """

    direction: Direction
    proto: IpProto
    local: Annotated[str, Meta(max_length=45)]
    peer: Annotated[str, Meta(max_length=45)]
    port: Port
    first_ns: Nanoseconds
    last_ns: Nanoseconds
    packets_out: Count = 0
    packets_in: Count = 0
    bytes_out: Count = 0
    bytes_in: Count = 0
    connections: Count = 0
    verdict: Verdict = "unknown"
    reason: Name = ""
    service_id: ServiceId | None = None
    cgroup: Text = ""
    pid: Pid = 0
    start_ns: Nanoseconds = 0
    path: Text = ""


class Listen(Common, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag="listen"):
    """A socket began (or `closed`: ended) to listen."""

    proto: IpProto
    address: Annotated[str, Meta(max_length=45)]
    port: Port
    closed: bool = False
    pid: Pid = 0
    start_ns: Nanoseconds = 0
    path: Text = ""
    cgroup: Text = ""
    service_id: ServiceId | None = None


class VerdictSeen(Common, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag="verdict"):
    """An initiation that was denied, or would be; `rule` as `domain.verdict.rule_text`."""

    service_id: ServiceId
    direction: Direction
    proto: IpProto
    peer: Annotated[str, Meta(max_length=45)]
    verdict: Verdict
    reason: Name
    local: Annotated[str, Meta(max_length=45)] | None = None
    local_port: Port | None = None
    peer_port: Port | None = None
    rule: Annotated[str, Meta(max_length=256)] | None = None
    digest: Name = ""
    candidate: bool = False


class Auth(Common, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag="auth"):
    """Somebody tried to be let in. `source` names the parser, `service` what they tried at."""

    source: Name
    success: bool
    user: Name = ""
    service: Name = ""
    method: Name = ""
    address: Annotated[str, Meta(max_length=45)] | None = None
    port: Port | None = None
    pid: Pid = 0
    message: Text = ""


class File(Common, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag="file"):
    """A file was touched; `action` is one word: open, create, modify, rename, delete, chmod, chown, link."""

    source: Name
    action: Name
    path: Text
    to_path: Text = ""
    pid: Pid = 0
    uid: Count | None = None
    exe: Text = ""
    success: bool = True


class Log(Common, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag="log"):
    """What another program said: a rule of theirs that fired, or a line that no parser knows better."""

    source: Name
    message: Text
    severity: Literal["info", "low", "medium", "high", "critical"] = "info"
    rule: Name = ""
    pid: Pid = 0
    exe: Text = ""
    fields: Annotated[dict[Name, Text], Meta(max_length=64)] = {}


Event = Exec | Exit | FlowSeen | Listen | VerdictSeen | Auth | File | Log
KINDS: Final = ("exec", "exit", "flow", "listen", "verdict", "auth", "file", "log")


class EventBatch(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Events of one host and boot, sequences rising. What a third party sent has a boot id of its own.

    sent_ns: the host's wall clock when the batch was made
    lost:    events that were lost on the host since it booted, by where
    """

    host_id: HostId
    boot_id: BootId
    sent_ns: Nanoseconds
    events: Annotated[tuple[Event, ...], Meta(min_length=1, max_length=MAX_BATCH)]
    lost: Annotated[dict[Name, Count], Meta(max_length=MAX_COUNTERS)] = {}
