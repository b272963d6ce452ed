"""Who may do what: roles, each may do all that the one before it may; the first only posts events."""

from typing import Final, Literal

from msgspec import Struct

Role = Literal["source", "viewer", "operator", "approver", "admin"]
ROLES: Final[tuple[Role, ...]] = ("source", "viewer", "operator", "approver", "admin")


class Principal(Struct, frozen=True):
    """Somebody who is known: a bearer of a token, or a part of the system itself. `host_id` is whose events
    a source may post.
    """

    name: str
    role: Role
    host_id: str | None = None


SYSTEM: Final = Principal("system", "admin")


def may(role: Role, needed: Role) -> bool:
    """Whether the role includes the needed one."""
    return ROLES.index(role) >= ROLES.index(needed)


def may_approve(principal: Principal, author: str) -> bool:
    """Whether the change of an author may be approved: by another approver, or by an admin, who can make
    approvers anyway and has to get out of a lock-out alone.
    """
    return may(principal.role, "admin") or (may(principal.role, "approver") and principal.name != author)
