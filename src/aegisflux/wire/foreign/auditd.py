"""Lines of audit.log. The records of one serial are one event: SYSCALL with EXECVE, PATH, CWD and PROCTITLE.

What a process may choose (names, arguments) stands in quotes, or as hexadecimal where it holds a blank, a
quote or a control character; so nothing that stands in quotes can end them.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from aegisflux.domain.errors import Invalid, OverLimit
from aegisflux.domain.event import MAX_ARGS, Ancestor, Auth, Event, Exec, File, Log
from aegisflux.wire.foreign.common import (
    SECOND,
    Record,
    address,
    checked,
    fields_of,
    line_of,
    name,
    needed,
    number,
    text,
    within,
)

PIDS: Final = 1 << 31
MAX_GROUPS: Final = 50_001
MAX_LINES: Final = 256
HEAD: Final = re.compile(
    r"(?:node=(?P<node>\S+) )?type=(?P<type>[A-Z0-9_]+|UNKNOWN\[\d+\]) "
    r"msg=audit\((?P<seconds>\d{1,12})\.(?P<part>\d{1,9}):(?P<serial>\d{1,20})\) ?:\s*(?P<rest>.*)",
    re.ASCII,
)
SERIAL: Final = re.compile(rb"(?:node=(\S+) )?type=\S+ msg=audit\((\d{1,12}\.\d{1,9}:\d{1,20})\) ?:")
FIELD: Final = re.compile(r"([A-Za-z_][\w-]*(?:\[\d+\])?)=(\"[^\"]*\"|'[^']*'|\S*)", re.ASCII)
ARGUMENT: Final = re.compile(r"a(\d{1,6})(?:\[\d{1,6}\])?", re.ASCII)
HEX: Final = re.compile(r"(?:[0-9A-F]{2})+", re.ASCII)
AUTHS: Final = (
    "USER_AUTH", "USER_LOGIN", "USER_ACCT", "USER_CHAUTHTOK", "USER_START", "GRP_AUTH",
    "CRED_ACQ", "CRED_REFR", "CRED_DISP",
)  # fmt: skip
X86_64, AARCH64 = "c000003e", "c00000b7"
EXECS: Final = {X86_64: (59, 322), AARCH64: (221, 281)}
FILES: Final = {
    X86_64: {
        2: "open", 257: "open", 437: "open", 85: "create", 82: "rename", 264: "rename", 316: "rename",
        87: "delete", 263: "delete", 84: "delete", 90: "chmod", 91: "chmod", 268: "chmod", 92: "chown",
        93: "chown", 94: "chown", 260: "chown", 86: "link", 265: "link", 88: "link", 266: "link",
        76: "modify", 83: "create", 258: "create", 133: "create", 259: "create",
    },
    AARCH64: {
        56: "open", 437: "open", 38: "rename", 276: "rename", 35: "delete", 52: "chmod", 53: "chmod",
        54: "chown", 55: "chown", 37: "link", 36: "link", 45: "modify", 34: "create", 33: "create",
    },
}  # fmt: skip

Fields = dict[str, str]


def grouped(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of each serial together, in the order of their first; other lines alone."""
    groups: dict[object, list[bytes]] = {}
    for place, line in enumerate(lines):
        found = SERIAL.match(line)
        group = groups.setdefault(found.groups() if found else place, [])
        if len(group) < MAX_LINES:
            group.append(line)
        if len(groups) > MAX_GROUPS:
            raise OverLimit("posted_events", MAX_GROUPS - 1, len(groups), "request")
    for group in groups.values():
        yield b"\n".join(group)


def event(record: Record, seq: int, now_ns: int) -> Event:
    """What the records of one serial say; raises Invalid where they are not auditd's."""
    del now_ns
    heads = [_head(line) for line in line_of(record).split("\n")]
    first = heads[0]
    when = within(int(first["seconds"]) * SECOND + int(first["part"].ljust(9, "0")), "time")
    kinds: dict[str, list[Fields]] = {}
    for head in heads:
        kinds.setdefault(head["type"], []).append(_fields(head["rest"]))
    auth = next((kind for kind in AUTHS if kind in kinds), None)
    made: Event | None = None
    if "SYSCALL" in kinds:
        made = _syscall(kinds, seq, when)
    elif auth is not None:
        made = _auth(auth, kinds[auth][0], seq, when)
    return checked(made or _log(heads, kinds, seq, when))


def _head(line: str) -> Fields:
    found = HEAD.fullmatch(line.partition("\x1d")[0])
    if found is None:
        raise Invalid("line", "type=... msg=audit(time:serial): ...", line)
    return {key: value or "" for key, value in found.groupdict().items()}


def _fields(rest: str) -> Fields:
    """The fields of a record, as they stand; those inside of `msg='...'` beside the others."""
    found: Fields = {}
    for key, value in FIELD.findall(rest):
        if key == "msg" and value.startswith("'"):
            found |= dict(FIELD.findall(value[1:-1]))
        else:
            found.setdefault(key, value)
    return found


