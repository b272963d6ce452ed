"""docs/reference and schemas/, generated from the code.

Without an argument it writes; `--check` writes nothing, prints what is stale and exits with 1 then.
"""

import sys
from collections.abc import Callable

import pages_code
import pages_contract
import schema_export
import tree
from markdown import MARK

PAGES: dict[str, Callable[[], str]] = {
    "schemas/mapsnapshot.json": schema_export.mapsnapshot_text,
    "docs/reference/words.md": pages_contract.words_page,
    "docs/reference/subjects.md": pages_contract.subjects_page,
    "docs/reference/mapsnapshot.md": pages_contract.mapsnapshot_page,
    "docs/reference/tables.md": pages_contract.tables_page,
    **pages_code.PAGES,
}


def stale() -> list[str]:
    """The generated files that are missing, or differ from what the code says now."""
    wrong = []
    for name, make in PAGES.items():
        path = tree.ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != make():
            wrong.append(name)
    made = {name for name in PAGES if name.startswith("docs/reference/")}
    pages = (tree.ROOT / "docs/reference").glob("*.md")
    there = {str(p.relative_to(tree.ROOT)) for p in pages if p.read_text(encoding="utf-8").startswith(MARK)}
    return wrong + [f"{name} (nothing generates it)" for name in sorted(there - made)]


def write() -> None:
    """Write every generated file, and say which ones changed."""
    for name, make in PAGES.items():
        path, text = tree.ROOT / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")


def main() -> int:
    """Write, or check with `--check`."""
    if sys.argv[1:] != ["--check"]:
        write()
        return 0
    wrong = stale()
    for name in wrong:
        print(f"{name}: stale; run script/docs")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
