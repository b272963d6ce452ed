"""Names that are names and nothing else: of services, groups and hosts, and the names and values of labels.

Where a policy may name a service it may also write an address, a CIDR or a keyword. A service that is called
`10.0.0.1`, or a label `tcp/443`, would make a rule mean something else than its reader thinks, so that no
such name is given any more. What has one already keeps it and is reported; a rule
that names it means it, and is refused where the same word is an end by itself, such as `fleet`.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.net import PROTOCOLS

KEYWORDS: Final = frozenset(
    {
        "fleet",
        "anyone",
        "host",
        "label",
        "any",
        "all",
        "none",
        "allow",
        "deny",
        "from",
        "to",
        "ports",
        *PROTOCOLS,
    }
)
# What readers of YAML, TOML and JSON make of a word without quotes. The value `true` of a label is the one
# that a label without a value has, and stays.
CONSTANTS: Final = frozenset(
    {"true", "false", "null", "nil", "yes", "no", "on", "off", "nan", "inf", "infinity", "undefined"}
)
_PART: Final = r"(?:0[xX][0-9a-fA-F]+|\d+)"
_NUMBER: Final = re.compile(
    r"[+-]?(?:\d[\d_,]*\.?[\d_]*|\.[\d_]+)(?:[eE][+-]?\d+)?|[+-]?0[xX][0-9a-fA-F_]+|[+-]?0[oO][0-7_]+|[+-]?0[bB][01_]+"
)
_DOTTED: Final = re.compile(rf"{_PART}(?:\.{_PART})+\.?|[\d.]*\d\.[\d.]*")
_COLONS: Final = re.compile(r"\[?[0-9a-fA-F]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(?:%[^\]/]*)?\]?")
_PROTOCOL_PORT: Final = re.compile(rf"(?:any|{'|'.join(PROTOCOLS)})/.*", re.IGNORECASE)
_PORT: Final = re.compile(r"(.*):(\d+(?:-\d+)?)")
_RANGE: Final = re.compile(r"\d+\s*[-:]\s*\d+")
_KINDS: Final = ("host:", "label:")


def literal_of(text: str, *, constants: bool = True) -> str:
    """Return what a text is to a reader of policies who does not look up names, such as "an address"; empty:
    nothing, so that it can be a name. Without `constants`, words such as `true` are nothing."""
    word = text.strip()
    lower = word.lower()
    if lower in KEYWORDS or lower.startswith(_KINDS):
        return "a keyword of policies"
    if constants and (lower in CONSTANTS or lower.lstrip("+-.") in CONSTANTS):
        return "a word that means a value in YAML"
    base, slash, length = word.partition("/")
    if (
        slash
        and (_address(base) or _NUMBER.fullmatch(base))
        and (_NUMBER.fullmatch(length) or _address(length))
    ):
        return "a CIDR"
    if _PROTOCOL_PORT.fullmatch(word):
        return "a port"
    if _NUMBER.fullmatch(word) and not _DOTTED.fullmatch(word):
        return "a number"
    if _address(word):
        return "an address"
    port = _PORT.fullmatch(word)
    if _RANGE.fullmatch(word) or (port and (not port[1] or _address(port[1]))):
        return "a port"
    return ""


def _address(text: str) -> bool:
    """Also one that is wrong, or that only some programs read: `10.1`, `0x7f.1`, `10.0.0.999`, `1.2.3`."""
    return bool(_DOTTED.fullmatch(text) or _COLONS.fullmatch(text))


def check_name(path: str, text: str) -> None:
    """Raise Invalid by path for a name that could be read as something else than a name."""
    if kind := literal_of(text):
        raise Invalid(path, f"a name, not what looks like {kind}", text)


def check_label(path: str, name: str, value: str) -> None:
    """Raise Invalid by path for a label whose name or value could be read as something else."""
    if kind := literal_of(name):
        raise Invalid(path, f"a label with a name, not with what looks like {kind}", name)
    if "=" in name or name != name.strip():
        raise Invalid(path, "a label with a name that has no = in it and no space around it", name)
    if kind := literal_of(value, constants=False):
        raise Invalid(path, f"a label with a word as its value, not with what looks like {kind}", value)
    if value != value.strip():
        raise Invalid(path, "a label with a value that has no space around it", value)


def close(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean ...?" for the name that is most like another one; empty: none is."""
    near = get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def remarks(names: Mapping[str, str], labels: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str]]:
    """Return (whose, what is wrong) for what was given a name before such names were refused: `names` by what
    they are called in messages, `labels` by whose they are."""
    found = []
    for whose, name in names.items():
        if kind := literal_of(name):
            found.append((whose, f"its name looks like {kind}"))
    for whose, own in labels.items():
        for name, value in own.items():
            try:
                check_label("", name, value)
            except Invalid as error:
                found.append((whose, f"its label {name}={value}: {error}"))
    return found
