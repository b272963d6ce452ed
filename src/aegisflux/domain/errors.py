"""The two families of errors that somebody catches.

`Refused`: the input is at fault; trying again unchanged gives the same answer.
`Unavailable`: our surroundings are at fault; trying again later may help.
A message names the object, what was expected, and what came.
"""

from typing import Final

import msgspec

# What msgspec raises for bytes that it cannot decode. ValidationError is a DecodeError; bad UTF-8 and deep
# nesting are neither, so a reader of bytes from elsewhere catches these three.
BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class AegisError(Exception):
    """Base of both families; never raised itself."""

    def __new__(cls, *args: object) -> "AegisError":
        if cls is AegisError:
            raise TypeError("raise Refused or Unavailable, or a subclass of one of them")
        return super().__new__(cls, *args)


class Refused(AegisError):
    """The caller's input cannot be accepted."""


class Unavailable(AegisError):
    """Something that we depend on cannot be used now. `retry_after`: as it says itself, in seconds, before
    that nobody has to ask again."""

    retry_after: float = 0.0


class Busy(Unavailable):
    """Too many of our own requests wait already; ask again in a second."""


class Unheard(Unavailable):
    """Nobody hears a request now: whoever answers it is away, or hears no more of this host for a moment."""


class Contended(Unavailable):
    """Another transaction was in the way: nothing was written, and the whole is to be done again."""


class Invalid(Refused):
    """A value breaks its schema; `path` is the field (`edges[3].dst_cidr`)."""

    def __init__(self, path: str, expected: str, got: object = None) -> None:
        self.path, self.expected, self.got = path, expected, got
        super().__init__(
            f"{path}: expected {expected}, got {shown(got)}"
            if path
            else f"expected {expected}, got {shown(got)}"
        )


class Misused(Invalid):
    """An option of a command has a value that nothing can have; the command ends with 2."""


class OverLimit(Refused):
    """A limit of contracts §1 is passed; `limit` is its name."""

    def __init__(self, limit: str, maximum: int, got: int, what: str) -> None:
        self.limit, self.maximum, self.got = limit, maximum, got
        super().__init__(f"{what}: over the limit {limit}: at most {maximum}, got {got}")


class Conflict(Refused):
    """The object exists in another state than the request assumes."""


class NotFound(Refused):
    """No object of that name."""


class Forbidden(Refused):
    """The caller is known and may not do this."""


def shown(value: object, width: int = 80) -> str:
    """A JSON-like, bounded picture of a value for an error message."""
    if isinstance(value, str):
        text = '"' + value.encode("unicode_escape").decode("ascii") + '"'
    elif value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, (list, tuple)):
        text = f"an array of {len(value)}"
    elif isinstance(value, dict):
        text = f"an object of {len(value)}"
    else:
        text = str(value)
    return text if len(text) <= width else text[: width - 3] + "..."
