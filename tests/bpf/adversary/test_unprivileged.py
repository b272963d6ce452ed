"""What an unprivileged user tries from inside of a governed service: uid 65534, no capability, a delegated
subtree. Each trick is refused, or SECURITY.md says that it works.
"""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.bpf.adversary import escapes, exemptions, initiators, inside, paths, records, surfaces
from tests.bpf.adversary.trick import APP4, Trick
from tests.support.unprivileged import SLOT, Arena, Seen, within

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
ROOMS = (initiators, inside, paths, exemptions, escapes, records)
TABLE = {title: trick for room in ROOMS for title, trick in room.TRICKS.items()}
SECURITY = " ".join((Path(__file__).parents[3] / "SECURITY.md").read_text().replace("**", "").split())


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


def row(title: str, trick: Trick) -> ParameterSet:
    """What works today is a strict xfail that names who mends it."""
    mark = pytest.mark.xfail(reason=f"works today: {trick.owner}", strict=True)
    return pytest.param(trick, id=title, marks=[mark] if trick.owner else [])


def tried(arena: Arena, trick: Trick, *, governed: bool = True) -> Seen:
    between = [lambda act=act: act(arena) for act in trick.between]
    with arena.sysctls(trick.sysctls):
        return arena.attempt(trick.way, *between, governed=governed, keep=trick.keep)


@pytest.mark.parametrize("trick", [row(*pair) for pair in TABLE.items()])
def test_an_unprivileged_user_does_not_get_out(arena: Arena, trick: Trick) -> None:
    for world in trick.worlds:
        arena.kernel.enforce(SLOT, world)
        seen = tried(arena, trick)
        leaked = trick.leak(seen)
        if trick.listed:
            assert leaked, f"no longer works ({seen.word}): take the sentence out of SECURITY.md"
        else:
            assert not leaked, f"it saw {seen.word!r}, and {leaked[0]} arrived"
    assert not trick.listed or trick.listed in SECURITY


@pytest.mark.parametrize("trick", [pytest.param(t, id=i) for i, t in TABLE.items()])
def test_the_trick_works_where_nothing_governs(arena: Arena, trick: Trick) -> None:
    """A trick that fails by itself proves nothing; what Linux refuses is marked so."""
    seen = tried(arena, trick, governed=False)
    if trick.by == "us":
        assert trick.leak(seen), seen.word
    else:
        assert not trick.leak(seen), "Linux lets this pass: it is ours to refuse"


@pytest.mark.parametrize("closing", [False, True])
def test_what_the_peer_began_before_the_agent_stays_the_peers(arena: Arena, closing: bool) -> None:
    """A deny of egress does not cut it."""
    arena.kernel.enforce(SLOT, records.FREE_TO_DB)
    with within(arena.db, socket.socket) as caller:

        def call() -> None:
            caller.connect((APP4, 4018))
            if closing:
                caller.shutdown(socket.SHUT_WR)

        seen = arena.attempt(
            lambda: records.accepted_before_the_agent(closing), call, lambda: records.anew(arena)
        )
    assert records.marked_at_db(seen), seen.word


@pytest.mark.parametrize("touch", [pytest.param(t, id=i) for i, t in surfaces.TOUCHES.items()])
def test_an_unprivileged_user_lays_hands_on_nothing(arena: Arena, touch: surfaces.Touch) -> None:
    assert arena.attempt(lambda: str(touch(arena))).word in ("EPERM", "EACCES")
