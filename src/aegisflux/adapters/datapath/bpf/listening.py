"""Who gets how much room among the listeners that are told, so that nobody takes another's: pure arithmetic.

A user may bind any number of sockets, in namespaces with any number of addresses. So each account has a
share of its own, in room and in work, and what was not read to its end is never said to have gone.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

ROOT: Final = "root"
FOR_ROOT: Final = 16_384
FOR_ACCOUNT: Final = 1024
FOR_USERS: Final = 8192
"""Of all accounts but root together."""

WORK: Final = 8
"""How many answers of the kernel are looked at for each place that an account has."""

UIDS: Final = 1 << 16


class Key(NamedTuple):
    """What stays the same while a service is restarted."""

    proto: int
    address: str
    port: int
    cgroup: str


class Origin(NamedTuple):
    """Where a listener was found, and whose room it takes."""

    namespace: int
    account: str


def account_of_uid(uid: int) -> str:
    """Whose a user is: subordinate users of one account, which has them by the 65,536, are one."""
    if uid < UIDS:
        return f"uid {uid}" if uid else ROOT
    return f"uids {uid // UIDS}"


class Look:
    """What one look at the sockets finds; `known` is what was told before and is kept first."""

    def __init__(self, known: Mapping[Key, Origin]) -> None:
        self._known = known
        self._room = Counter(origin.account for origin in known.values())
        self._users = sum(n for account, n in self._room.items() if account != ROOT)
        self._work: Counter[str] = Counter()
        self._cut: set[Origin] = set()
        self._unread: set[int] = set()
        self.found: dict[Key, tuple[Origin, int]] = {}
        self.over = 0

    def may_go_on(self, origin: Origin) -> bool:
        """Whether there is work left for one answer more of this account; else its listeners are cut."""
        self._work[origin.account] += 1
        if self._work[origin.account] > WORK * _share(origin.account):
            self._cut.add(origin)
            return False
        return True

    def take(self, origin: Origin, key: Key, inode: int) -> None:
        """A listener, if there is room; `over` counts those without."""
        if key in self.found:
            return
        if key not in self._known:
            is_user = origin.account != ROOT
            if self._room[origin.account] >= _share(origin.account) or (is_user and self._users >= FOR_USERS):
                self.over += 1
                return
            self._room[origin.account] += 1
            self._users += is_user
        self.found[key] = origin, inode

    def leave(self, namespace: int) -> None:
        """This namespace was not read, or not to its end."""
        self._unread.add(namespace)

    def is_gone(self, key: Key) -> bool:
        """Whether what was known is there no more, for certain."""
        origin = self._known[key]
        return key not in self.found and origin.namespace not in self._unread and origin not in self._cut


def _share(account: str) -> int:
    return FOR_ROOT if account == ROOT else FOR_ACCOUNT
