"""Who may do what: roles, each may do all that the one before it may; the first only posts events."""

from typing import Final, Literal

from msgspec import Struct

Role = Literal["source", "viewer", "operator", "approver", "admin"]
ROLES: Final[tuple[Role, ...]] = ("source", "viewer", "operator", "approver", "admin")


class Principal(Struct, frozen=True):
    """Somebody who is known: a bearer of a token, or a part of the system itself. `host_id` is whose events
    a source may post; `id` is the token's.
    """

    name: str
    role: Role
    host_id: str | None = None
    id: str = ""

    @property
    def key(self) -> str:
        """Who it is among all that there ever were: a name may be given again once its token has ended."""
        return f"token/{self.id}" if self.id else self.name

    def is_author(self, author: str | None, name: str) -> bool:
        """Whether a change is theirs: by its `author` (a `key`), or where that is not known by its name."""
        return self.name == name if author is None else self.key == author


SYSTEM: Final = Principal("system", "admin")


def may(role: Role, needed: Role) -> bool:
    """Whether the role includes the needed one."""
    return ROLES.index(role) >= ROLES.index(needed)


def may_approve(principal: Principal, author: str | None, name: str) -> bool:
    """Whether the change of an author (see `Principal.is_author`) may be approved: by another approver, or by
    an admin, who can make approvers anyway and has to get out of a lock-out alone.
    """
    if may(principal.role, "admin"):
        return True
    return may(principal.role, "approver") and not principal.is_author(author, name)
