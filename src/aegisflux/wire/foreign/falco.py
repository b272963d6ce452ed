"""Falco's alerts, one JSON object each (`json_output: true`): a rule of theirs that fired."""

from typing import Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import Event, Log
from aegisflux.wire.foreign.common import (
    Record,
    Severity,
    checked,
    document,
    fields_of,
    name,
    number,
    stamp,
    text,
)

SEVERITY: Final[dict[str, Severity]] = {
    "emergency": "critical",
    "alert": "critical",
    "critical": "critical",
    "error": "high",
    "warning": "medium",
    "notice": "low",
    "informational": "info",
    "info": "info",
    "debug": "info",
}


def event(record: Record, seq: int, now_ns: int) -> Event:
    """The alert as a Log; raises Invalid where rule, time or output are not there."""
    del now_ns
    value = document(record)
    for key in ("rule", "output"):
        if not isinstance(value.get(key), str):
            raise Invalid(key, "a text, as in each alert of Falco", value.get(key))
    given = value.get("output_fields")
    outputs = given if isinstance(given, dict) else {}
    severity = SEVERITY.get(text(value.get("priority"), 32).lower())
    if severity is None:
        raise Invalid("priority", " or ".join(SEVERITY), value.get("priority"))
    fields = fields_of(outputs)
    if isinstance(value.get("tags"), list) and len(fields) < 64:
        fields["tags"] = text(",".join(text(tag, 64) for tag in value["tags"][:64]))
    return checked(
        Log(
            seq=seq,
            time_ns=stamp(value.get("time"), "time"),
            source="falco",
            message=text(value["output"]),
            severity=severity,
            rule=name(value["rule"]),
            pid=number(outputs.get("proc.pid"), 1 << 31) or 0,
            exe=text(outputs.get("proc.exepath")),
            fields=fields,
        )
    )
