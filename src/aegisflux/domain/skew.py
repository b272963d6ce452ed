"""A clock that is wrong, in words: of a host as the control plane sees it, and behind an error of TLS."""

from datetime import UTC, datetime
from typing import Final

AHEAD_SECONDS: Final = 30.0
BEHIND_SECONDS: Final = 300.0  # a heartbeat may have waited on the bus
_CERTIFICATE: Final = ("certificate is not yet valid", "certificate has expired")


def trouble(offset: float) -> str:
    """Return what is wrong with a host's clock; empty: nothing. `offset`: the control plane's clock minus
    that of the host, in seconds."""
    if -offset > AHEAD_SECONDS:
        return (
            f"its clock is {-offset:.0f} s ahead of the control plane's, so leases end too soon:"
            " set the clock, then run aegisflux agent reset-clock"
        )
    if offset > BEHIND_SECONDS:
        return f"its clock is {offset:.0f} s behind the control plane's, or its heartbeats come late"
    return ""


def explained(error: str, now: float) -> str:
    """Return an error, with the clock where a certificate is outside of its time by it. `now`: what the clock
    says, in seconds since the epoch."""
    if not any(words in error for words in _CERTIFICATE):
        return error
    clock = datetime.fromtimestamp(now, UTC)
    return (
        f"{error}; the clock of this machine says {clock:%Y-%m-%d %H:%M:%S} UTC: set it where that is wrong"
    )
