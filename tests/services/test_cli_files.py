"""A file of a user that is given other bytes stays what else it is, and loses nothing where that fails."""

import errno
import os
from pathlib import Path

import pytest

from aegisflux.cli.files import replaced
from aegisflux.domain.errors import Unavailable

NOBODY = 65_534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file to another user")


@pytest.fixture
def file(tmp_path):
    found = tmp_path / "policy.yaml"
    found.write_bytes(b"old text")
    found.chmod(0o640)
    return found


def what(file: Path) -> tuple[int, ...]:
    """All but its bytes and times."""
    seen = file.stat()
    return seen.st_uid, seen.st_gid, seen.st_mode, seen.st_nlink


def beside(file: Path) -> list[str]:
    return [one.name for one in file.parent.iterdir() if one.name.startswith(".")]


@as_root
@pytest.mark.parametrize(("uid", "gid"), [(NOBODY, NOBODY), (0, NOBODY), (NOBODY, 0), (0, 0)])
@pytest.mark.parametrize("mode", [0o640, 0o600, 0o444, 0o666])
def test_owner_group_and_mode_stay(file, uid, gid, mode):
    os.chown(file, uid, gid)
    file.chmod(mode)
    before = what(file)
    replaced(file, b"new")
    assert (what(file), file.read_bytes(), beside(file)) == (before, b"new", [])


def test_extended_attributes_stay(file):
    try:
        os.setxattr(file, "user.note", b"mine")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    replaced(file, b"new")
    assert os.getxattr(file, "user.note") == b"mine"


@pytest.mark.parametrize("body", [b"new", b"", b"a text that is longer than the old one"])
def test_hard_links_stay_one_file(file, tmp_path, body):
    (tmp_path / "other").hardlink_to(file)
    before = what(file), file.stat().st_ino
    replaced(file, body)
    assert (what(file), file.stat().st_ino) == before
    assert (tmp_path / "other").read_bytes() == file.read_bytes() == body
    assert beside(file) == []


def test_a_link_stays_one(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    replaced(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize("links", [1, 2])
def test_the_same_bytes_are_not_written(file, tmp_path, links):
    if links > 1:
        (tmp_path / "other").hardlink_to(file)
    os.utime(file, (1, 1))
    before = file.stat().st_ino, file.stat().st_mtime_ns
    replaced(file, b"old text")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before


def refusing(number):
    def fails(*_args):
        raise OSError(number, os.strerror(number))

    return fails


@pytest.mark.parametrize(
    ("what_fails", "number"), [("os.fchown", errno.EPERM), ("pathlib.Path.replace", errno.EBUSY)]
)
def test_what_cannot_be_exchanged_is_written_in_place(file, monkeypatch, what_fails, number):
    """The file of another user whose group may write it; one that is a mount, as in a container."""
    if what_fails == "os.fchown":
        if os.geteuid() != 0:
            pytest.skip("only root gives a file to another user")
        os.chown(file, NOBODY, NOBODY)
    before = what(file), file.stat().st_ino
    monkeypatch.setattr(what_fails, refusing(number))
    replaced(file, b"new")
    assert (what(file), file.stat().st_ino, file.read_bytes(), beside(file)) == (*before, b"new", [])


def test_a_disk_that_is_full_loses_nothing(file, monkeypatch):
    monkeypatch.setattr("os.fsync", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        replaced(file, b"new")
    assert (file.read_bytes(), beside(file)) == (b"old text", [])


@pytest.mark.parametrize("good", [0, 1])
def test_a_disk_that_is_full_loses_nothing_of_hard_links(file, tmp_path, monkeypatch, good):
    (tmp_path / "other").hardlink_to(file)
    fsync, left = os.fsync, [None] * good

    def sometimes(fd):
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left.pop()
        fsync(fd)

    monkeypatch.setattr("os.fsync", sometimes)
    with pytest.raises((OSError, Unavailable)) as caught:
        replaced(file, b"new")
    if not good:
        assert (file.read_bytes(), beside(file)) == (b"old text", [])
        return
    (copy,) = beside(file)
    assert str(caught.value).endswith(f"No space left on device; what it was is in {tmp_path / copy}")
    assert (tmp_path / copy).read_bytes() == b"old text"
