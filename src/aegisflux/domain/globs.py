"""Globs over paths: `*` and `?` stay inside a component, `**` crosses components; `[a-z]`, `[!a-z]` are sets.

A glob may be written badly, and the path may come from another host, so no pair of them may take long. Each
part of a glob takes the first place where it fits and never gives it back: what follows has the most room
there. Only where a set holds the slash is this not so: with many stars an automaton matches such a glob.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import groupby
from typing import Final, NamedTuple

from aegisflux.domain.errors import Invalid

SPECIAL: Final = re.compile(r"[*?\[]")
MAX_STARS: Final = 3  # a regular expression that tries all places with more of them may take too long to fail
SLASH: Final = "/"


class _Token(NamedTuple):
    """One character of a set, or (`regex` empty) a run of any length; `slash`: the run crosses components;
    `plain` is the character where the set has one only."""

    regex: str
    slash: bool = False
    plain: str = ""


def matcher(pattern: str) -> Callable[[str], bool]:
    """Return what says whether a text matches the whole glob; raises Invalid for a set that is none."""
    tokens = list(_tokens(pattern))
    try:
        slashes = [bool(re.fullmatch(t.regex, SLASH)) for t in tokens if t.regex and t.plain != SLASH]
    except re.error as error:
        raise Invalid("glob", "a set of characters such as [a-z]", f"{pattern}: {error}") from None
    if not any(slashes):
        regex = _once(tokens)
    elif len([token for token in tokens if not token.regex]) > MAX_STARS:
        return _automaton(tokens)
    else:
        regex = "".join(token.regex or (".*" if token.slash else "[^/]*") for token in tokens)
    compiled = re.compile(regex, re.DOTALL)
    return lambda text: compiled.fullmatch(text) is not None


def plain_runs(pattern: str) -> list[str]:
    """The runs of characters between wildcards: each text that the glob matches has them all."""
    groups = groupby(_tokens(pattern), key=lambda token: bool(token.plain))
    return ["".join(token.plain for token in run) for plain, run in groups if plain]


def _once(tokens: list[_Token]) -> str:
    """A regular expression that gives back no place once taken: its time grows with the square of a text at
    most, whatever the glob."""
    segments: list[list[_Token]] = [[]]
    for token in tokens:
        if token.slash:
            segments.append([])
        else:
            segments[-1].append(token)
    if len(segments) == 1:
        return _segment(segments[0], ends=True)
    first, *between, last = segments
    middle = "".join(f"(?>.*?{_segment(one, ends=False)})" for one in between)
    return f"(?>{_segment(first, ends=False)}){middle}.*{_segment(last, ends=True)}"


def _segment(tokens: list[_Token], *, ends: bool) -> str:
    """What stands between two `**`; `ends`: the text ends with it."""
    components: list[list[str]] = [[""]]
    for token in tokens:
        if token.plain == SLASH:
            components.append([""])
        elif token.regex:
            components[-1][-1] += token.regex
        else:
            components[-1].append("")
    *whole, last = components
    return "/".join([*(_component(one, ends=True) for one in whole), _component(last, ends=ends)])


def _component(pieces: list[str], *, ends: bool) -> str:
    """Pieces with a `*` between each two; `ends`: the component of the text ends with the last one."""
    first, *others = pieces
    if not others:
        return first
    *between, last = (f"(?>[^/]*?{piece})" for piece in others)
    return first + "".join(between) + (f"[^/]*{others[-1]}" if ends else last)


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
        yield _Token("[^/]") if char == "?" else _Token(re.escape(char), plain=char)
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
