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
SCARCE: Final = 2
MEBIBYTE: Final = 1 << 20
Usage = Callable[[Path], tuple[int, int, int]]


class Spare:
    """Asked before something is stored for good."""

    def __init__(self, folder: Path, usage: Usage = shutil.disk_usage) -> None:
        self._folder, self._usage = folder, usage

    def is_scarce(self) -> bool:
        """Whether less than twice as much is free as `check` asks for: each host may have a little of it."""
        least, free = self._least_and_free()
        return free < SCARCE * least

    def _least_and_free(self) -> tuple[int, int]:
        try:
            total, _, free = self._usage(self._folder)
        except OSError:  # who writes there says what is wrong
            return 0, 0
        return min(MOST, total // PART), free

    def check(self) -> None:
        """Raise Unavailable while the disk has less than `MOST` bytes free, and less than its tenth part."""
        least, free = self._least_and_free()
        if free < least:
            raise Unavailable(
                f"{self._folder}: {free // MEBIBYTE} MiB of the disk are free, and telemetry leaves "
                f"{least // MEBIBYTE} MiB to the store: give it room, or keep less (retention)"
            )
