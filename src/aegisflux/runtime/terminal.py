"""Last defences of a terminal and of a log: what a process prints when nobody chose how.

Texts are escaped where they are printed (`domain.text`). Tracebacks, messages of libraries and streams in an
old encoding do not pass there; they are made safe here.
"""

import io
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

from aegisflux.domain.text import paragraph


class Printable(logging.Formatter):
    """A formatter whose records hold no control characters; lines after the first are indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text for a terminal."""
        return paragraph(super().format(record))


def guard() -> None:
    """Make what this process prints beside its own output safe: no traceback carries a control character,
    and no character that the encoding of a stream lacks ends the program.

    Hooks that somebody else set are left alone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _crashed
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _thread_crashed
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Printable())


def _crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(paragraph("".join(traceback.format_exception(kind, error, trace))) + "\n")


def _unraisable(found: Any) -> None:
    sys.stderr.write(paragraph(f"{found.err_msg or 'exception ignored in'}: {found.object!r}") + "\n")
    _crashed(found.exc_type, found.exc_value, found.exc_traceback)


def _thread_crashed(found: Any) -> None:
    if found.exc_value is not None:
        _crashed(found.exc_type, found.exc_value, found.exc_traceback)
