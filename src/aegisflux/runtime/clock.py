"""The real clock."""

import time


class WallClock:
    """`Clock` of this machine."""

    def now(self) -> float:
        """See `Clock.now`."""
        return time.time()
