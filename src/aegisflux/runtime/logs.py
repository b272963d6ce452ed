"""Logs: one JSON object a line, or text for people."""

import logging
import sys
from typing import Literal

import orjson
import structlog
from structlog.typing import EventDict, Processor

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
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), timestamp_key="ts")
        ]
    else:
        last = [_named, structlog.processors.JSONRenderer(serializer=_json)]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a part of the program."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return logger


def _named(_logger: object, _method: str, event: EventDict) -> EventDict:
    event["msg"] = event.pop("event")
    event["logger"] = event.pop("part", "")
    return event


def _json(value: object, **_options: object) -> str:
    return orjson.dumps(value, default=str).decode()
