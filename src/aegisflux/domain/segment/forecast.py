"""How many legitimate flows a proposal would block by mistake, if the time after the window is like it.

What is held back and came more than once will come again: its share of the recorded flows is the forecast.
What was never seen cannot be counted, and comes in heaps (a few rare jobs make most of it), so the interval
is wide: from 0 to `UPPER` times the forecast, and never less than the rule of three of the number of flows.

`UPPER` is from windows of seven days, and the seven days after them, of 57 synthetic fleets: 51 lay in the
interval. `script/bench segment` measures it on others. It knows nothing of what changes: a release, a new
service, a moved host.
"""

from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from aegisflux.domain.segment.flows import Flows
from aegisflux.domain.segment.mine import Mined

LEAST_DAYS: Final = 5
UPPER: Final = 2.5
# Of N trials without an event: the 95 % bound of its share is 3 / N (Hanley and Lippman-Hand, 1983).
RULE_OF_THREE: Final = 3.0


class Forecast(Struct, frozen=True):
    """Shares of later legitimate flows that would be blocked; between `low` and `high` nine times of ten."""

    rate: float
    low: float
    high: float


def forecast(flows: Flows, mined: Mined, allowed: NDArray[np.bool_]) -> Forecast | None:
    """Of a window of flows, of which `allowed` pass; None where the window is too short to tell."""
    if not len(flows) or len(np.unique(flows.day)) < LEAST_DAYS:
        return None
    held = flows.where(np.nonzero(~allowed)[0])
    groups = mined.groups
    ways = np.stack((groups[held.client], groups[held.server], held.proto, held.port))
    _, counts = np.unique(ways, axis=1, return_counts=True)
    rate = float(counts[counts > 1].sum()) / len(flows)
    return Forecast(rate, 0.0, min(1.0, UPPER * rate + RULE_OF_THREE / len(flows)))
