"""Pages for users name the role that acts, and use the terms of the field: no pronoun without a person, and
no word of our own where there is a common one. Code, names of tests and links are left out.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md"]
PAGES += sorted([*(ROOT / "docs/howto").glob("*.md"), *(ROOT / "docs/concepts").glob("*.md")])
CODE = re.compile(r"^```.*?^```|`[^`]*`|\]\([^)]*\)", re.MULTILINE | re.DOTALL)
# What is retired, and what to write: each with a text that it finds.
RETIRED = {
    r"nobody|whoever|somebody|anybody|everybody": ("the role: no host, any client, another user", "Whoever"),
    r"anew": ("again, or re-enrol, re-sign, reload", "enrol it anew"),
    r"told|tells?": ("reports, shows, distinguishes", "what hosts tell"),
    r"silent": ("offline, idle, without telemetry", "a silent host"),
    r"(?:take|takes|taking|took|taken)(?: \w+)? back": ("roll back, rolled back", "takes itself back"),
    r"(?-i:[Nn]acks?)": ("NACK", "a Nack"),
    r"a roll[ -]back": ("a rollback", "a roll back"),
}


def prose_of(text: str) -> str:
    return CODE.sub(" ", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.parametrize("retired", RETIRED)
def test_a_page_for_users_has_none_of_our_own_words(page: Path, retired: str) -> None:
    prose = prose_of(page.read_text())
    found = [prose[max(0, one.start() - 40) : one.end() + 20] for one in _all(retired, prose)]
    assert found == [], f"write: {RETIRED[retired][0]}"


@pytest.mark.parametrize("retired", RETIRED)
def test_each_pattern_finds_its_word(retired: str) -> None:
    assert _all(retired, RETIRED[retired][1])
    assert not _all(retired, prose_of("`silent_seconds`, [x](told.md), retold, a NACK, two NACKs, rollback"))


def _all(retired: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(rf"(?i:\b(?:{retired})\b)", text))
