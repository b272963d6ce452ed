"""Build hook: the wheel carries the BPF objects, so that a host needs no compiler.

An editable install takes them from bpf/build instead, where `make -C bpf` puts them.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

OBJECTS = Path("bpf/build")


class BuildWithObjects(build_py):
    """Copy bpf/build/*.bpf.o into the wheel as aegisflux/_bpf/."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        objects = sorted(OBJECTS.glob("*.bpf.o"))
        if not objects:
            raise SystemExit(f"expected BPF objects in {OBJECTS}, found none: run `make -C bpf` first")
        target = Path(self.build_lib) / "aegisflux" / "_bpf"
        target.mkdir(parents=True, exist_ok=True)
        for item in objects:
            shutil.copyfile(item, target / item.name)


setup(cmdclass={"build_py": BuildWithObjects})
