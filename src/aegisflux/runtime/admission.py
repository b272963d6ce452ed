"""Which connections a listener keeps when more come than it has room for. Pure: it counts, and says who goes.

A member waits (for bytes of its client, or for its client to take bytes) or works (its request is whole, and
is being answered). Only a member that waits can lose its place: no request that was sent in time is cut, and
nobody's place goes to requests that others sent.
"""

import ipaddress
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from msgspec import Struct

from aegisflux.domain.errors import Invalid

M = TypeVar("M", bound=Hashable)
V6_NETWORK: Final = 64  # bits: one site gets at least so many addresses
MEBIBYTE: Final = 1 << 20
OTHER_FILES: Final = 512  # descriptors that are no connections: store, bus, files
LEAST_CONNECTIONS: Final = 64


class Limits(Struct, frozen=True, kw_only=True):
    """How many connections there may be, of whom, and for how long; times in seconds, memory in bytes."""

    anonymous: int = 1024
    of_peer: int = 512
    authenticated: int = 1024
    of_token: int = 256
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: float = 30.0
    anonymous_memory: int = 32 * MEBIBYTE
    authenticated_memory: int = 96 * MEBIBYTE


def fitting(limits: Limits, files: int) -> Limits:
    """The limits where a process may have so many open files: both kinds of connections in proportion."""
    room = max(2 * LEAST_CONNECTIONS, (files - OTHER_FILES) // 2)  # as many again have their request answered
    wanted = limits.anonymous + limits.authenticated
    if wanted <= room:
        return limits
    anonymous = max(LEAST_CONNECTIONS, room * limits.anonymous // wanted)
    authenticated = max(LEAST_CONNECTIONS, room - anonymous)
    changes = {
        "anonymous": anonymous,
        "authenticated": authenticated,
        "of_peer": min(limits.of_peer, anonymous),
        "of_token": min(limits.of_token, authenticated),
    }
    fields = {name: getattr(limits, name) for name in Limits.__struct_fields__}
    return Limits(**{**fields, **changes})


def peer_of(address: str) -> str:
    """Return the key by which connections of an address are counted: an IPv4 address, also where IPv6 maps
    it, or an IPv6 network of 64 bits. Text that is no address is its own key."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), V6_NETWORK), strict=False))


@dataclass(slots=True)
class _Share(Generic[M]):
    """The members of one key; those that wait in the order in which they began to."""

    waiting: dict[M, None] = field(default_factory=dict)
    working: set[M] = field(default_factory=set)
    held: int = 0


class Pool(Generic[M]):
    """At most `limit` members wait, `share` of them with one key, and hold at most `memory` bytes; how many
    work is bounded by who gives them work.

    Where one has to go, it is the one that has waited longest, of the key of which most wait.
    """

    def __init__(self, limit: int, share: int, memory: int) -> None:
        if not 1 <= share <= limit:
            raise Invalid("share", f"1 to {limit}", share)
        self._limit, self._share, self._memory = limit, share, memory
        self._keys: dict[str, _Share[M]] = {}
        self._key_of: dict[M, str] = {}
        self._held_of: dict[M, int] = {}
        self._held = self._waiting = 0

    def __len__(self) -> int:
        return len(self._key_of)

    def __contains__(self, member: M) -> bool:
        return member in self._key_of

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._waiting

    @property
    def held(self) -> int:
        """How many bytes all members hold."""
        return self._held

    def admit(self, key: str, member: M) -> tuple[M, ...]:
        """Take in a new member, which waits. Return the members that lost their place for it."""
        self._key_of[member] = key
        self._keys.setdefault(key, _Share()).working.add(member)
        return self.wait(member)

    def wait(self, member: M) -> tuple[M, ...]:
        """The member waits from now on. Return the members that lost their place for it, as `admit` does."""
        share = self._keys[self._key_of[member]]
        if member in share.waiting:
            return ()
        gone: tuple[M, ...] = ()
        if len(share.waiting) >= self._share:
            gone = self._oldest(share)
        elif self._waiting >= self._limit:
            gone = self._oldest(max(self._keys.values(), key=lambda one: len(one.waiting)))
        share.working.discard(member)
        share.waiting[member] = None
        self._waiting += 1
        return gone

    def work(self, member: M) -> None:
        """The member has sent all that is needed of it."""
        share = self._keys[self._key_of[member]]
        if member in share.waiting:
            del share.waiting[member]
            self._waiting -= 1
        share.working.add(member)

    def hold(self, member: M, size: int) -> tuple[M, ...]:
        """Set how many bytes are kept for a member. Return the members that have to go since all hold too
        much, which may be this one, and which are no members any more."""
        change = size - self._held_of.get(member, 0)
        self._held_of[member] = size
        self._keys[self._key_of[member]].held += change
        self._held += change
        gone: list[M] = []
        while self._held > self._memory and (found := self._largest()) is not None:
            self.remove(found)
            gone.append(found)
        return tuple(gone)

    def remove(self, member: M) -> None:
        """Forget a member; harmless for one that is none."""
        key = self._key_of.pop(member, None)
        if key is None:
            return
        share, held = self._keys[key], self._held_of.pop(member, 0)
        if member in share.waiting:
            del share.waiting[member]
            self._waiting -= 1
        share.working.discard(member)
        share.held -= held
        self._held -= held
        if not share.waiting and not share.working:
            del self._keys[key]

    def _oldest(self, share: _Share[M]) -> tuple[M, ...]:
        found = next(iter(share.waiting))
        self.remove(found)
        return (found,)

    def _largest(self) -> M | None:
        """Who waits and holds anything, of the key whose members hold most."""
        for share in sorted(self._keys.values(), key=lambda one: -one.held):
            for member in share.waiting:
                if self._held_of.get(member, 0):
                    return member
        return None
