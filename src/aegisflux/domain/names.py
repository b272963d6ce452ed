"""Names that are names and nothing else: of services, groups and hosts, and the names and values of labels.

Where a policy may name a service it may also write an address, a CIDR or a keyword. A service that is called
`10.0.0.1`, or a label `tcp/443`, would make a rule mean something else than its reader thinks, so that no
such name is given any more. What has one already keeps it and is reported; a rule
that names it means it, and is refused where the same word is an end by itself, such as `fleet`.
"""

import re
import string
import unicodedata
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.net import PROTOCOLS
from aegisflux.domain.text import is_printable, seen

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
    {"true", "false", "null", "nil", "yes", "no", "on", "off", "nan", "inf", "infinity", "undefined", "~"}
)
# What ends and selectors begin with; `cidr:10.0.0.0/8` reads as an end, though none is so written.
KINDS: Final = KEYWORDS | {"cidr", "address", "service", "group", "unit", "cgroup"}
# Marks that look like ours and that NFKC leaves: full stops, slashes, asterisks, dashes and colons.
_ALIKE: Final = str.maketrans(
    "\u3002\u2215\u2044\u2217\u2010\u2012\u2013\u2014\u2212\u2236\ua789", ".//*-----::"
)
# What is a comparison of labels elsewhere, and would be a label here: `env!=prod` is no label `env!`.
OPERATOR: Final = re.compile(r"[^=]*?(!=|~=|<=|>=|==|=~|=!|!~|^!(?=[^=]*\Z)|[<>](?=[^=]*\Z))")
_PUNCTUATION: Final = string.punctuation + string.whitespace
_PART: Final = r"(?:0[x][0-9a-f]+|\d+)"
_NUMBER: Final = re.compile(
    r"[+-]?(?:\d[\d_,]*\.?[\d_]*|\.[\d_]+)(?:e[+-]?\d+)?|[+-]?0x[0-9a-f_]+|[+-]?0o[0-7_]+|[+-]?0b[01_]+"
)
_DOTTED: Final = re.compile(rf"{_PART}(?:\.{_PART})+\.?|[\d.]*\d\.[\d.]*")
_COLONS: Final = re.compile(r"\[?[0-9a-f]*:[0-9a-f:.]*:[0-9a-f:.]*(?:%[^\]/]*)?\]?")
_MAC: Final = re.compile(r"[0-9a-f]{2}(?:-[0-9a-f]{2}){5}|(?=.*\d)[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}")
_PROTOCOLS: Final = rf"(?:any|{'|'.join(PROTOCOLS)})"
_PORTS: Final = rf"{_PART}(?:[-,:]{_PART})*"
_PROTOCOL_PORT: Final = re.compile(
    rf"{_PROTOCOLS}/.*|{_PROTOCOLS}[\W_]+(?:{_PORTS}|\*)|(?:{_PORTS}|\*)[\W_]+{_PROTOCOLS}"
)
_PORT: Final = re.compile(r"(.*):(\d+(?:-\d+)?|\*)")
_RANGE: Final = re.compile(r"\d+\s*[-:]\s*\d+")
_WILD: Final = re.compile(r"\*+|(?<=\.)x(?=\.|\Z)")
_GROUPS: Final = re.compile(r"\d+(?:-\d+){2,}")


def literal_of(text: str, *, constants: bool = True) -> str:
    """Return what a text is to a reader of policies who does not look up names, such as "an address"; empty:
    nothing, so that it can be a name. Without `constants`, words such as `true` are nothing.

    It is judged as it looks: without the case, the width and the characters that no one sees, with and
    without the punctuation at its ends. A text without any letter that has a digit is never a name, but for
    three or more numbers that dashes join (`2026-11-30`).
    """
    word = looks(text)
    bare = word.rstrip(_PUNCTUATION)
    for one in dict.fromkeys((word, bare, bare.lstrip(_PUNCTUATION.replace("/", "")))):
        if kind := _literal(one, constants):
            return kind
    letters = any(char.isalpha() for char in word)
    digits = any(char.isdigit() for char in word)
    return "a number" if digits and not letters and not _GROUPS.fullmatch(word) else ""


