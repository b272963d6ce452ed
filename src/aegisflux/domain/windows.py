"""How many requests of each host may be on their way to us: a window, opened again as they are handled.

What is beyond an open window never reaches us, so it costs us nothing. Names are hosts; time is an argument,
in seconds of a clock that never runs backwards.
"""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from aegisflux.domain.shares import Share, Shares

BARRED_SECONDS: Final = 30.0
AFTER_MISUSE: Final = 1


class Asking(Struct, frozen=True):
    """What one host may ask of one service: `window` requests on their way to us or with us, its `share` of
    requests, and `most_bytes` of one request with its headers."""

    window: int = 8
    share: Share = Share(rate=50.0, burst=1024.0)
    most_bytes: int = 4096


class _Window(Struct):
    """left: requests that may still come through the open window; 0 of a closed one
    held: requests that came and are not handled yet
    barred_until: it stays closed until then
    doubted: the last request that counted was a misuse
    """

    left: int = 0
    held: int = 0
    barred_until: float = 0.0
    doubted: bool = False


class Windows:
    """The windows of all hosts that are served. A name that is not among them has none.

    Never more than `window` requests of a name are on their way or held.
    """

    def __init__(self, asking: Asking) -> None:
        self._size = asking.window
        self._share = Shares(asking.share)
        self._windows: dict[str, _Window] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._windows

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._windows))

    def add(self, name: str) -> None:
        """Serve it; one that is served already keeps its state."""
        self._windows.setdefault(name, _Window())

    def remove(self, name: str) -> None:
        """Serve it no more."""
        self._windows.pop(name, None)

    def is_open(self, name: str) -> bool:
        """Whether a request of the name may come now."""
        return name in self._windows and self._windows[name].left > 0

    def open(self, name: str, now: float) -> int:
        """Open its window if it is closed and the name may ask now: for how many requests; 0 if not."""
        if self.wait(name, now) != 0.0:
            return 0
        window = self._windows[name]
        window.left = AFTER_MISUSE if window.doubted else self._size - window.held
        return window.left

    def wait(self, name: str, now: float) -> float | None:
        """Seconds until `open` opens its window; None when something else has to happen before: it is open,
        requests have to be handled, or the name is not served."""
        window = self._windows.get(name)
        if window is None or window.left or window.held > self._size // 2:
            return None
        return max(0.0, window.barred_until - now, self._share.wait(name, now))

    def is_barred(self, name: str, now: float) -> bool:
        """Whether it is closed because of a misuse."""
        return name in self._windows and self._windows[name].barred_until > now

    def came(self, name: str, now: float) -> None:
        """One request came through the window."""
        self._share.use(name, 1.0, now)
        if (window := self._windows.get(name)) is not None:
            window.left = max(0, window.left - 1)
            window.held += 1

    def handled(self, name: str) -> None:
        """One that came is handled: answered, refused or given up."""
        if (window := self._windows.get(name)) is not None:
            window.held = max(0, window.held - 1)
            window.doubted = False

    def misused(self, name: str, now: float) -> None:
        """One that came is none that anybody sends: the window is closed for `BARRED_SECONDS`, and opens for
        one request then."""
        self.handled(name)
        if (window := self._windows.get(name)) is not None:
            window.left, window.barred_until, window.doubted = 0, now + BARRED_SECONDS, True

    def close_all(self) -> None:
        """Nothing comes any more: the connection is gone. What is held stays held, who is barred barred."""
        for window in self._windows.values():
            window.left = 0
