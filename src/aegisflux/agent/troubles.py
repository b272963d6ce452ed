"""What stands in the way of an agent that goes on: for its heartbeat, its status and its log."""

import errno
from collections.abc import Callable
from typing import Final

from aegisflux.domain.errors import AegisError
from aegisflux.domain.manifest import NackReason

FULL: Final = (errno.ENOSPC, errno.EDQUOT)
MAX_TROUBLES: Final = 16
MAX_CHARS: Final = 300


class Troubles:
    """The current troubles by what they are about; each is logged when it begins and when it ends."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._texts: dict[str, str] = {}

    def begin(self, about: str, text: str) -> None:
        """This does not work now."""
        if self._texts.get(about) != text:
            self._texts[about] = text
            self._log(f"trouble: {text}")

    def not_written(self, about: str, error: AegisError) -> None:
        """This could not be written; it is held in memory."""
        self.begin(about, f"{disk_word(error)}: {error}")

    def end(self, about: str) -> None:
        """It works (again)."""
        if (text := self._texts.pop(about, None)) is not None:
            self._log(f"trouble is over: {text}")

    def __contains__(self, about: str) -> bool:
        return about in self._texts

    def texts(self) -> tuple[str, ...]:
        """All of them in words, as far as a heartbeat has room."""
        return tuple(text[:MAX_CHARS] for text in self._texts.values())[:MAX_TROUBLES]


def disk_word(error: AegisError) -> str:
    """What is wrong with the disk that refused a write."""
    number = getattr(error.__cause__, "errno", None)
    return "disk full" if number in FULL else "disk read-only" if number == errno.EROFS else "disk failed"


def disk_reason(error: AegisError) -> NackReason:
    """The same as the reason of a NACK."""
    return "disk_full" if disk_word(error) == "disk full" else "not_durable"
