"""A panic as one agent knows it, kept on every medium that takes it: see `domain.panic`.

Media are asked in turn, and one that fails does not stop the others: a full disk, a read-only state folder or
a host without /run only shorten how long a panic lasts, and what could not be written is said.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Final, Protocol

import msgspec

from aegisflux.agent import remember
from aegisflux.agent.parts import Store
from aegisflux.domain.errors import BROKEN, AegisError
from aegisflux.domain.panic import DAMAGED, Panic, standing
from aegisflux.domain.text import printable

RUN: Final = Path("/run/aegisflux/panic")
ENDED_KEPT: Final = 64


class Medium(Protocol):
    """A place that holds at most one panic."""

    name: str

    def read(self, thorough: bool = False, /) -> Panic | None:
        """The panic; `thorough` may take milliseconds. Raises OSError or AegisError."""
        ...

    def write(self, panic: Panic) -> None:
        """Hold this one. Raises OSError or AegisError."""
        ...

    def delete(self) -> None:
        """Hold none. Raises OSError or AegisError."""
        ...


class StateMedium:
    """The state folder: it survives a reboot."""

    def __init__(self, store: Store, name: str = "the state folder") -> None:
        self._store, self.name = store, name

    def read(self, _thorough: bool = False, /) -> Panic | None:
        """See `Medium.read`."""
        return remember.read_panic(self._store)

    def write(self, panic: Panic) -> None:
        """See `Medium.write`."""
        remember.write_panic(self._store, panic)

    def delete(self) -> None:
        """See `Medium.delete`."""
        if self._store.read(remember.PANIC) is not None:
            self._store.delete(remember.PANIC)


class Noted(Panic, frozen=True):
    """What lies in /run: a panic, and whose it is."""

    state_dir: str = ""


class RunMedium:
    """/run: it lasts until the next boot."""

    def __init__(self, state_dir: str, folder: Path = RUN) -> None:
        self._state = printable(state_dir)
        self._path = folder / f"{sha256(state_dir.encode(errors='surrogateescape')).hexdigest()[:16]}.json"
        self.name = str(folder)

    def read(self, _thorough: bool = False, /) -> Panic | None:
        """See `Medium.read`."""
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=Noted)
            return Panic(found.at, found.why, found.ended)
        except BROKEN:
            return Panic(DAMAGED, f"{self._path} is damaged")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None

    def write(self, panic: Panic) -> None:
        """See `Medium.write`."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(Noted(panic.at, panic.why, panic.ended, self._state)))
        draft.replace(self._path)

    def delete(self) -> None:
        """See `Medium.delete`."""
        with suppress(FileNotFoundError, NotADirectoryError):
            self._path.unlink()


class Flags:
    """The media of one agent, and what it holds in memory beside them."""

    def __init__(self, media: Iterable[Medium]) -> None:
        self._media = tuple(media)
        self._told: Panic | None = None
        self._kept = False
        self._stuck: set[float] = set()
        self._ended: dict[float, None] = {}

    def standing(self, *, thorough: bool = False, also: Iterable[Panic] = ()) -> Panic | None:
        """The panic that this agent is in, None without one; `also` are words that were read before.

        A panic that the agent was told of and that no medium took lasts until it is told otherwise; one that
        some medium took ends when no medium holds it any more.
        """
        words = [*self.words(thorough), *also]
        found = standing([*words, *(Panic(at, ended=True) for at in (*self._stuck, *self._ended))])
        if found is not None:
            self._kept = True
            return found
        if self._kept:
            self._told = None
        return self._told

    def told(self, panic: Panic) -> Panic | None:
        """Hold this in memory at once, before anything is written; the panic that stands then.

        None where this very panic was ended: a resume overtook whoever told of it.
        """
        if panic.at in self._ended:
            return None
        self._told, self._kept = self._told or panic, False
        self._stuck.discard(self._told.at)
        return self._told

    def keep(self, panic: Panic) -> list[str]:
        """Write it to every medium, unless it was ended; what could not be written, in words.

        The memory holds it either way.
        """
        failed = list[str]()
        for medium in () if panic.at in self._ended else self._media:
            try:
                if medium.read() != panic:
                    medium.write(panic)
            except (AegisError, OSError) as error:
                failed.append(f"{medium.name}: {reason(error)}")
        return failed

    def end(self, names: Collection[float] = (), until: float = inf) -> list[str]:
        """End the panics that began until then, and those of these names; none of them begins again.

        Return the media that still hold one, in words, which the others then overrule.
        """

        def over(panic: Panic) -> bool:
            return panic.at <= until or panic.at in names

        stuck, failed, left = list[Medium](), list[str](), list[Medium]()
        ends = [*names, *(word.at for word in (*self.words(), self._told) if word is not None and over(word))]
        if self._told is not None and over(self._told):
            self._told, self._kept = None, False
        for medium in self._media:
            try:
                if (word := self._word(medium)) is not None and not over(word):
                    left.append(medium)
                    continue
                medium.delete()
            except (AegisError, OSError) as error:
                stuck.append(medium)
                failed.append(f"{medium.name}: {reason(error)}")
        words = [word for word in self.words(thorough=True) if over(word)]
        self._stuck = {word.at for word in words}
        self._ended |= dict.fromkeys(at for at in ends if at != DAMAGED)
        self._ended = dict.fromkeys(list(self._ended)[-ENDED_KEPT:])
        if (one := standing(words)) is not None:
            for medium in self._media:
                if medium not in stuck and medium not in left:
                    with suppress(AegisError, OSError):
                        medium.write(Panic(one.at, one.why, ended=True))
        return failed

    @property
    def media(self) -> Sequence[Medium]:
        """Where a panic is kept."""
        return self._media

    def words(self, thorough: bool = False) -> list[Panic]:
        """What the media say; `thorough` may take many milliseconds."""
        found = (self._word(medium, thorough) for medium in self._media)
        return [word for word in found if word is not None]

    def _word(self, medium: Medium, thorough: bool = False) -> Panic | None:
        with suppress(AegisError, OSError):
            return medium.read(thorough)
        return None


def reason(error: Exception) -> str:
    """The cause alone: the name of the file is said beside it."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error).rpartition(": ")[2]
