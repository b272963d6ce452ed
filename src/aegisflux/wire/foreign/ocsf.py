"""OCSF as JSON: Process Activity 1007, Network Activity 4001, Authentication 3002, File System Activity 1001;
what is of another class, or says too little for its own, becomes a Log.
"""

from typing import Any, Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import MAX_ARGS, Ancestor, Auth, Event, Exec, Exit, File, FlowSeen, Log, Verdict
from aegisflux.wire.foreign.common import (
    Record,
    Severity,
    address,
    checked,
    document,
    fields_of,
    inner,
    name,
    needed,
    number,
    text,
    within,
)

PIDS: Final = 1 << 31
MILLISECOND: Final = 1_000_000
FILE_SYSTEM, PROCESS, AUTHENTICATION, NETWORK = 1001, 1007, 3002, 4001
SEVERITY: Final[dict[int, Severity]] = {2: "low", 3: "medium", 4: "high", 5: "critical", 6: "critical"}
FILE_ACTIONS: Final = {
    1: "create",
    2: "open",
    3: "modify",
    4: "delete",
    5: "rename",
    6: "chmod",
    7: "chmod",
    14: "open",
}
PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
ACTIONS: Final[dict[int, Verdict]] = {1: "allowed", 2: "blocked"}


def event(record: Record, seq: int, now_ns: int) -> Event:
    """The event; raises Invalid where class or time are not there."""
    del now_ns
    value = document(record)
    kind = needed(value.get("class_uid"), "class_uid", 1 << 31)
    when = within(needed(value.get("time"), "time", ((1 << 63) - 1) // MILLISECOND) * MILLISECOND, "time")
    makers = {PROCESS: _process, NETWORK: _network, AUTHENTICATION: _authentication, FILE_SYSTEM: _file}
    maker = makers.get(kind)
    made = maker(value, seq, when) if maker else None
    return checked(made or _log(value, seq, when))


def _process(value: dict[str, Any], seq: int, when: int) -> Event | None:
    process, activity = value.get("process"), number(value.get("activity_id"))
    if activity not in (1, 2):
        return None
    if not isinstance(process, dict):
        raise Invalid("process", "an object", process)
    pid = needed(process.get("pid"), "process.pid", PIDS)
    path, start = _path(process), _milliseconds(process.get("created_time"))
    comm = name(process.get("name"))[:15]
    if activity == 2:
        code = (number(value.get("exit_code")) or 0) & 255
        return Exit(seq=seq, time_ns=when, pid=pid, start_ns=start, code=code, path=path, comm=comm)
    parent = process.get("parent_process") or inner(value, "actor", "process")
    ancestors: tuple[Ancestor, ...] = ()
    if isinstance(parent, dict) and (above := number(parent.get("pid"), PIDS)) is not None:
        ancestors = (
            Ancestor(above, _milliseconds(parent.get("created_time")), name(parent.get("name"))[:15]),
        )
    args = text(process.get("cmd_line")).split()
    uid = number(inner(process, "user", "uid"), 0xFFFFFFFF)
    if uid is None:
        uid = needed(inner(value, "actor", "user", "uid"), "process.user.uid", 0xFFFFFFFF)
    return Exec(
        seq=seq, time_ns=when, pid=pid, start_ns=start, uid=uid, path=path, args=tuple(args[:MAX_ARGS]),
        args_cut=len(args) > MAX_ARGS, comm=comm, ancestors=ancestors,
    )  # fmt: skip


def _network(value: dict[str, Any], seq: int, when: int) -> Event | None:
    source, target = address(inner(value, "src_endpoint", "ip")), address(inner(value, "dst_endpoint", "ip"))
    if source is None or target is None:
        return None
    ingress = number(inner(value, "connection_info", "direction_id")) == 1
    traffic = value.get("traffic")
    # In and out are the source's in OCSF, and the local side's here.
    out, back = ("in", "out") if ingress else ("out", "in")
    proto = number(inner(value, "connection_info", "protocol_num"), 255)
    if proto is None:
        proto = PROTOCOLS.get(text(inner(value, "connection_info", "protocol_name")).lower(), 0)
    return FlowSeen(
        seq=seq,
        time_ns=when,
        direction="ingress" if ingress else "egress",
        proto=proto,
        local=target if ingress else source,
        peer=source if ingress else target,
        port=number(inner(value, "dst_endpoint", "port"), 65_535) or 0,
        first_ns=_milliseconds(value.get("start_time")) or when,
        last_ns=_milliseconds(value.get("end_time")) or when,
        connections=1 if number(value.get("activity_id")) == 1 else 0,
        verdict=ACTIONS.get(number(value.get("action_id")) or 0, "unknown"),
        pid=number(inner(value, "actor", "process", "pid"), PIDS) or 0,
        path=_path(inner(value, "actor", "process")),
        packets_out=number(inner(traffic, f"packets_{out}")) or 0,
        packets_in=number(inner(traffic, f"packets_{back}")) or 0,
        bytes_out=number(inner(traffic, f"bytes_{out}")) or 0,
        bytes_in=number(inner(traffic, f"bytes_{back}")) or 0,
    )


def _authentication(value: dict[str, Any], seq: int, when: int) -> Event | None:
    status = number(value.get("status_id"))
    if number(value.get("activity_id")) != 1 or status not in (1, 2):
        return None
    return Auth(
        seq=seq,
        time_ns=when,
        source="ocsf",
        success=status == 1,
        user=name(inner(value, "user", "name")),
        service=name(inner(value, "service", "name")),
        method=name(value.get("auth_protocol")),
        address=address(inner(value, "src_endpoint", "ip")),
        port=number(inner(value, "src_endpoint", "port"), 65_535),
        pid=number(inner(value, "actor", "process", "pid"), PIDS) or 0,
        message=text(value.get("message")),
    )


def _file(value: dict[str, Any], seq: int, when: int) -> Event | None:
    action = FILE_ACTIONS.get(number(value.get("activity_id")) or 0)
    path = inner(value, "file", "path")
    if action is None or not isinstance(path, str):
        return None
    return File(
        seq=seq,
        time_ns=when,
        source="ocsf",
        action=action,
        path=text(path),
        to_path=text(inner(value, "file_result", "path")),
        pid=number(inner(value, "actor", "process", "pid"), PIDS) or 0,
        uid=number(inner(value, "actor", "user", "uid"), 0xFFFFFFFF),
        exe=_path(inner(value, "actor", "process")),
        success=number(value.get("status_id")) != 2,
    )


def _log(value: dict[str, Any], seq: int, when: int) -> Log:
    title = inner(value, "finding_info", "title") or value.get("class_name") or value.get("class_uid")
    return Log(
        seq=seq,
        time_ns=when,
        source="ocsf",
        message=text(value.get("message") or title),
        severity=SEVERITY.get(number(value.get("severity_id")) or 0, "info"),
        rule=name(title),
        pid=number(inner(value, "actor", "process", "pid"), PIDS) or 0,
        exe=_path(inner(value, "actor", "process")),
        fields=fields_of(value, ("message", "time")),
    )


def _path(process: object) -> str:
    return text(inner(process, "file", "path") or inner(process, "path"))


def _milliseconds(value: object) -> int:
    return (number(value, ((1 << 63) - 1) // MILLISECOND) or 0) * MILLISECOND
