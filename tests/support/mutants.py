"""Copies of a module in which one rule is dropped: a suite that lets one pass does not test that rule."""

import inspect
from types import ModuleType


def mutant(module: ModuleType, old: str, new: str) -> ModuleType:
    """A copy of a module with one place changed. Whatever it imports is the real one."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{module.__name__} changed: {old!r} is in it {source.count(old)} times"
    found = ModuleType(module.__name__)
    exec(compile(source.replace(old, new), module.__name__, "exec"), found.__dict__)
    return found
