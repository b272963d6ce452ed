"""Globs over paths: `*` and `?` stay inside a component, `**` crosses components; `[a-z]`, `[!a-z]` are sets.

A glob may be written badly, and the path may come from another host, so no pair of them may take long: globs
with many stars are matched by an automaton in one pass over the path.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from aegisflux.domain.errors import Invalid

SPECIAL: Final = re.compile(r"[*?\[]")
MAX_STARS: Final = 3  # a regular expression with more of them may take too long to fail


class _Token(NamedTuple):
    """One character of a set, or (`regex` empty) a run of any length; `slash`: the run crosses components."""

    regex: str
    slash: bool = False


def matcher(pattern: str) -> Callable[[str], bool]:
    """Return what says whether a text matches the whole glob; raises Invalid for a set that is none."""
    tokens = list(_tokens(pattern))
    parts = [token.regex or (".*" if token.slash else "[^/]*") for token in tokens]
    try:
        compiled = re.compile("".join(parts), re.DOTALL)
    except re.error as error:
        raise Invalid("glob", "a set of characters such as [a-z]", f"{pattern}: {error}") from None
    if sum(not token.regex for token in tokens) <= MAX_STARS:
        return lambda text: compiled.fullmatch(text) is not None
    return _automaton(tokens)


def _tokens(pattern: str) -> Iterator[_Token]:
    i = 0
    while i < len(pattern):
        char = pattern[i]
        if char == "*":
            end = i
            while end < len(pattern) and pattern[end] == "*":
                end += 1
            yield _Token("", end - i > 1)
            i = end
            continue
        end = pattern.find("]", i + 2) if char == "[" else -1
        if end > 0:
            inside = re.sub(r"([\\\[&~|])", r"\\\1", pattern[i + 1 : end]).replace("--", r"-\-")
            yield _Token(f"[^{inside[1:]}]" if inside[0] in "!^" else f"[{inside}]")
            i = end + 1
            continue
        yield _Token("[^/]" if char == "?" else re.escape(char))
        i += 1


def _automaton(tokens: list[_Token]) -> Callable[[str], bool]:
    """All states at once as bits of a number: bit i says that the first i characters' tokens have matched."""
    steps = [re.compile(token.regex, re.DOTALL) for token in tokens if token.regex]
    inside = crossing = at = 0
    for token in tokens:
        if token.regex:
            at += 1
        elif token.slash:
            crossing |= 1 << at
        else:
            inside |= 1 << at

    @lru_cache(maxsize=512)
    def accepting(char: str) -> int:
        return sum(1 << i for i, step in enumerate(steps) if step.fullmatch(char))

    def matches(text: str) -> bool:
        states = 1
        for char in text:
            stay = crossing if char == "/" else crossing | inside
            states = (states & accepting(char)) << 1 | states & stay
            if not states:
                return False
        return bool(states >> len(steps) & 1)

    return matches
