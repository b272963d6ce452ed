"""Paths of fields in error messages: `edges[3].dst_cidr`, and `labels["a.b"]` for a key that is no word."""

import json
import re
from typing import Final

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")
_STEP: Final = re.compile(r'\["((?:[^"\\]|\\.)*)"\]|\[([0-9]+)\]|([^.\[\]]+)')


def step(path: str, part: str | int) -> str:
    """Return the path of a field or an item of what lies at `path`; one that `steps` reads back."""
    if isinstance(part, int):
        return f"{path}[{part}]"
    if not _PLAIN.fullmatch(part):
        return f"{path}[{json.dumps(part)}]"
    return f"{path}.{part}" if path else part


def steps(path: str) -> list[str | int]:
    """Return the keys and indexes that a path names, outermost first."""
    found: list[str | int] = []
    for quoted, index, plain in _STEP.findall(path):
        if index:
            found.append(int(index))
        else:
            found.append(plain or json.loads(f'"{quoted}"'))
    return found


def pointer(path: str) -> str:
    """Return a path as a JSON pointer (RFC 6901): `edges[3].dst_cidr` is `/edges/3/dst_cidr`."""
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in steps(path))
    return "/" + "/".join(parts)
