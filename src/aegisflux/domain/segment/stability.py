"""How stable a grouping is, and names that stay with a group from one run to the next."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

LEAST_OVERLAP: Final = 0.5  # of the members, to be the same group as before


def adjusted_rand(one: Sequence[int], two: Sequence[int]) -> float:
    """Adjusted Rand index of two labellings of the same things (Hubert and Arabie, 1985).

    1: the same partition; about 0: by chance. Of fewer than two things, or where there is no choice: 1.
    """
    together = _pairs(Counter(zip(one, two, strict=True)).values())
    ours, theirs = _pairs(Counter(one).values()), _pairs(Counter(two).values())
    every = len(one) * (len(one) - 1) / 2
    expected = ours * theirs / every if every else 0.0
    most = (ours + theirs) / 2
    return (together - expected) / (most - expected) if most != expected else 1.0


def kept_names(
    groups: Sequence[frozenset[str]], before: Mapping[str, frozenset[str]], fresh: Iterable[str]
) -> tuple[str, ...]:
    """A name for each group: that of the earlier group it shares most members with, relatively, where that is
    `LEAST_OVERLAP` or more and no better claim on it exists; else the next of `fresh` that nobody has had.
    """
    claims = sorted(
        (-len(group & old) / len(group | old), number, name)
        for number, group in enumerate(groups)
        for name, old in before.items()
        if group & old
    )
    found: dict[int, str] = {}
    for overlap, number, name in claims:
        if -overlap >= LEAST_OVERLAP and number not in found and name not in found.values():
            found[number] = name
    unused = (name for name in fresh if name not in before)
    return tuple(found[number] if number in found else next(unused) for number in range(len(groups)))


def _pairs(counts: Iterable[int]) -> float:
    return sum(n * (n - 1) / 2 for n in counts)
