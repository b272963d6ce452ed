"""Whether one agent answers under an identity, or several: a machine was cloned with its key."""

from typing import Final

from msgspec import Struct

MAX_EARLIER: Final = 8


class Run(Struct, frozen=True):
    """One agent's process: the boot that it runs in, and when it began (nanoseconds of the boot clock)."""

    boot_id: str
    started: int

    def __str__(self) -> str:
        return f"boot {self.boot_id}, begun at {self.started / 1e9:.1f} s of it"


class Runs(Struct, frozen=True):
    """The processes that answered under one identity, the last one as `current`.

    clashed_at: when two were last seen to be alive at once (seconds since the epoch), 0 for never
    """

    current: Run | None = None
    earlier: tuple[Run, ...] = ()
    clashed_at: float = 0.0

    def clashes(self, now: float, seconds: float) -> bool:
        """Return whether two were alive at once within the last `seconds`."""
        return self.clashed_at > 0 and now - self.clashed_at <= seconds


def answered(runs: Runs, run: Run, now: float) -> Runs:
    """Return what is known after an answer of `run`.

    A restart replaces a process for good. A process that answers after another one began to is alive beside
    it: nothing else brings it back, since answers of one process are delivered in order.
    """
    if run == runs.current:
        return runs
    before = () if runs.current is None else (runs.current,)
    earlier = (*(one for one in runs.earlier if one != run), *before)[-MAX_EARLIER:]
    return Runs(run, earlier, now if run in runs.earlier else runs.clashed_at)
