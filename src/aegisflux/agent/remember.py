"""The agent's memory: what it trusts, what it accepted last, what it holds, and that it was told to panic."""

from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from aegisflux.agent.parts import Store
from aegisflux.domain import trust
from aegisflux.domain.converge import Book
from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import BROKEN, Unavailable
from aegisflux.domain.manifest import HostManifest
from aegisflux.domain.panic import DAMAGED, Panic
from aegisflux.domain.trust import Trusted

T = TypeVar("T")
VERSIONS_KEPT = 256
ACCEPTED, BOOK, CLOCK, PANIC = "accepted", "book", "clock", "panic"


class Accepted(Struct, frozen=True):
    """The trust state and the manifest that goes with it, in one durable write; None before the first."""

    trusted: Trusted
    manifest: HostManifest | None = None


def read_accepted(store: Store) -> Accepted | None:
    """What was accepted last, with the clock's floor at the highest time ever persisted."""
    accepted = _decoded(store, ACCEPTED, Accepted)
    clock = _decoded(store, CLOCK, int)
    if accepted is None or clock is None:
        return accepted
    floor = max(accepted.trusted.clock_floor, clock)
    return replace(accepted, trusted=replace(accepted.trusted, clock_floor=floor))


def write_accepted(store: Store, accepted: Accepted) -> None:
    """Make it durable: this comes before anything is applied."""
    store.write(ACCEPTED, msgspec.msgpack.encode(accepted))


def read_book(store: Store) -> Book:
    return _decoded(store, BOOK, Book) or Book()


def write_book(store: Store, book: Book) -> None:
    store.write(BOOK, msgspec.msgpack.encode(book))


def write_clock(store: Store, wall: float) -> None:
    """Remember that it is at least this late."""
    store.write(CLOCK, msgspec.msgpack.encode(int(wall)))


def with_clock_reset(accepted: Accepted, wall: float) -> Accepted:
    """See `trust.with_clock_reset`."""
    return replace(accepted, trusted=trust.with_clock_reset(accepted.trusted, wall))


def reset_clock(store: Store, wall: float) -> dict[str, int]:
    """The same on disk, while no agent runs; the time that was believed, and the time now."""
    accepted = read_accepted(store)
    believed = accepted.trusted.clock_floor if accepted else 0
    if accepted is not None:
        write_clock(store, wall)
        write_accepted(store, with_clock_reset(accepted, wall))
    return {"believed": believed, "now": int(wall)}


def read_panic(store: Store) -> Panic | None:
    """Why nothing may be enforced. A damaged flag is a panic too."""
    raw = store.read(PANIC)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=Panic)
    except BROKEN:
        return Panic(DAMAGED, "the panic file is damaged")


def write_panic(store: Store, panic: Panic) -> None:
    store.write(PANIC, msgspec.json.encode(panic))


def pruned(trusted: Trusted) -> Trusted:
    """Forget the digests of all but the newest versions of each service; the serial guards the others."""
    by_service: dict[str, list[int]] = {}
    for key in trusted.digests:
        service, _, version = key.partition("/")
        by_service.setdefault(service, []).append(int(version))
    if all(len(versions) <= VERSIONS_KEPT for versions in by_service.values()):
        return trusted
    kept = {
        f"{service}/{version}"
        for service, versions in by_service.items()
        for version in sorted(versions)[-VERSIONS_KEPT:]
    }
    return replace(trusted, digests={k: v for k, v in trusted.digests.items() if k in kept})


def _decoded(store: Store, name: str, kind: type[T]) -> T | None:
    raw = store.read(name)
    if raw is None:
        return None
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except BROKEN as error:
        raise Unavailable(
            f"state {name}: damaged ({in_words(error, kind)}); remove it or enrol again"
        ) from None
