"""The programs of script/lib as modules."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "script" / "lib"))

import budgets
import dead
import hygiene
import register
import tree

__all__ = ["budgets", "dead", "hygiene", "register", "tree"]