def looks(text: str) -> str:
    """Return the text as a reader sees it, in lower case: without the width of characters, and without those
    that no one sees. Letters of other scripts that look alike stay what they are."""
    word = unicodedata.normalize("NFKC", seen(text)).translate(_ALIKE).casefold()
    return "".join(str(unicodedata.digit(char, char)) for char in word).strip()


def _literal(word: str, constants: bool) -> str:
    if word in KEYWORDS or word.partition(":")[0].strip() in (KINDS if ":" in word else ()):
        return "a keyword of policies"
    if constants and (word in CONSTANTS or word.lstrip("+-.") in CONSTANTS):
        return "a word that means a value in YAML"
    if _cidr(word):
        return "a CIDR"
    if _PROTOCOL_PORT.fullmatch(word):
        return "a port"
    if _NUMBER.fullmatch(word) and not _DOTTED.fullmatch(word):
        return "a number"
    if _address(word):
        return "an address"
    port = _PORT.fullmatch(word)
    named = _DOTTED.fullmatch(word.partition(":")[0])  # 10.0.0.1:http
    if _RANGE.fullmatch(word) or (":" in word and named) or (port and (not port[1] or _address(port[1]))):
        return "a port"
    first, dash, last = word.partition("-")
    if dash and _bound(first) and _bound(last):
        return "a range"
    if word and not word.strip("*?."):
        return "a wildcard"
    return ""


def _bound(text: str) -> bool:
    """Whether a range may begin or end with it."""
    text = text.strip()
    return bool(_NUMBER.fullmatch(text)) or _address(text) or _cidr(text)


def _cidr(text: str) -> bool:
    base, slash, length = text.partition("/")
    lengths = bool(_NUMBER.fullmatch(length)) or _address(length)
    return bool(slash) and lengths and (_address(base) or bool(_NUMBER.fullmatch(base)))


def _address(text: str) -> bool:
    """Also one that is wrong, or that only some programs read: `10.1`, `0x7f.1`, `10.0.0.999`, `10.0.0.*`."""
    plain = _WILD.sub("0", text) if text.count(".") == 3 or "*" in text else text
    return any(form.fullmatch(plain) for form in (_DOTTED, _COLONS, _MAC))


def _visible(path: str, what: str, text: str) -> None:
    if not is_printable(text):
        raise Invalid(path, f"{what} in which every character can be seen", text)


def check_name(path: str, text: str) -> None:
    """Raise Invalid by path for a name that could be read as something else than a name."""
    _visible(path, "a name", text)
    if kind := literal_of(text):
        raise Invalid(path, f"a name, not what looks like {kind}", text)


def check_label(path: str, name: str, value: str) -> None:
    """Raise Invalid by path for a label whose name or value could be read as something else."""
    _visible(path, "a label with a name", name)
    _visible(path, "a label with a value", value)
    if kind := literal_of(name):
        raise Invalid(path, f"a label with a name, not with what looks like {kind}", name)
    if "=" in name or name != name.strip():
        raise Invalid(path, "a label with a name that has no = in it and no space around it", name)
    if sign := OPERATOR.match(f"{name}={value}"):
        raise Invalid(path, f"a label that does not read as a comparison by {sign[1]}", f"{name}={value}")
    if kind := literal_of(value, constants=False):
        raise Invalid(path, f"a label with a word as its value, not with what looks like {kind}", value)
    if value != value.strip():
        raise Invalid(path, "a label with a value that has no space around it", value)


def close(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean ...?" for the name that is most like another one, whatever the case of both;
    empty: none is."""
    known = {one.casefold(): one for one in names}
    near = get_close_matches(name.casefold(), known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""


def remarks(names: Mapping[str, str], labels: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str]]:
    """Return (whose, what is wrong) for what was given a name before such names were refused: `names` by what
    they are called in messages, `labels` by whose they are."""
    found = []
    for whose, name in names.items():
        if kind := literal_of(name):
            found.append((whose, f"its name looks like {kind}"))
        elif not is_printable(name):
            found.append((whose, "its name has characters that cannot be seen"))
    for whose, own in labels.items():
        for name, value in own.items():
            try:
                check_label("", name, value)
            except Invalid as error:
                found.append((whose, f"its label {name}={value}: {error}"))
    return found
