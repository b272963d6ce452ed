"""Names that are no text where the kernel's objects are looked for: what panic and pins do with them."""

import errno
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from aegisflux.adapters.datapath.bpf import elsewhere, libbpf, takedown
from aegisflux.adapters.datapath.bpf.pins import mounted_bpffs
from aegisflux.domain.errors import AegisError
from aegisflux.runtime import procfs

pytestmark = pytest.mark.bpf
HASH = 1


@pytest.fixture
def odd(tmp_path):
    """A BPF file system where a user could have mounted one."""
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff \n\x1b\xc2\xa0"))
    place.mkdir()
    mounted_bpffs(place)
    yield place
    subprocess.run([b"umount", os.fsencode(place)], check=True)


def test_a_mount_that_is_no_text_is_found_with_all_others(odd):
    found = elsewhere.everywhere(elsewhere.Budget())
    assert odd.stat().st_dev in {path.stat().st_dev for path in found}
    assert str(odd) in {mount.point for mount in procfs.mounts()}


def test_pins_lie_also_where_a_name_is_no_text(odd):
    fd = libbpf.map_create(HASH, "odd", 4, 4, 1)
    try:
        pin = odd / os.fsdecode(b"\xfe")
        libbpf.pin(fd, str(pin))
        os.close(libbpf.obj_get(str(pin)))
        pin.unlink()
    finally:
        os.close(fd)


def test_folders_of_a_user_stop_no_search_and_links_to_our_pins_are_not_followed(odd, monkeypatch):
    top = odd / takedown.FOLDER
    (top / os.fsdecode(b"\xff") / "v1" / "links").mkdir(parents=True)
    (top / "mine" / "v1" / "links").mkdir(parents=True)
    (top / "mine" / "v1" / "links" / "egress").symlink_to("/sys/fs/bpf/elsewhere")
    (top / "away").symlink_to("/")
    asked = []
    monkeypatch.setattr(elsewhere, "link_number", lambda path: asked.append(path) or 1)
    assert list(elsewhere.pinned_links([odd])) == []
    assert asked == []


def attached(number, kind="link", cgroup=7):
    return SimpleNamespace(
        name="aegis_egress", kind=kind, link_id=number, cgroup_id=cgroup, program_id=number, attach_type=1
    )


@pytest.mark.parametrize("bad", ["link", "legacy"])
def test_one_attachment_that_cannot_be_ended_leaves_the_others(monkeypatch, bad):
    ended = []

    def end(number):
        if number == 2:
            raise OSError(errno.EPERM, "no")
        ended.append(number)

    monkeypatch.setattr(takedown.objects, "detach_link", end)
    monkeypatch.setattr(takedown, "paths_of", lambda _: {})
    takedown.Kernel().detach([attached(1), attached(2, bad), attached(3)])
    assert ended == [1, 3]


def test_a_descriptor_that_closes_hides_no_other_holder(monkeypatch, tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\xfe\nprog_id:\t5\n")
    assert takedown._says(tmp_path / "a", {b"prog_id:\t5"})
    assert not takedown._says(tmp_path / "gone", {b"prog_id:\t5"})


def test_the_kernel_is_asked_while_such_a_mount_is_there(odd):
    try:
        takedown.Kernel().attached()
    except AegisError as error:
        pytest.fail(str(error))
