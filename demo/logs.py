"""What servers leave: the ends of their logs, and what a killed PostgreSQL has outside of its folder."""

import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path


def tail(path: Path, lines: int = 6) -> str:
    """The last lines in one."""
    try:
        return " / ".join(path.read_text(errors="replace").splitlines()[-lines:])[-1500:]
    except OSError:
        return "no log"


def drop_postgres(folder: Path) -> None:
    """Remove the shared memory and the socket folder of clusters below `folder` that were killed."""
    for cluster in folder.rglob("cluster"):
        try:
            lines = (cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            lines = []
        if len(lines) > 6 and len(lines[6].split()) == 2:
            subprocess.run(["ipcrm", "-m", lines[6].split()[1]], check=False, capture_output=True)
        tag = sha256(str(cluster.parent.absolute()).encode()).hexdigest()[:16]
        for base in ("/run", "/tmp"):
            shutil.rmtree(f"{base}/aegisflux-{os.geteuid()}-{tag}", ignore_errors=True)
