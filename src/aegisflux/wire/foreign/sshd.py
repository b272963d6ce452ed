"""Lines of sshd as syslog or the journal write them: RFC 3164, RFC 5424, ISO stamps, `short*` of journalctl.

A user may choose a name that looks like the rest of a line. sshd writes what it knows itself last, so the
last `from` counts.
"""

import re
from datetime import UTC, datetime
from typing import Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import Auth, Event, Log
from aegisflux.wire.foreign.common import (
    SECOND,
    Record,
    address,
    checked,
    line_of,
    name,
    number,
    stamp,
    text,
    within,
)

MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
TOLERANCE: Final = 86_400
MAX_LINE: Final = 8192
_PRI: Final = r"(?:<\d{1,3}>)?"
_TAG: Final = r"(?P<host>\S+) (?P<program>sshd(?:-session|-auth)?)(?:\[(?P<pid>\d{1,10})\])?: (?P<said>.*)"
_CLOCK: Final = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<part>\d{1,9}))?"
BSD: Final = re.compile(rf"{_PRI}(?P<month>[A-Z][a-z]{{2}}) +(?P<day>\d{{1,2}}) {_CLOCK} {_TAG}", re.ASCII)
ISO: Final = re.compile(rf"{_PRI}(?P<stamp>\d{{4}}-\d\d-\d\dT[\d:.,]+(?:Z|[+-]\d\d:?\d\d)?) {_TAG}", re.ASCII)
FULL: Final = re.compile(rf"[A-Z][a-z]{{2}} (?P<stamp>\d{{4}}-\d\d-\d\d [\d:.]+ UTC) {_TAG}", re.ASCII)
UNIX: Final = re.compile(rf"(?P<epoch>\d{{1,12}})\.(?P<part>\d{{1,9}}) {_TAG}", re.ASCII)
RFC5424: Final = re.compile(
    r"<\d{1,3}>1 (?P<stamp>\S+) (?P<host>\S+) (?P<program>sshd(?:-session|-auth)?) (?P<pid>\d{1,10}|-) \S+ "
    r'(?:-|(?:\[(?:[^"\]]|"(?:[^"\\]|\\.)*")*\])+)(?: \ufeff?(?P<said>.*))?',
    re.ASCII,
)
HEADS: Final = (BSD, ISO, FULL, UNIX, RFC5424)
REPEATED: Final = re.compile(r"message repeated [0-9]+ times: \[ (.*)\]")
_FROM: Final = r"from (?P<address>\S+)(?: port (?P<port>[0-9]{1,5}))?"
ACCEPTED: Final = re.compile(rf"Accepted (?P<method>\S+) for (?P<user>.*) {_FROM}(?: ssh2)?(?:: .*)?")
FAILED: Final = re.compile(
    rf"Failed (?P<method>\S+) for (?:invalid user )?(?P<user>.*) {_FROM}(?: ssh2)?(?:: .*)?"
)
INVALID: Final = re.compile(rf"Invalid user (?P<user>.*) {_FROM}")
EXCEEDED: Final = re.compile(
    rf"(?:error: )?maximum authentication attempts exceeded for (?:invalid user )?(?P<user>.*) {_FROM}"
    r"(?: ssh2)?(?: \[preauth\])?"
)
TRIES: Final = ((ACCEPTED, True), (FAILED, False), (INVALID, False), (EXCEEDED, False))
ENDED: Final = re.compile(
    r"(?:Connection (?:closed|reset) by|Disconnected from|Received disconnect from|Disconnecting)"
    r"(?: (?:authenticating |invalid )?user (?P<user>.*))?"
    r" (?P<address>(?=[0-9a-fA-F]*[.:])[0-9a-fA-F.:]*[0-9a-fA-F])(?: port (?P<port>[0-9]{1,5}))?(?=[ :]|\Z).*"
)


def event(record: Record, seq: int, now_ns: int) -> Event:
    """What sshd said; raises Invalid where the line is not sshd's. `now_ns` gives the year that it lacks."""
    line = line_of(record)[:MAX_LINE]
    found = next((found for head in HEADS if (found := head.fullmatch(line)) is not None), None)
    if found is None:
        raise Invalid("line", "a line of sshd, of syslog or the journal", line)
    parts = found.groupdict()
    said = (parts["said"] or "").strip()
    pid = number(parts["pid"], 1 << 31) or 0
    when = _time(parts, now_ns)
    repeated = REPEATED.fullmatch(said)
    once = repeated[1] if repeated else said
    return checked(_auth(once, said, seq, when, pid) or _log(said, seq, when, pid))


def _auth(said: str, whole: str, seq: int, when: int, pid: int) -> Auth | None:
    for pattern, success in TRIES:
        found = pattern.fullmatch(said)
        if found is None:
            continue
        parts = found.groupdict()
        return Auth(
            seq=seq,
            time_ns=when,
            source="sshd",
            success=success,
            user=name(parts["user"]),
            service="sshd",
            method=name(parts.get("method") or ("none" if pattern is INVALID else "")),
            address=address(parts["address"]),
            port=number(parts["port"], 65_535),
            pid=pid,
            message=text(whole),
        )
    return None


def _log(said: str, seq: int, when: int, pid: int) -> Log:
    found = ENDED.fullmatch(said)
    fields = {key: name(value) for key, value in found.groupdict().items() if value} if found else {}
    rule = "disconnect" if found else ""
    low = said.startswith("error:") or "POSSIBLE BREAK-IN ATTEMPT" in said
    return Log(
        seq=seq,
        time_ns=when,
        source="sshd",
        message=text(said),
        severity="low" if low else "info",
        rule=rule,
        pid=pid,
        exe="/usr/sbin/sshd",
        fields=fields,
    )


def _time(parts: dict[str, str | None], now_ns: int) -> int:
    if parts.get("stamp"):
        return stamp(parts["stamp"], "time")
    part = int((parts.get("part") or "0").ljust(9, "0"))
    if parts.get("epoch"):
        return within(int(parts["epoch"] or 0) * SECOND + part, "time")
    month = parts["month"] or ""
    if month not in MONTHS:
        raise Invalid("time", "a month", month)
    clock = [int(parts[key] or 0) for key in ("day", "hour", "minute", "second")]
    return _in_year(MONTHS.index(month) + 1, clock, now_ns // SECOND) * SECOND + part


def _in_year(month: int, clock: list[int], now: int) -> int:
    """The newest such moment that is at most a day ahead; a 29 February lies up to eight years back."""
    year = datetime.fromtimestamp(now + TOLERANCE, UTC).year
    for back in range(9):
        try:
            moment = int(datetime(year - back, month, *clock, tzinfo=UTC).timestamp())  # type: ignore[misc,arg-type]
        except ValueError:
            continue
        if moment <= now + TOLERANCE:
            return within(moment, "time")
    raise Invalid("time", "a day of the calendar", f"{MONTHS[month - 1]} {clock[0]}")
