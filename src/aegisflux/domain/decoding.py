"""Parsed values become values of our types; an error names path, what was expected, and what came."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import msgspec
import msgspec.inspect

from aegisflux.domain.errors import Invalid
from aegisflux.domain.names import close
from aegisflux.domain.paths import step
from aegisflux.domain.patterns import in_words as in_words_of

_PATH: Final = re.compile(r" - at (`key` in )?`\$([^`]*)`\Z")
_STEP: Final = re.compile(r"\.([A-Za-z_0-9]+)|\[([0-9]+)\]|(\[\.\.\.\])")
_FIELDS: Final = (
    ("Object missing required field `", "a value (the field is required)"),
    ("Object contains unknown field `", "no such field"),
)
_REGEX: Final = re.compile(r" matching regex (['\"].*['\"])\Z")
_CLOSED: Final = ("Invalid enum value", "Invalid value")
_PLAIN: Final = (
    ("`int | float`", "a number"),
    ("`int`", "an integer"),
    ("`float`", "a number"),
    ("`str`", "a string"),
    ("`bool`", "true or false"),
    ("`array`", "an array"),
    ("`object`", "an object"),
)


def converted(raw: Any, kind: Any, *, strict: bool = True) -> Any:
    """Return parsed JSON or YAML as a value of the type; raises Invalid by path. A number in quotes is a
    string, and 1.0 is no integer; not so where it is not `strict`, for settings."""
    try:
        return msgspec.convert(raw, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise _explained(error, raw, kind) from None


def in_words(error: Exception, kind: Any = None) -> str:
    """Return in our words what msgspec says of bytes that it could not decode as a type: they are not there
    any more, so that the value is named as far as msgspec names it."""
    message = str(error)
    found = _PATH.search(message)
    text = message[: found.start()] if found else message
    path: list[str | int] = [
        name or (int(index) if index else "...")
        for name, index, _ in _STEP.findall(found[2] if found else "")
    ]
    for begin, expected in _FIELDS:
        if text.startswith(begin):
            return f"{step(path_text(path), text.removeprefix(begin).rstrip('`'))}: expected {expected}"
    got = text.partition(", got ")[2] or text.partition(" value ")[2]
    for name, word in _PLAIN:
        got = got.replace(name, word)
    if text.startswith(("Expected ", *_CLOSED)):
        came = f", got {got.replace('`', '')}" if got else ""
        text = f"expected {_expected(text, path, None, kind)}{came}"
    at = path_text(path)
    return f"{at}: {text}" if at else text


def _explained(error: msgspec.ValidationError, raw: Any, kind: Any) -> Invalid:
    """msgspec's message as ours: `path: expected X, got Y`, with the value that came."""
    message = str(error)
    found = _PATH.search(message)
    text = message[: found.start()] if found else message
    of_key = bool(found and found[1])
    path, value = _located(found[2] if found else "", raw, kind, message)
    if of_key:
        key = _culprit(value, lambda part: _with(raw, path, part), kind, message)
        return Invalid(
            step(path_text(path), str(key)), f"a key that is {_expected(text, path, key, kind)}", key
        )
    at = path_text(path)
    for words, expected in _FIELDS:
        if text.startswith(words):
            name = text.removeprefix(words).rpartition("`")[0]
            return Invalid(step(at, name), expected, "nothing" if "missing" in words else name)
    return Invalid(at, _expected(text, path, value, kind), value)


def _words(path: list[str | int], kind: Any) -> list[str]:
    """What the type allows at a path of a closed set of words."""
    found = [_info(kind)] if kind is not None else []
    for part in path:
        found = [inner for one in found for outer in _choices(one) for inner in _inside(outer, part)]
    values = [
        value
        for one in found
        for choice in _choices(one)
        for value in (
            choice.values
            if isinstance(choice, msgspec.inspect.LiteralType)
            else [member.value for member in choice.cls]
            if isinstance(choice, msgspec.inspect.EnumType)
            else ()
        )
    ]
    return list(dict.fromkeys(map(str, values)))


@cache
def _info(kind: Any) -> msgspec.inspect.Type:
    """What the library knows of a type; others may send many values that are wrong."""
    return msgspec.inspect.type_info(kind)


def _choices(kind: msgspec.inspect.Type) -> Iterator[msgspec.inspect.Type]:
    if isinstance(kind, msgspec.inspect.Metadata):
        yield from _choices(kind.type)
    elif isinstance(kind, msgspec.inspect.UnionType):
        for one in kind.types:
            yield from _choices(one)
    else:
        yield kind


def _inside(kind: msgspec.inspect.Type, part: str | int) -> Iterator[msgspec.inspect.Type]:
    """The types of an item or a field of a value."""
    look = msgspec.inspect
    if isinstance(kind, look.StructType | look.DataclassType | look.TypedDictType | look.NamedTupleType):
        for n, field in enumerate(kind.fields):
            if part in (field.encode_name, n):
                yield field.type
        if isinstance(kind, look.StructType) and part == kind.tag_field:
            yield look.LiteralType((kind.tag,))
    elif isinstance(kind, look.DictType):
        yield kind.value_type
    elif isinstance(kind, look.ListType | look.VarTupleType | look.SetType | look.FrozenSetType):
        yield kind.item_type
    elif isinstance(kind, look.TupleType) and isinstance(part, int) and part < len(kind.item_types):
        yield kind.item_types[part]


def path_text(parts: list[str | int]) -> str:
    """Return keys and indexes as a path."""
    found = ""
    for part in parts:
        found = step(found, part)
    return found


def _located(path: str, raw: Any, kind: Any, message: str) -> tuple[list[str | int], Any]:
    """The steps to the value that is refused, and the value. msgspec does not name the key of a mapping."""
    parts: list[str | int] = []
    value = raw
    for name, index, _any in _STEP.findall(path):
        try:
            here: str | int = name or (int(index) if index else "")
            if _any:
                here = _culprit(value, lambda part: _with(raw, parts, part), kind, message)
            value = value[here]
            parts.append(here)
        except (KeyError, IndexError, TypeError):
            return parts, None
    return parts, value


def _culprit(value: Mapping[str, Any], put: Any, kind: Any, message: str) -> Any:
    """The first key of a mapping without which the error does not come, found by halves."""
    keys = list(value)
    low, high = 0, len(keys) - 1
    while low < high:
        middle = (low + high) // 2
        if _fails(put({key: value[key] for key in keys[: middle + 1]}), kind, message):
            high = middle
        else:
            low = middle + 1
    return keys[low]


def _fails(raw: Any, kind: Any, message: str) -> bool:
    try:
        msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        return str(error) == message
    return False


def _with(raw: Any, path: list[str | int], part: Any) -> Any:
    """The same with another value at the path; what is beside the path is shared."""
    if not path:
        return part
    copy: Any = dict(raw) if isinstance(raw, dict) else list(raw)
    copy[path[0]] = _with(raw[path[0]], path[1:], part)
    return copy


def _expected(text: str, path: list[str | int], value: Any, kind: Any) -> str:
    words = _words(path, kind) if text.startswith((*_CLOSED, "Expected `str`")) else []
    if words or text.startswith(_CLOSED):
        near = close(value, words) if isinstance(value, str) else ""
        hint = f" ({near.removeprefix('; ')})" if near else ""
        return (f"one of {', '.join(words)}" if words else "one of the documented words") + hint
    if found := _REGEX.search(text):
        return in_words_of(ast.literal_eval(found[1]))
    text = text.removeprefix("Expected ").split(", got ")[0]
    for name, plain in _PLAIN:
        text = text.replace(name, plain)
    return text.replace("`", "")
