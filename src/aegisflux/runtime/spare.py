"""What telemetry leaves free on the disk that it shares with the store: without room for its log, PostgreSQL
does not run, and then nobody can panic.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aegisflux.domain.errors import Unavailable

MOST: Final = 4 << 30
PART: Final = 10  # of a smaller disk a tenth
MEBIBYTE: Final = 1 << 20
Usage = Callable[[Path], tuple[int, int, int]]


class Spare:
    """Asked before something is stored for good."""

    def __init__(self, folder: Path, usage: Usage = shutil.disk_usage) -> None:
        self._folder, self._usage = folder, usage

    def check(self) -> None:
        """Raise Unavailable while the disk has less than `MOST` bytes free, and less than its tenth part."""
        try:
            total, _, free = self._usage(self._folder)
        except OSError:  # who writes there says what is wrong
            return
        least = min(MOST, total // PART)
        if free < least:
            raise Unavailable(
                f"{self._folder}: {free // MEBIBYTE} MiB of the disk are free, and telemetry leaves "
                f"{least // MEBIBYTE} MiB to the store: give it room, or keep less (retention)"
            )
