"""What the regular expressions of our schemas mean, in words: an answer shows no expression.

A pattern is written for readers of JSON Schema; whoever sent a value that it does not take reads these words.
"""

from typing import Final

# Control characters, those that turn the direction of what is displayed, and those that no one sees.
_UNSEEN: Final = (
    r"\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\u2800\u3164\ue000-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e0fff"
)
_WORDS: Final = {
    rf"^[^{_UNSEEN}]*$(?!\n)": "text of one line, in which each character can be seen",
    rf"^[^{_UNSEEN}]+$(?!\n)": "characters each of which can be seen",
    r"^[ -~]*$(?!\n)": "printable characters of ASCII",
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
