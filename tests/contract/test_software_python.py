"""Which environments of Python are found on a host, and what is read of them."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.support.hosts import Host

from aegisflux.adapters.inventory.environments import Environment, read_environment
from aegisflux.adapters.inventory.tree import Tree
from aegisflux.domain.inventory import Package


@pytest.fixture
def host(tmp_path):
    (tmp_path / "root").mkdir()
    return Host(tmp_path / "root")


def wheel(place, name, version):
    """A wheel with a script, as build tools make them."""
    info = f"{name}-{version}.dist-info"
    made = place / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(f"{name}.py", "def main(): print('here')\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", f"[console_scripts]\nrun-{name} = {name}:main\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/RECORD,,\n")
    return made


def test_a_real_environment_is_found_told_and_watched(host, tmp_path):
    prefix = host.root / "opt/shop/venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    assert host.names() == {}

    def install(version):
        uv = Path(sys.executable).with_name("uv")
        made = wheel(tmp_path, "Shop_App", version)
        subprocess.run(
            [
                uv,
                "pip",
                "install",
                "-q",
                "--no-index",
                "--no-cache",
                "--offline",
                "-p",
                prefix / "bin/python",
                made,
            ],
            check=True,
        )

    install("1.0")
    assert host.software.changed()
    assert host.names() == {
        "shop-app": Package(
            type="pypi",
            name="shop-app",
            version="1.0",
            where="/opt/shop/venv",
            binaries=("/opt/shop/venv/bin/run-Shop_App",),
        )
    }
    install("1.1")
    assert host.software.changed()
    assert host.names()["shop-app"].version == "1.1"
    shutil.rmtree(prefix)
    assert host.software.changed()
    assert host.names() == {}


def test_this_very_environment_is_what_python_itself_says():
    site = next(path for path in sys.path if path.endswith("site-packages"))
    parsed = read_environment(
        Tree(Path("/")), Environment(sys.prefix, (os.path.realpath(site),)), frozenset(), lambda: False
    )
    expected = {
        (one.metadata["Name"].lower().replace("_", "-").replace(".", "-"), one.version)
        for one in importlib.metadata.distributions(path=[site])
    }
    assert {(one.package.name, one.package.version) for one in parsed.listed} == expected
    assert len(expected) > 20
    assert parsed.troubles == ()


@pytest.mark.parametrize(
    "prefix",
    [
        "/usr",
        "/usr/local",
        "/opt/app",
        "/opt/a/b/venv",
        "/srv/shop/.venv",
        "/home/ann/.local",
        "/home/ann/.local/share/pipx/venvs/black",
        "/home/ann/.local/share/uv/tools/ruff",
        "/home/ann/.pyenv/versions/3.12.1",
        "/home/ann/work/shop/.venv",
        "/root/.venvs/x",
        "/var/www/site/env",
    ],
)
def test_where_environments_are_found(host, prefix):
    host.environment(prefix)
    assert host.names()["app"].where == prefix


@pytest.mark.parametrize(
    "prefix", ["/opt/a/b/c/d/e/venv", "/home/ann/.cache/x", "/opt/a/node_modules/x", "/data/venv"]
)
def test_where_nobody_looks(host, prefix):
    host.environment(prefix)
    assert host.names() == {}


def test_an_environment_that_a_process_uses_is_kept_after_the_process_until_it_is_gone(host):
    host.environment("/data/shop/.venv")
    host.environment("/data/python", name="built")
    host.take()
    process = host.root / "proc/41"
    process.mkdir(parents=True)
    (process / "exe").symlink_to("/data/python/bin/python3.11")
    (process / "cwd").symlink_to("/data/shop")
    assert host.software.changed()
    assert {one.where for one in host.names().values()} == {"/data/shop/.venv", "/data/python"}
    shutil.rmtree(host.root / "proc")
    assert not host.software.changed()
    assert len(host.names()) == 2
    shutil.rmtree(host.root / "data/python")
    assert host.software.changed()
    assert list(host.names()) == ["app"]


def test_what_the_distribution_brings_is_told_once_as_its_package(host):
    host.environment("/usr", name="yaml")
    host.environment("/usr", name="own")
    host.write("var/lib/dpkg/status", "Package: python3-yaml\nStatus: install ok installed\nVersion: 6\n")
    owned = "/usr/lib/python3.11/site-packages/yaml-1.0.dist-info/METADATA\n"
    host.write("var/lib/dpkg/info/python3-yaml.list", owned)
    assert set(host.names()) == {"python3-yaml", "own"}


def test_the_older_forms_of_metadata(host):
    site = "/opt/app/lib/python3.9/site-packages"
    host.write(f"{site}/a-1.egg-info/PKG-INFO", "Name: a\nVersion: 1\n")
    host.write(f"{site}/a-1.egg-info/entry_points.txt", "[console_scripts]\na-run = a:b\n")
    host.program("/opt/app/bin/a-run")
    host.write(f"{site}/b-2.egg-info", "Name: b\nVersion: 2\n")
    found = host.names()
    assert [(one.name, one.version, one.binaries) for one in found.values()] == [
        ("a", "1", ("/opt/app/bin/a-run",)),
        ("b", "2", ()),
    ]


def test_nobody_can_claim_the_programs_of_others(host):
    host.environment("/home/eve/venv", name="evil")
    host.program("/usr/bin/sudo")
    record = host.root / "home/eve/venv/lib/python3.11/site-packages/evil-1.0.dist-info/RECORD"
    record.write_text("../../../bin/evil,,\n../../../../../../usr/bin/sudo,,\n../../../bin/link/sudo,,\n")
    (host.root / "home/eve/venv/bin/evil").unlink()
    shutil.rmtree(host.root / "home/eve/venv/bin")
    (host.root / "home/eve/venv/bin").symlink_to("/usr/bin")
    host.program("/usr/bin/evil")
    assert host.names()["evil"].binaries == ()


def test_file_systems_of_others_are_not_entered(host):
    host.environment("/home/ann/venv")
    host.environment("/opt/app", name="own")
    host.environment("/opt/team/app", name="theirs")
    host.write(
        "proc/self/mountinfo",
        "22 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n23 22 0:5 / /home rw - nfs4 server:/home rw\n"
        "24 22 8:2 / /opt rw - xfs /dev/sdb rw\n25 24 0:6 / /opt/team rw - fuse.sshfs a:/b rw\n",
    )
    assert list(host.names()) == ["own"]
