"""Folders of pins are removed whatever is in them, and beside an agent that removes them too."""

import os

import pytest

from aegisflux.adapters.datapath.bpf.pins import erase


@pytest.fixture
def top(tmp_path):
    for name in ("a/x", "a/y", "b/c/z"):
        path = tmp_path / "top" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "top" / "gone").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "top" / "link").symlink_to(tmp_path / "kept")
    return tmp_path / "top"


def test_all_of_it_is_removed_and_nothing_that_a_link_names(top):
    erase(top)
    assert not top.exists()
    assert (top.parent / "kept").is_dir()
    erase(top)


@pytest.mark.parametrize("name", ["gone", "top"])
def test_what_goes_while_it_is_listed_is_gone(top, monkeypatch, name):
    scan = os.scandir

    def scandir(path):
        if str(path).endswith(name):
            os.rename(path, top.parent / "elsewhere")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    erase(top)
    assert not top.exists()
