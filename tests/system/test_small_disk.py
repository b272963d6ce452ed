"""Our own NATS on a disk with little room: its streams are made all the same."""

import asyncio
import shutil
import subprocess

import pytest
from tests.support.engines import running_nats

from aegisflux.domain.errors import Unavailable
from aegisflux.wire import subjects

MEBIBYTE = 1 << 20
pytestmark = [pytest.mark.engines, pytest.mark.asyncio]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "none", str(folder)], capture_output=True, check=False
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


async def test_a_stream_that_met_a_full_disk_is_written_again_once_there_is_room(small_disk):
    """The server refuses for ever what comes to such a stream: it has to be started anew."""
    async with running_nats(small_disk) as lab, lab.control() as control:
        await control.ensure_streams()
        healthy, where = lab.process.child.healthy, subjects.inventory
        assert healthy()
        (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 2 * MEBIBYTE))
        with pytest.raises((Unavailable, TimeoutError)):
            for number in range(8):
                async with asyncio.timeout(3):
                    await control.publish(where(f"h{number}"), bytes(MEBIBYTE - 4096))
        assert healthy(), "starting it anew makes no room"
        remount = ["mount", "-o", "remount,size=600m", str(small_disk)]
        subprocess.run(remount, check=True)
        assert not healthy(), "the supervisor starts it anew"
        await lab.process.stop()
        await lab.process.start()
        assert healthy()
        await control.ready(10)
        assert await control.publish(where("h0"), bytes(MEBIBYTE - 4096)) > 0
