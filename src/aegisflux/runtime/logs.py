"""Logs: one JSON object a line, or text for people.

A log holds what hosts and clients chose. JSON is of ASCII alone; of text every value is made printable.
"""

import json
import logging
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor

from aegisflux.domain.text import encodable_all, paragraph, printable
from aegisflux.runtime.terminal import Printable

Format = Literal["json", "text"]
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(level: str = "info", form: Format = "json") -> None:
    """Set up structlog for this process; logs go to stderr. Secrets are never values of a log."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
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
