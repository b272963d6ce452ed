"""Paths by the directory that they lie in: what is at and below one is found without a walk over the rest."""


class Nested:
    """A set of relative paths; "" is the root, above all others. One step costs what it touches."""

    def __init__(self) -> None:
        self._inside: dict[str, set[str]] = {}

    def add(self, path: str) -> None:
        """Note a path, and the directories that lead to it."""
        while path:
            parent = path.rpartition("/")[0]
            known = self._inside.setdefault(parent, set())
            if path in known:
                return
            known.add(path)
            path = parent

    def below(self, path: str) -> list[str]:
        """All that is noted below a path."""
        found = list(self._inside.get(path, ()))
        for one in found:  # grows while it is walked
            found.extend(self._inside.get(one, ()))
        return found

    def take(self, path: str) -> list[str]:
        """Forget a path and all below it; what was noted, the path itself last."""
        found = self.below(path)
        for one in (path, *found):
            self._inside.pop(one, None)
        parent = path.rpartition("/")[0]
        siblings = self._inside.get(parent)
        if path and siblings is not None:
            siblings.discard(path)
            if not siblings:
                del self._inside[parent]
        return [*found, path]
