"""Tetragon's JSON export: process_exec, process_exit and process_kprobe.

Its processes carry their start on the wall clock; that stands in `start_ns` here, where it does what it is
for: it tells two processes with one pid apart.
"""

import shlex
from typing import Any, Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import MAX_ARGS, Ancestor, Event, Exec, Exit, File, FlowSeen, Log
from aegisflux.wire.foreign.common import (
    Record,
    address,
    checked,
    document,
    fields_of,
    inner,
    name,
    needed,
    number,
    stamp,
    text,
)

PIDS: Final = 1 << 31
MAY_WRITE: Final = 2
KINDS: Final = ("process_exec", "process_exit", "process_kprobe")
FILE_CALLS: Final = {
    "security_file_permission": "open",
    "security_file_open": "open",
    "security_mmap_file": "open",
    "fd_install": "open",
    "security_path_truncate": "modify",
    "security_inode_unlink": "delete",
    "security_path_unlink": "delete",
}
SIGNALS: Final = (
    "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1",
    "SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP",
    "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH",
    "SIGIO", "SIGPWR", "SIGSYS",
)  # fmt: skip


def event(record: Record, seq: int, now_ns: int) -> Event:
    """The event; raises Invalid where it is of another kind, or a process lacks its pid."""
    del now_ns
    value = document(record)
    kind = next((kind for kind in KINDS if isinstance(value.get(kind), dict)), None)
    if kind is None:
        raise Invalid("", " or ".join(KINDS), ", ".join(map(str, value))[:80])
    body: dict[str, Any] = value[kind]
    process = body.get("process")
    if not isinstance(process, dict):
        raise Invalid(f"{kind}.process", "an object", process)
    when = stamp(value.get("time") or body.get("time") or process.get("start_time"), "time")
    made: Event
    if kind == "process_exec":
        made = _exec(process, body.get("parent"), seq, when)
    elif kind == "process_exit":
        made = _exit(process, body, seq, when)
    else:
        made = _kprobe(process, body, seq, when)
    return checked(made)


def _exec(process: dict[str, Any], parent: object, seq: int, when: int) -> Exec:
    args, cut = _arguments(process.get("arguments"))
    path = text(process.get("binary"))
    ancestors: tuple[Ancestor, ...] = ()
    if isinstance(parent, dict) and number(parent.get("pid"), PIDS) is not None:
        ancestors = (Ancestor(needed(parent["pid"], "pid"), _started(parent), _comm(parent.get("binary"))),)
    return Exec(
        seq=seq,
        time_ns=when,
        pid=needed(process.get("pid"), "process.pid", PIDS),
        start_ns=_started(process),
        uid=needed(process.get("uid", 0), "process.uid", 0xFFFFFFFF),
        path=path,
        args=(path, *args)[:MAX_ARGS],
        args_cut=cut or "truncArgs" in text(process.get("flags")),
        comm=_comm(path),
        ancestors=ancestors,
    )


def _exit(process: dict[str, Any], body: dict[str, Any], seq: int, when: int) -> Exit:
    signal = text(body.get("signal"), 32)
    return Exit(
        seq=seq,
        time_ns=when,
        pid=needed(process.get("pid"), "process.pid", PIDS),
        start_ns=_started(process),
        code=(number(body.get("status")) or 0) & 255,
        signal=SIGNALS.index(signal) + 1 if signal in SIGNALS else 0,
        path=text(process.get("binary")),
        comm=_comm(process.get("binary")),
    )


def _kprobe(process: dict[str, Any], body: dict[str, Any], seq: int, when: int) -> Event:
    function = name(body.get("function_name"))
    given = body.get("args")
    args = [arg for arg in given if isinstance(arg, dict)] if isinstance(given, list) else []
    pid, path = needed(process.get("pid"), "process.pid", PIDS), text(process.get("binary"))
    sock = next((arg["sock_arg"] for arg in args if isinstance(arg.get("sock_arg"), dict)), None)
    file = next((arg["file_arg"] for arg in args if isinstance(arg.get("file_arg"), dict)), None)
    if function == "tcp_connect" and sock is not None:
        local, peer = address(sock.get("saddr")), address(sock.get("daddr"))
        if local is None or peer is None:
            raise Invalid("sock_arg", "two addresses", f"{sock.get('saddr')} {sock.get('daddr')}")
        return FlowSeen(
            seq=seq, time_ns=when, direction="egress", proto=6, local=local, peer=peer,
            port=needed(sock.get("dport"), "sock_arg.dport", 65_535), first_ns=when, last_ns=when,
            connections=1, pid=pid, start_ns=_started(process), path=path,
        )  # fmt: skip
    if function in FILE_CALLS and file is not None:
        writes = any(number(arg.get("int_arg")) == MAY_WRITE for arg in args)
        action = "modify" if writes else FILE_CALLS[function]
        touched = text(file.get("path"))
        uid = number(process.get("uid"), 0xFFFFFFFF)
        return File(seq=seq, time_ns=when, source="tetragon", action=action, path=touched, pid=pid, uid=uid,
                    exe=path)  # fmt: skip
    fields = fields_of({"arguments": process.get("arguments"), "args": args, "action": body.get("action")})
    return Log(
        seq=seq,
        time_ns=when,
        source="tetragon",
        message=text(f"{function} by {path}"),
        rule=name(inner(body, "policy_name")),
        pid=pid,
        exe=path,
        fields=fields,
    )


def _arguments(value: object) -> tuple[list[str], bool]:
    """Arguments of one text: those with a blank stand in quotes."""
    given = text(value)
    cut = isinstance(value, str) and len(value) > len(given)
    try:
        found = shlex.split(given)
    except ValueError:
        found = given.split()
    return found[: MAX_ARGS - 1], cut or len(found) >= MAX_ARGS


def _started(process: dict[str, Any]) -> int:
    given = process.get("start_time")
    return stamp(given, "start_time") if given else 0


def _comm(path: object) -> str:
    return text(path).rpartition("/")[2][:15]
