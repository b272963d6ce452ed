"""What the documents and the help say of commands is there: nouns with their verbs, and every argument."""

import inspect
import re
from pathlib import Path

import pytest

from aegisflux.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("SECURITY.md", "CHANGELOG.md", "README.md", "ARCHITECTURE.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
INLINE = re.compile(r"`(?:aegisflux )?([a-z]+) ([a-z][a-z-]+)[^`]*`")
WORDS = ("is", "log")  # of a line of a log (`flows is ...`), and of /readyz (`audit log`)


def verbs(group):
    return {name for name in group if not name.startswith("-")}


def commands(group, path=()):
    for name in verbs(group):
        yield (*path, name), group[name]
        yield from commands(group[name], (*path, name))


NOUNS = {name: verbs(app[name]) for name in verbs(app) if verbs(app[name])}
EVERY = {" ".join(path): one for path, one in commands(app)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_document_names_only_commands_that_there_are(page):
    """A noun in the plural (`tokens list`) counts as the noun."""
    unknown = []
    for noun, verb in INLINE.findall(page.read_text()):
        known = NOUNS.get(noun) or NOUNS.get(noun.removesuffix("s"))
        if known is not None and verb not in WORDS and (noun not in NOUNS or verb not in known):
            unknown.append(f"{noun} {verb}")
    assert unknown == []


@pytest.mark.parametrize("path", sorted(EVERY))
def test_the_help_has_each_argument_and_each_word(path):
    command = EVERY[path]
    assert "<" not in (command.help or ""), "is left out where help is rendered"
    if command.default_command is None:
        return
    for one in inspect.signature(command.default_command).parameters.values():
        assert one.kind is not inspect.Parameter.POSITIONAL_ONLY, f"{one.name} is not in the help"
    for argument in command.assemble_argument_collection(parse_docstring=True):
        assert "<" not in (argument.parameter.help or ""), argument.name
