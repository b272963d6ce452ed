"""The room that a service has for dead letters of each host."""

from aegisflux.runtime import logs, metrics
from aegisflux.runtime.over_share import LetterRoom

log = logs.get("letters")


def letter_room(service: str) -> LetterRoom:
    """Counted in our metrics; hosts whose letters are not kept are named in the log."""
    return LetterRoom(f"dead letters of {service}", _say, metrics.count_over_share)


def _say(words: str) -> None:
    log.warning("letters are not kept", detail=words)
