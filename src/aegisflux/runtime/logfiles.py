"""Files that children write their logs to: bounded while they run, since a child keeps its file open."""

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

LOG_LIMIT = 16 << 20
PIECE = 1 << 20


def rotate(log: Path, limit: int = LOG_LIMIT) -> bool:
    """Move what a log holds to `<log>.1` when it is longer than `limit` bytes, and empty it; whether it was.

    The end of it is kept, at most `limit` bytes. It has to be open for appending: then its writer goes on at
    the new end. A line that is written meanwhile may be lost.
    """
    try:
        size = log.stat().st_size
        if size <= limit:
            return False
        draft = log.with_suffix(log.suffix + ".1.new")
        with log.open("rb") as source, _private(draft) as target:
            source.seek(size - limit)
            while piece := source.read(PIECE):
                target.write(piece)
        os.truncate(log, 0)
        draft.replace(log.with_suffix(log.suffix + ".1"))
        return True
    except FileNotFoundError:
        return False
    except OSError:  # a full disk: then at least the log ends
        with suppress(OSError):
            os.truncate(log, 0)
        return False


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
