"""Logs: one JSON object a line, or text for people.

A log holds what hosts and clients chose. JSON is of ASCII alone; of text every value is made printable.
"""

import json
import logging
import sys
import time
from collections.abc import Hashable
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor

from aegisflux.domain.repeats import Repeats
from aegisflux.domain.text import encodable_all, paragraph, printable
from aegisflux.runtime.terminal import Printable

Format = Literal["json", "text"]
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(level: str = "info", form: Format = "json") -> None:
    """Set up structlog for this process; logs go to stderr. Secrets are never values of a log."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        Sparse(),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
    ]
    if form == "text":
        last: list[Processor] = [
            _printable,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), timestamp_key="ts"),
        ]
    else:
        last = [_named, structlog.processors.JSONRenderer(serializer=_json)]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Printable("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a part of the program."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return logger


class Sparse:
    """A line that comes again and again is written ten times in ten seconds, then counted (`repeated`).

    A kind is a message of a part of the program about one host, one subject or one detail.
    """

    def __init__(self) -> None:
        self._repeats, self._telling = Repeats(), False

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        """Drop the line, or let it through with the count of those like it that were dropped."""
        if self._telling:
            return event
        now = time.monotonic()
        if over := self._repeats.over(now):
            self._tell(over)
        left_out = self._repeats.count(_kind(event), now)
        if left_out is None:
            raise structlog.DropEvent
        return {**event, "repeated": left_out} if left_out else event

    def _tell(self, over: list[tuple[Hashable, int]]) -> None:
        self._telling = True
        try:
            log = get("logs")
            for kind, count in over:
                part, words, about = kind if isinstance(kind, tuple) else ("", "other lines", "")
                log.warning("lines were left out", of=f"{part}: {words}", about=about, repeated=count)
        finally:
            self._telling = False


def _kind(event: EventDict) -> tuple[str, str, str]:
    about = event.get("host_id") or event.get("subject")
    if about is None:
        about = str(event.get("detail", "")).partition(": ")[0][:64]
    return str(event.get("part", "")), str(event.get("event", ""))[:64], str(about)[:128]


def _named(_logger: object, _method: str, event: EventDict) -> EventDict:
    event["msg"] = event.pop("event")
    event["logger"] = event.pop("part", "")
    return event


def _printable(_logger: object, _method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        text = value if isinstance(value, str) else str(value)
        event[name] = paragraph(text) if name == "exception" else printable(text)
    return event


def _json(value: object, **_options: object) -> str:
    """One line, always: an object that JSON has no form for is its text."""
    return json.dumps(encodable_all(value), default=lambda one: encodable_all(str(one)), skipkeys=True)