def _chosen(value: str | None) -> str:
    """A value that somebody chose: in quotes, or hexadecimal."""
    if value is None or value in ("(null)", "?"):
        return ""
    if value.startswith('"'):
        return value.strip('"')
    return _unhexed(value) if HEX.fullmatch(value) else value


def _unhexed(value: str) -> str:
    return bytes.fromhex(value).decode("utf-8", "backslashreplace")


def _syscall(kinds: dict[str, list[Fields]], seq: int, when: int) -> Event | None:
    call = kinds["SYSCALL"][0]
    arch, syscall = call.get("arch", ""), number(call.get("syscall")) or 0
    success = call.get("success") == "yes"
    if success and ("EXECVE" in kinds or syscall in EXECS.get(arch, ())):
        return _exec(call, kinds, seq, when)
    action = FILES.get(arch, {}).get(syscall)
    paths = [_path(item, kinds) for item in kinds.get("PATH", ()) if item.get("nametype") != "PARENT"]
    if action is None or not paths:
        return None
    created = any(item.get("nametype") == "CREATE" for item in kinds["PATH"])
    several = action in ("rename", "link") and len(paths) > 1
    return File(
        seq=seq,
        time_ns=when,
        source="auditd",
        action="create" if created and action == "open" else action,
        path=text(paths[0]),
        to_path=text(paths[-1]) if several else "",
        pid=needed(call.get("pid"), "pid", PIDS),
        uid=number(call.get("uid"), 0xFFFFFFFF),
        exe=text(_chosen(call.get("exe"))),
        success=success,
    )


def _exec(call: Fields, kinds: dict[str, list[Fields]], seq: int, when: int) -> Exec:
    args, cut = _arguments(kinds)
    parent = number(call.get("ppid"), PIDS)
    return Exec(
        seq=seq,
        time_ns=when,
        pid=needed(call.get("pid"), "pid", PIDS),
        start_ns=0,
        uid=needed(call.get("uid"), "uid", 0xFFFFFFFF),
        path=text(_chosen(call.get("exe"))),
        args=tuple(map(text, args)),
        args_cut=cut,
        comm=name(_chosen(call.get("comm"))),
        ancestors=(Ancestor(parent, 0, ""),) if parent else (),
    )


def _arguments(kinds: dict[str, list[Fields]]) -> tuple[list[str], bool]:
    """Arguments from EXECVE, whose long ones come in pieces; else from PROCTITLE, which the kernel cuts."""
    if "EXECVE" not in kinds:
        given = kinds.get("PROCTITLE", [{}])[0].get("proctitle")
        args = _chosen(given).split("\0") if given else []
        return args[:MAX_ARGS], len(args) > MAX_ARGS
    found: dict[int, str] = {}
    for record in kinds["EXECVE"]:
        for key, value in record.items():
            place = ARGUMENT.fullmatch(key)
            if place is not None and int(place[1]) < MAX_ARGS:
                at = int(place[1])
                found[at] = found.get(at, "") + _chosen(value)
    told = max((number(record.get("argc")) or 0) for record in kinds["EXECVE"])
    return [found[at] for at in sorted(found)], told > len(found)


def _path(item: Fields, kinds: dict[str, list[Fields]]) -> str:
    given = _chosen(item.get("name"))
    where = _chosen(kinds.get("CWD", [{}])[0].get("cwd"))
    return given if given.startswith("/") or not where else f"{where.rstrip('/')}/{given}"


def _auth(kind: str, said: Fields, seq: int, when: int) -> Auth | None:
    result = said.get("res", "").strip("'\"")
    if result not in ("success", "failed", "1", "0"):
        return None
    return Auth(
        seq=seq,
        time_ns=when,
        source="auditd",
        success=result in ("success", "1"),
        user=name(_chosen(said.get("acct")) or said.get("id", "")),
        service=name(_chosen(said.get("exe")).rpartition("/")[2]),
        method=name(said.get("op", "")),
        address=address(said.get("addr", "")),
        pid=number(said.get("pid"), PIDS) or 0,
        message=text(kind),
    )


def _log(heads: list[Fields], kinds: dict[str, list[Fields]], seq: int, when: int) -> Log:
    """What no rule knows better: the first record, with the fields of all."""
    fields: Fields = {}
    for records in kinds.values():
        for record in records:
            fields |= {key: value for key, value in record.items() if key not in fields}
    return Log(
        seq=seq,
        time_ns=when,
        source="auditd",
        message=text(f"{heads[0]['type']}: {heads[0]['rest']}"),
        rule=name(_chosen(fields.get("key")) or heads[0]["type"]),
        pid=number(fields.get("pid"), PIDS) or 0,
        exe=text(_chosen(fields.get("exe"))),
        fields=fields_of(fields),
    )
