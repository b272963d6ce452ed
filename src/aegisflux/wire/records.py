"""Python mirror of bpf/sensor_maps.h: the kernel's records of processes, and counts of flows, as events.

A record is whole or refused. Texts keep what they held: bytes that are not UTF-8 stand as `\\xNN`, and
what is longer than an event may hold is cut. Nothing here knows a clock: `wall_ns` is what the wall clock
shows when the boot clock shows 0.
"""

import struct
from typing import Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import MAX_ARGS, MAX_TEXT, Ancestor, Exec, Exit

SENSOR_LAYOUT: Final = 1
EXEC, EXIT = 1, 2
CUT_ARGS, CUT_PATH, CUT_CGROUP = 1, 2, 4
MAX_ANCESTORS: Final = 16
RECORD: Final = struct.Struct("<QQIIIi16sHHHBB")
ABOVE: Final = struct.Struct("<QI4x16s")
BOUNDS: Final = struct.Struct("<IIQII")
LOSSES: Final = ("rate.exec", "rate.exit", "full.exec", "full.exit", "seen.exec", "seen.exit")
TEXTS: Final = RECORD.size + MAX_ANCESTORS * ABOVE.size


def decode_record(data: bytes, seq: int, wall_ns: int) -> Exec | Exit:
    """The event of one record. Raises Invalid on what no program of ours writes."""
    if len(data) < RECORD.size:
        raise Invalid("record", f"at least {RECORD.size} bytes", f"{len(data)}")
    (boot, start, kind, pid, uid, status, comm, path_bytes, cgroup_bytes, arg_bytes, cut, above) = (
        RECORD.unpack_from(data)
    )
    time_ns = max(0, wall_ns + boot)
    if kind == EXIT:
        return Exit(
            seq=seq,
            time_ns=time_ns,
            pid=pid,
            start_ns=start,
            code=status >> 8 & 0xFF,
            signal=status & 0x7F,
            comm=_comm(comm),
        )
    if kind != EXEC or above > MAX_ANCESTORS or len(data) < TEXTS + path_bytes + cgroup_bytes + arg_bytes:
        raise Invalid("record", "an exec or an exit, whole", f"kind {kind}, {len(data)} bytes")
    path_end = TEXTS + path_bytes
    cgroup_end = path_end + cgroup_bytes
    args, args_cut = _args(data[cgroup_end : cgroup_end + arg_bytes], bool(cut & CUT_ARGS))
    return Exec(
        seq=seq,
        time_ns=time_ns,
        pid=pid,
        start_ns=start,
        uid=uid,
        path=_path(data[TEXTS:path_end], bool(cut & CUT_PATH)),
        args=args,
        args_cut=args_cut,
        comm=_comm(comm),
        cgroup=_path(data[path_end:cgroup_end], bool(cut & CUT_CGROUP))[1:],
        ancestors=tuple(
            Ancestor(pid=p, start_ns=s, comm=_comm(c))
            for s, p, c in ABOVE.iter_unpack(data[RECORD.size : RECORD.size + above * ABOVE.size])
        ),
    )


def text_of(raw: bytes) -> str:
    """Bytes as text that an event may hold."""
    return raw.decode("utf-8", "backslashreplace")[:MAX_TEXT]


def _comm(raw: bytes) -> str:
    return text_of(raw.split(b"\0", 1)[0])


def _path(names: bytes, cut: bool) -> str:
    """Names from the last one up; of a path that was cut, the end is known."""
    parts = [text_of(name) for name in reversed(names.split(b"\0")[:-1])]
    found = ("/..." if cut else "") + "/" + "/".join(parts)
    return found if len(found) <= MAX_TEXT else "/..." + found[4 - MAX_TEXT :]


def _args(block: bytes, cut: bool) -> tuple[tuple[str, ...], bool]:
    parts = block.split(b"\0")
    if not parts[-1]:
        parts.pop()
    texts = []
    for part in parts[:MAX_ARGS]:
        text = part.decode("utf-8", "backslashreplace")
        cut = cut or len(text) > MAX_TEXT
        texts.append(text[:MAX_TEXT])
    return tuple(texts), cut or len(parts) > MAX_ARGS
