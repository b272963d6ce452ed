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


SOURCES = sorted(
    path
    for folder in ("src", "demo", "bench", "deploy", "script", "examples", "schemas")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".sql", ".service", ".md", ".toml", ".json", ".sh", ".yaml", ".h", ".c", "")
    and path.is_file()
)
# `aegisflux` and the words behind it; a line break, a comment's mark or two quotes may stand between.
NAMED = re.compile(r"""(?<![\w./-])aegisflux((?:(?:\s|"\s*f?"|\n\s*#)+[a-z][a-z-]*(?![\w.:/=(-])){1,2})""")
# What follows the name of the product, the package, the database, its user or a folder in running text.
PROSE = {
    "and", "is", "on", "of", "by", "for", "or", "as", "in", "the", "has", "makes", "asks", "ends", "import",
    "to", "from", "login", "owner", "tar", "rm",
}  # fmt: skip


def named_in(text):
    """The commands that a text names: a verb, or a noun with its verb."""
    for found in NAMED.findall(text):
        first, *more = re.findall(r"[a-z][a-z-]*", re.sub(r"\bf?\"", " ", found))
        if first not in PROSE:
            yield first, *more


def is_command(first, verb=""):
    """Whether the tree has a command that begins so."""
    if f"{first} {verb}" in EVERY:
        return True
    return first in EVERY and (EVERY[first].default_command is not None or not verb)


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_text_names_only_commands_that_there_are(path):
    """Also in messages, help, comments and prose, with or without code marks."""
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return
    assert [" ".join(words) for words in named_in(text) if not is_command(*words)] == []


def test_a_command_is_found_wherever_it_is_named():
    text = 'see aegisflux\n# hosts list, "aegisflux hosts "\n    f"gone x", and `aegisflux nope`'
    assert list(named_in(text)) == [("hosts", "list"), ("hosts", "gone"), ("nope",)]


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
