"""Documentation fails the build: stale pages, dead links, commands that do not exist, missing words."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import commands
import jsonschema
import pytest
import reference
import schema_export

from aegisflux import agent_bootstrap
from aegisflux.domain.errors import Refused
from aegisflux.domain.snapshot import from_builtins
from aegisflux.wire import subjects

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
OURS = re.compile(
    r"(?<![\w/.@-])((?:\.venv/bin/)?aegisflux|(?:script|examples)/[\w./-]+)((?:[ \t]+[^\s|;&)<>\"'#]+)*)"
)
PLACE = re.compile(r"`((?:[a-z_]+/)*[a-z_]+(?:\.py|\.h|\.c|/))`")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _anchors(text: str) -> set[str]:
    """Anchors of headings, as they are commonly made from their text."""
    plain = (re.sub(r"[`*]", "", heading).lower() for heading in HEADING.findall(FENCE.sub("", text)))
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def _typed(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each of our own programs that a page tells people to type, with its words."""
    for language, body in FENCE.findall(path.read_text()):
        if language in ("sh", "console"):
            for program, words in OURS.findall(body.replace("\\\n", " ")):
                yield program, words.split()


def _command_tree() -> dict[str, commands.Command]:
    cli = pytest.importorskip("aegisflux.cli")
    return {command.path: command for command in commands.tree(cli.app)}


def test_generated_pages_are_what_the_code_says() -> None:
    assert reference.stale() == [], "run script/docs"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    dead = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        found = (page.parent / place).resolve() if place else page
        if not found.exists() or (anchor and anchor not in _anchors(found.read_text())):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_decisions_are_named_in_one_form_with_a_link(page: Path) -> None:
    """`[ADR 0028](docs/adr/0028-...)`; headings name no decision."""
    text = page.read_text(encoding="utf-8")
    linked = re.compile(r"\[ADR ([0-9]{4})\]\((?:[^)\s]*/)?\1-[a-z0-9-]+\.md\)")
    assert re.findall(r"\bADRs? [0-9]+", linked.sub("", text)) == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_in_pages_exist(page: Path) -> None:
    wrong = []
    for program, words in _typed(page):
        if not program.endswith("aegisflux"):
            if not (ROOT / program).is_file():
                wrong.append(program)
            continue
        known = _command_tree()
        path = ""
        while words and f"{path} {words[0]}".strip() in known:
            path = f"{path} {words.pop(0)}".strip()
        if not path:
            wrong += [] if words in (["--help"], ["--version"], []) else [f"aegisflux {' '.join(words)}"]
            continue
        options = [word.partition("=")[0] for word in words if word.startswith("-") and word != "-"]
        wrong += [f"aegisflux {path} {option}" for option in options if not known[path].accepts(option)]
        if known[path].group and words and not options and not known[path].arguments:
            wrong.append(f"aegisflux {path} {words[0]}")
    assert wrong == []


def test_the_readme_names_the_two_commands() -> None:
    programs = {program for program, _ in _typed(ROOT / "README.md")}
    assert {"script/demo", "script/test"} <= programs


def test_places_that_the_architecture_names_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    bases = (ROOT, ROOT / "src/aegisflux")
    missing = [name for name in PLACE.findall(text) if not any((base / name).exists() for base in bases)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_settings_in_pages_are_settings(page: Path, tmp_path: Path) -> None:
    for number, (_, body) in enumerate(f for f in FENCE.findall(page.read_text()) if f[0] == "toml"):
        path = tmp_path / f"{number}.toml"
        path.write_text(body)
        agent_bootstrap.load_config(path).settings()


def test_every_decision_is_in_the_index_once() -> None:
    folder = ROOT / "docs/adr"
    index = (folder / "README.md").read_text()
    numbers = [path.name[:4] for path in sorted(folder.glob("[0-9]*.md"))]
    assert numbers == [f"{number:04d}" for number in range(1, len(numbers) + 1)]
    for path in folder.glob("[0-9]*.md"):
        assert index.count(f"]({path.name})") == 1, path.name
        assert {"## Context", "## Decision"} <= set(path.read_text().splitlines()), path.name


def test_every_subject_has_a_row() -> None:
    text = (ROOT / "docs/reference/subjects.md").read_text()
    assert [row.subject for row in subjects.REGISTER if f"| `{row.subject}` |" not in text] == []


def test_every_verb_has_a_heading() -> None:
    text = (ROOT / "docs/reference/cli.md").read_text()
    assert [path for path in _command_tree() if f"`aegisflux {path}`" not in text] == []


MINIMAL = {"version": 1, "service_id": 7, "ttl_seconds": 60}
EDGE = {"dst_cidr": "10.0.0.0/8", "proto": "tcp", "port": 443}
GOOD = [
    {},
    {"edges": [EDGE]},
    {"ingress": []},
    {"ingress": [{"src_cidr": "::/0", "proto": "any", "port": 0}]},
    {"allow_cidrs": [{"cidr": "::1/128", "proto": "udp", "port": 53}], "meta": {"a": [1, {"b": None}]}},
    {"deny": [{"cidr": "10.0.0.0/8", "proto": "any", "port": 0, "direction": "both"}], "mode": "observe"},
    {"on_expiry": "closed", "established": "cut", "ttl_seconds": 2_592_000, "service_id": 2**32 - 1},
]
BAD = [
    {"version": 0},
    {"version": 2**53},
    {"version": "1"},
    {"service_id": -1},
    {"service_id": 2**32},
    {"ttl_seconds": 59},
    {"ttl_seconds": 2_592_001},
    {"edges": {}},
    {"edges": [{**EDGE, "proto": "icmp"}]},
    {"edges": [{**EDGE, "port": 65_536}]},
    {"edges": [{**EDGE, "port": None}]},
    {"edges": [{**EDGE, "note": "x"}]},
    {"edges": [{"dst_cidr": "10.0.0.0/8", "proto": "tcp"}]},
    {"ingress": None},
    {"deny": [{"cidr": "10.0.0.0/8", "proto": "any", "port": 0}]},
    {"mode": "on"},
    {"meta": []},
    {"extra": 1},
]


def _schema() -> jsonschema.Draft7Validator:
    schema = json.loads((ROOT / "schemas/mapsnapshot.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.mark.parametrize("part", GOOD, ids=str)
def test_schema_and_code_accept_the_same(part: dict[str, object]) -> None:
    body = {**MINIMAL, **part}
    assert _schema().is_valid(body)
    from_builtins(body)


@pytest.mark.parametrize("part", BAD, ids=str)
def test_schema_and_code_refuse_the_same(part: dict[str, object]) -> None:
    body = {**MINIMAL, **part}
    assert not _schema().is_valid(body)
    with pytest.raises(Refused):
        from_builtins(body)


@pytest.mark.parametrize("name", MINIMAL)
def test_schema_and_code_require_the_same(name: str) -> None:
    body = {key: value for key, value in MINIMAL.items() if key != name}
    assert not _schema().is_valid(body)
    with pytest.raises(Refused):
        from_builtins(body)


def test_the_schema_says_a_sentence_for_each_field() -> None:
    schema = schema_export.mapsnapshot()
    for part in (schema, *schema["definitions"].values()):
        assert part["additionalProperties"] is False
        assert all(len(field["description"]) > 10 for field in part["properties"].values())


def test_the_schema_accepts_the_conformance_cases(shared_data: Path) -> None:
    validator = _schema()
    lines = (shared_data / "verdicts/cases.jsonl").read_text().splitlines()
    wrong = [line for line in lines if not validator.is_valid(json.loads(line)["snapshot"])]
    assert len(lines) >= 600
    assert wrong == []
