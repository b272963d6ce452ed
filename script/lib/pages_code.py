"""Generated pages about the program: settings, commands, HTTP endpoints, metrics."""

from collections.abc import Callable

PAGES: dict[str, Callable[[], str]] = {}
