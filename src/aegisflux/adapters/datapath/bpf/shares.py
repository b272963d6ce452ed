"""Who gets how much room in the map `own`, so that nobody takes another's: pure arithmetic.

A user may make network namespaces and put any number of addresses and local routes into each. So the host
has room of its own, what root made shares the most of the rest, and namespaces of other user namespaces get
little each, in limited number.
"""

from collections.abc import Container, Iterable
from typing import Final, Literal

Share = Literal["host", "root", "users"]
"""The agent's own namespace; one of the agent's user namespace; one of another user namespace."""

ENTRIES: Final = 65_536
"""Of the map, as objects.h says."""

MARKS_EACH: Final = 2
MOST: Final[dict[Share, int]] = {"host": 16_384, "root": 16_384, "users": 64}
"""Own addresses and prefixes that are written of one namespace; of one that has more, nothing is."""

MOST_NAMESPACES: Final[dict[Share, int]] = {"host": 1, "root": 1024, "users": 256}
FOR_USERS: Final = MOST_NAMESPACES["users"] * (MOST["users"] + MARKS_EACH)
FOR_ROOT: Final = ENTRIES - (MOST["host"] + MARKS_EACH) - FOR_USERS
"""All of root's together; a namespace that does not fit beside the others is not written."""

ORDER: Final[tuple[Share, ...]] = ("host", "root", "users")
"""Who is written first."""

LEAST_FOR_ROOT: Final = MOST["root"] + MARKS_EACH * MOST_NAMESPACES["root"]
assert LEAST_FOR_ROOT < FOR_ROOT, "the shares of users and the host leave too little for root's namespaces"


def room(share: Share, used: int) -> int:
    """How many entries, marks among them, one namespace may have at any moment, where others of its share
    have `used`."""
    each = MOST[share] + MARKS_EACH
    return min(each, FOR_ROOT - used) if share == "root" else each


def admitted(found: Iterable[tuple[int, Share]], known: Container[int]) -> tuple[set[int], dict[Share, int]]:
    """Which of these namespaces are read, and how many more there were of each share. Those that are known
    come first: who makes more pushes nobody out."""
    taken: set[int] = set()
    left: dict[Share, int] = {}
    everyone = list(found)
    for share in ORDER:
        numbers = [number for number, its in everyone if its == share]
        numbers.sort(key=lambda number: number not in known)
        taken |= set(numbers[: MOST_NAMESPACES[share]])
        if len(numbers) > MOST_NAMESPACES[share]:
            left[share] = len(numbers) - MOST_NAMESPACES[share]
    return taken, left
