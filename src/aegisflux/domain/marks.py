"""Which sequences of a (host, boot id) were seen: ranges, with gaps where something is missing or late."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple


class Range(NamedTuple):
    """Sequences from `start` up to, and without, `end`."""

    start: int
    end: int


# Of a source; whoever leaves more loses the lowest. An agent has 8 batches under way, whose sequences follow
# each other; each event that is refused leaves a gap. All of them are read and written with each batch.
MAX_GAPS: Final = 1000


class Seen:
    """A set of sequences as sorted ranges that do not touch. Adding at the end is the fast way."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The ranges, lowest first."""
        return tuple(map(Range, self._starts, self._ends))

    @property
    def high(self) -> int:
        """The highest sequence, 0 when there is none."""
        return self._ends[-1] - 1 if self._ends else 0

    def __contains__(self, sequence: int) -> bool:
        at = bisect_right(self._starts, sequence) - 1
        return at >= 0 and sequence < self._ends[at]

    def add(self, start: int, end: int) -> None:
        """Add a range, which may overlap what is there."""
        starts, ends = self._starts, self._ends
        if ends and start == ends[-1]:
            ends[-1] = max(end, ends[-1])
            return
        if not ends or start > ends[-1]:
            starts.append(start)
            ends.append(end)
            return
        first = bisect_right(starts, start)
        if first and ends[first - 1] >= start:
            first -= 1
            start = starts[first]
        last = first
        while last < len(starts) and starts[last] <= end:
            end = max(end, ends[last])
            last += 1
        starts[first:last], ends[first:last] = [start], [end]

    def close(self, most: int = MAX_GAPS) -> list[Range]:
        """Take the lowest gaps for seen until at most half of `most` are left, when there are more; those."""
        if len(self._starts) - 1 <= most:
            return []
        closing = len(self._starts) - 1 - most // 2
        gaps = [Range(self._ends[n], self._starts[n + 1]) for n in range(closing)]
        del self._starts[1 : closing + 1], self._ends[:closing]
        return gaps

    def copy(self) -> "Seen":
        """A set of its own with the same ranges."""
        found = Seen()
        found._starts, found._ends = self._starts[:], self._ends[:]
        return found


def ranges_of(sequences: Sequence[int]) -> list[Range]:
    """Rising sequences as ranges."""
    found: list[Range] = []
    start = end = 0
    for sequence in sequences:
        if sequence == end and found:
            end += 1
            found[-1] = Range(start, end)
            continue
        start, end = sequence, sequence + 1
        found.append(Range(start, end))
    return found


def text_of(ranges: Iterable[Range]) -> str:
    """As PostgreSQL writes an int8multirange."""
    return "{" + ",".join(f"[{start},{end})" for start, end in ranges) + "}"
