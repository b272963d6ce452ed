"""Whether one agent answers under an identity, or several: a machine was cloned with its key."""

from typing import Annotated, Final

from msgspec import Meta, Struct
from msgspec.structs import replace

from aegisflux.domain.bounds import MAX_SECONDS, EpochTime, Nanoseconds

MAX_EARLIER: Final = 8
Delay = Annotated[float, Meta(ge=-2.0 * MAX_SECONDS, le=2.0 * MAX_SECONDS)]


class Run(Struct, frozen=True):
    """One agent's process: the boot that it runs in, and when it began (nanoseconds of the boot clock)."""

    boot_id: str
    started: Nanoseconds

    def __str__(self) -> str:
        return f"boot {self.boot_id}, begun at {self.started / 1e9:.1f} s of it"


class Life(Struct, frozen=True):
    """What is known of a process by its answers.

    since: when the first of them came, or the one that made it the current process again (our clock)
    sent:  when the newest of them was sent, by the host's clock
    delay: the least that one took, the difference of the two clocks included
    """

    run: Run
    since: EpochTime
    sent: EpochTime
    delay: Delay


class Runs(Struct, frozen=True):
    """The processes that answered under one identity, the current one last.

    clashed_at: when two were last seen to be alive at once (seconds since the epoch), 0 for never
    """

    lives: tuple[Life, ...] = ()
    clashed_at: EpochTime = 0.0

    @property
    def current(self) -> Run | None:
        """The process that answers now."""
        return self.lives[-1].run if self.lives else None

    @property
    def earlier(self) -> tuple[Run, ...]:
        """Those that answered before it."""
        return tuple(life.run for life in self.lives[:-1])

    def clashes(self, now: float, seconds: float) -> bool:
        """Return whether two were alive at once within the last `seconds`."""
        return self.clashed_at > 0 and now - self.clashed_at <= seconds


def answered(runs: Runs, run: Run, sent: float, now: float) -> Runs:
    """Return what is known after an answer of `run`, sent at `sent` of its host's clock, that came at `now`.

    A restart replaces a process for good: one that sends an answer after another one began is alive beside
    it. An answer that came before changes nothing, and one that comes late, sent before the other process
    began, is none of a living process: answers are delivered again, and not always in order.
    """
    life = next((one for one in runs.lives if one.run == run), None)
    if life is None:
        return replace(runs, lives=_with_new(runs.lives, Life(run, now, sent, now - sent)))
    if sent <= life.sent:
        return runs
    after = replace(life, sent=sent, delay=min(life.delay, now - sent))
    current = runs.lives[-1]
    if life is current or sent + after.delay <= current.since:
        return replace(runs, lives=tuple(after if one is life else one for one in runs.lives))
    others = tuple(one for one in runs.lives if one is not life)
    return Runs((*others, replace(after, since=now)), now)


def _with_new(lives: tuple[Life, ...], new: Life) -> tuple[Life, ...]:
    """A process of the same boot that began before the current one has ended: its answer only comes late."""
    current = lives[-1].run if lives else None
    if current and current.boot_id == new.run.boot_id and new.run.started < current.started:
        return (new, *lives)[-MAX_EARLIER - 1 :]
    return (*lives, new)[-MAX_EARLIER - 1 :]
