"""Which paths an application has, to be said before anything else is done for a request."""

from collections.abc import Iterable
from typing import Any, Final

_ANY: Final = "{"


class Paths:
    """Looks up a path segment by segment. `templates` are those of the routes: `/api/v1/hosts/{host}`."""

    def __init__(self, templates: Iterable[str]) -> None:
        self._root: dict[str, Any] = {}
        for template in templates:
            node = self._root
            for part in _parts(template):
                node = node.setdefault(_ANY if part.startswith(_ANY) else part, {})
            node[""] = {}

    def __contains__(self, path: str) -> bool:
        """Whether a route may have this path; what its parameters may be, the application knows."""
        nodes = [self._root]
        for part in _parts(path):
            nodes = [found for node in nodes for key in (part, _ANY) if (found := node.get(key)) is not None]
            if not nodes:
                return False
        return any("" in node for node in nodes)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]
