"""The tree of commands of `aegisflux`, as its cyclopts application has it, each under its first name."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cyclopts
from markdown import first_line


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its names with dashes, or, where it is given by place, one name without."""

    names: tuple[str, ...]
    env: tuple[str, ...]
    help: str
    required: bool
    default: str
    by_place: bool
    flag: bool


@dataclass(frozen=True, slots=True)
class Command:
    """One verb with its path (`agent why`); a group has no arguments."""

    path: str
    summary: str
    help: str
    group: bool
    arguments: tuple[Argument, ...]

    def accepts(self, option: str) -> bool:
        """Whether an option of this name (`--follow`, `-f`) is known."""
        return option in {name for argument in self.arguments for name in argument.names} | _ALWAYS


_ALWAYS = {"--help", "-h"}


def tree(app: cyclopts.App, path: str = "") -> Iterator[Command]:
    """Every command below the application, in the order of its help; a group stands before its verbs."""
    for name in app:
        if name.startswith("-") or app[name].show is False:
            continue
        inner = app[name]
        if name in inner.name[1:]:
            continue
        here = f"{path} {name}".strip()
        below = [verb for verb in inner if not verb.startswith("-")]
        text = inner.help or ""
        arguments = () if inner.default_command is None else tuple(_arguments(inner))
        yield Command(here, first_line(text), text, bool(below), arguments)
        yield from tree(inner, here)


def _arguments(app: cyclopts.App) -> Iterator[Argument]:
    for found in app.assemble_argument_collection(parse_docstring=True):
        if found.show is False or not found.names:
            continue
        parameter: Any = found.parameter
        by_place = found.index is not None and found.hint is not bool
        yield Argument(
            tuple(found.names),
            tuple(parameter.env_var or ()),
            first_line(str(parameter.help or "")),
            bool(found.required),
            _default(found),
            by_place,
            found.hint is bool,
        )


def _default(found: Any) -> str:
    value = found.field_info.default
    if found.required or value is None or value is found.field_info.empty or value is False or value == ():
        return ""
    return str(value)
