"""Who may do what: four roles, each may do all that the one before it may."""

from typing import Final, Literal

from msgspec import Struct

Role = Literal["viewer", "operator", "approver", "admin"]
ROLES: Final[tuple[Role, ...]] = ("viewer", "operator", "approver", "admin")


class Principal(Struct, frozen=True):
    """Somebody who is known: a bearer of a token, or a part of the system itself."""

    name: str
    role: Role


SYSTEM: Final = Principal("system", "admin")


def may(role: Role, needed: Role) -> bool:
    """Whether the role includes the needed one."""
    return ROLES.index(role) >= ROLES.index(needed)


def may_approve(principal: Principal, author: str) -> bool:
    """Whether the change of an author may be approved: by another approver, or by an admin, who can make
    approvers anyway and has to get out of a lock-out alone.
    """
    return may(principal.role, "admin") or (may(principal.role, "approver") and principal.name != author)
