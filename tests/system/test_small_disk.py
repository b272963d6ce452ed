"""Our own NATS on a disk with little room: its streams are made all the same."""

import shutil
import subprocess

import pytest
from tests.support.engines import running_nats

from aegisflux.wire import subjects

pytestmark = [pytest.mark.engines, pytest.mark.asyncio]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs root that may mount: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_streams_are_made_on_a_disk_that_is_smaller_than_their_bounds(small_disk):
    assert shutil.disk_usage(small_disk).free < sum(stream.max_bytes for stream in subjects.STREAMS)
    async with running_nats(small_disk) as lab, lab.control() as control:
        await control.ensure_streams()
        await control.publish(subjects.desired("web1"), b"x", msg_id="1")
