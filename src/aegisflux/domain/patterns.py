"""What the regular expressions of our schemas mean, in words: an answer shows no expression.

A pattern is written for readers of JSON Schema; whoever sent a value that it does not take reads these words.
"""

from typing import Final

_WORDS: Final = {
    r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$(?!\n)": "text of one line without control characters",
    r"^[^\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+$(?!\n)": (
        "characters each of which can be seen"
    ),
    r"^[A-Za-z0-9._:-]*$(?!\n)": "letters of ASCII, digits and . _ : -",
    r"^[A-Za-z0-9:._-]+$(?!\n)": "letters of ASCII, digits and : . _ -",
    r"^[0-9a-f]{16}$(?!\n)": "16 hexadecimal digits, in small letters",
    r"^[0-9a-f]{64}$(?!\n)": "64 hexadecimal digits, in small letters",
    r"^sha256:[0-9a-f]{64}$(?!\n)": "sha256: and 64 hexadecimal digits, in small letters",
    r"^[a-z0-9][a-z0-9._-]{0,62}$(?!\n)": "at most 63 of a-z, 0-9 and . _ -, the first of a-z or 0-9",
    r"^[a-z0-9][a-z0-9_-]{0,62}$(?!\n)": "at most 63 of a-z, 0-9 and _ -, the first of a-z or 0-9",
}
UNKNOWN: Final = "text of the documented form"


def in_words(pattern: str) -> str:
    """Return what a text has to be that the pattern takes."""
    return _WORDS.get(pattern, UNKNOWN)
