"""What a host's software is read as: real dpkg, rpm's and apk's databases, real environments of Python."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from tests.support.packages import BDB_LITTLE, ndb, package, rpmdb

from aegisflux.adapters.inventory.environments import Environment, read_environment
from aegisflux.adapters.inventory.host import HostSoftware
from aegisflux.adapters.inventory.tree import Tree
from aegisflux.domain.inventory import Package, System, delta, digest_of
from aegisflux.wire.inventory import decode_inventory, encode_inventory

KERNEL = ("6.18.4", "x86_64")


class Host:
    """A host's file system in a folder, and what reads its software."""

    def __init__(self, root, **options):
        self.root = root
        self.software = HostSoftware(root, KERNEL, **options)

    def take(self):
        """The inventory, which must be what it says it is."""
        found = self.software.take("web-1", 7)
        assert found.digest == digest_of(found.system, found.packages)
        assert found.packages == tuple(sorted(found.packages))
        assert decode_inventory(encode_inventory(found)) == found
        return found

    def names(self):
        """What there is, by name, and nothing that failed."""
        found = self.take()
        assert found.failed == ()
        return {one.name: one for one in found.packages}

    def write(self, path, data=b"", mode=0o644):
        """A file below the root."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
        file.chmod(mode)
        return file

    def program(self, path):
        """A file that can be executed."""
        return self.write(path, b"#!/bin/sh\n", 0o755)

    def environment(self, prefix, name="app", version="1.0"):
        """An environment with one package that brings one program."""
        site = f"{prefix}/lib/python3.11/site-packages/{name}-{version}.dist-info"
        self.write(f"{site}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n")
        self.write(f"{site}/RECORD", f"../../../bin/{name},,\n")
        self.program(f"{prefix}/bin/{name}")


@pytest.fixture
def host(tmp_path):
    (tmp_path / "root").mkdir()
    return Host(tmp_path / "root")


class Debian(Host):
    """A host on which the real dpkg works."""

    def __init__(self, root, place, *, merged=True):
        super().__init__(root)
        self.place = place
        for folder in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "usr/bin", "usr/sbin"):
            (root / folder).mkdir(parents=True)
        (root / "var/lib/dpkg/status").touch()
        for name in ("bin", "sbin") if merged else ():
            (root / name).symlink_to(f"usr/{name}")

    def dpkg(self, *arguments):
        """Run dpkg on this root only."""
        subprocess.run(
            [
                "dpkg",
                f"--root={self.root}",
                "--log=/dev/null",
                "--force-not-root",
                "--force-bad-path",
                *arguments,
            ],
            check=True,
            capture_output=True,
        )

    def deb(self, name, version, *lines, files=()):
        """A package of real files, made by dpkg-deb."""
        folder = self.place / f"{name}-{version}"
        control = [f"Package: {name}", f"Version: {version}", "Maintainer: A <a@b.example>", "Description: d"]
        if not any(line.startswith("Architecture") for line in lines):
            control.append("Architecture: all")
        (folder / "DEBIAN").mkdir(parents=True)
        (folder / "DEBIAN/control").write_text("\n".join([*control, *lines, ""]))
        for path, mode in files:
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("#!/bin/sh\n")
            file.chmod(mode)
        made = self.place / f"{name}-{version}.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-b", folder, made], check=True, capture_output=True
        )
        return made


@pytest.fixture
def debian(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "debs").mkdir()
    return Debian(tmp_path / "root", tmp_path / "debs")


def test_what_dpkg_installs_is_what_is_told_field_by_field(debian):
    files = [("bin/tool", 0o755), ("usr/sbin/toold", 0o755), ("usr/bin/readme", 0o644), ("etc/tool", 0o644)]
    debian.dpkg("-i", debian.deb("tool", "1:2.0-1", "Source: tools (2.0-1)", files=files))
    debian.dpkg("-i", debian.deb("doc", "3"))
    found = debian.take()
    assert found.failed == ()
    assert found.packages == (
        Package(type="deb", name="doc", version="3", arch="all"),
        Package(
            type="deb",
            name="tool",
            version="1:2.0-1",
            arch="all",
            source="tools",
            source_version="2.0-1",
            binaries=("/usr/bin/tool", "/usr/sbin/toold"),
        ),
    )


def test_where_bin_is_a_folder_of_its_own_paths_stay_as_they_are(tmp_path):
    (tmp_path / "root").mkdir()
    debian = Debian(tmp_path / "root", tmp_path, merged=False)
    debian.dpkg("-i", debian.deb("tool", "1", files=[("bin/tool", 0o755)]))
    assert debian.names()["tool"].binaries == ("/bin/tool",)


def test_an_upgrade_and_a_removal_change_the_digest_and_only_that_package(debian):
    assert debian.software.changed()
    first = debian.take()
    assert not debian.software.changed()
    debian.dpkg("-i", debian.deb("other", "1"), debian.deb("tool", "1.0", files=[("usr/bin/tool", 0o755)]))
    assert debian.software.changed()
    second = debian.take()
    assert not debian.software.changed()
    debian.dpkg("-i", debian.deb("tool", "1.1", files=[("usr/bin/tool", 0o755)]))
    assert debian.software.changed()
    third = debian.take()
    debian.dpkg("-r", "tool")
    assert debian.software.changed()
    last = debian.take()
    assert len({first.digest, second.digest, third.digest, last.digest}) == 4
    upgraded = delta(second.packages, third.packages)
    assert [(p.name, p.version) for p in upgraded.removed + upgraded.added] == [
        ("tool", "1.0"),
        ("tool", "1.1"),
    ]
    assert [p.name for p in last.packages] == ["other"]
    assert debian.take().digest == last.digest


def test_the_links_of_alternatives_belong_to_nobody(debian):
    debian.dpkg("-i", debian.deb("tool", "1", files=[("usr/bin/tool-1", 0o755)]))
    (debian.root / "usr/bin/tool").symlink_to("tool-1")
    info = debian.root / "var/lib/dpkg/info/tool.list"
    info.write_text(info.read_text() + "/usr/bin/tool\n")
    assert debian.names()["tool"].binaries == ("/usr/bin/tool-1",)


def test_lists_of_packages_that_lie_beside_another_architecture(host):
    stanza = "Package: lib\nStatus: install ok installed\nVersion: 1\nArchitecture: {}\n\n"
    host.write("var/lib/dpkg/status", stanza.format("amd64") + stanza.format("i386"))
    for arch in ("amd64", "i386"):
        host.write(f"var/lib/dpkg/info/lib:{arch}.list", f"/usr/bin/lib-{arch}\n")
        host.program(f"usr/bin/lib-{arch}")
    found = {one.arch: one.binaries for one in host.take().packages}
    assert found == {"amd64": ("/usr/bin/lib-amd64",), "i386": ("/usr/bin/lib-i386",)}


def test_an_image_without_dpkg_itself(host):
    host.write("var/lib/dpkg/status.d/base", "Package: base-files\nVersion: 12.4\nArchitecture: amd64\n")
    host.write("var/lib/dpkg/status.d/base.md5sums", "abc  usr/x\n")
    assert list(host.names()) == ["base-files"]


def test_apk(host):
    host.write("lib/apk/db/installed", "P:busybox\nV:1.36\nA:x86_64\nF:bin\nR:busybox\nR:sh\n\n")
    host.program("bin/busybox")
    (host.root / "bin/sh").symlink_to("/bin/busybox")
    assert host.names() == {
        "busybox": Package(
            type="apk", name="busybox", version="1.36", arch="x86_64", binaries=("/bin/busybox",)
        )
    }
    host.write("lib/apk/db/installed", "P:busybox\nV:1.37\n\n")
    assert host.software.changed()


@pytest.mark.parametrize("folder", ["var/lib/rpm", "usr/lib/sysimage/rpm"])
def test_rpm_in_sqlite_with_what_is_still_in_its_log(host, folder):
    host.program("usr/bin/bash")
    blobs = [package("bash", "5.2", "3", files=["/usr/bin/bash", "/etc/x"], source="sh-1-2.src.rpm")]
    path = host.root / folder / "rpmdb.sqlite"
    rpmdb(path, blobs).close()
    assert list(host.names()) == ["bash"]
    with closing(rpmdb(path, [package("zlib")])):
        assert path.with_name("rpmdb.sqlite-wal").stat().st_size > 0
        assert host.software.changed()
        assert host.names()["bash"] == Package(
            type="rpm",
            name="bash",
            version="5.2-3",
            arch="x86_64",
            source="sh",
            source_version="1-2",
            binaries=("/usr/bin/bash",),
        )
        assert "zlib" in host.names()
    assert set(host.names()) == {"bash", "zlib"}


def test_a_folder_of_rpm_that_is_a_link_is_read_once(host):
    rpmdb(host.root / "usr/lib/sysimage/rpm/rpmdb.sqlite", [package("bash")]).close()
    (host.root / "var/lib").mkdir(parents=True)
    (host.root / "var/lib/rpm").symlink_to("/usr/lib/sysimage/rpm")
    assert len(host.take().packages) == 1


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("Packages.db", ndb([package("a"), package("b")]), ["a", "b"]),
        ("Packages", BDB_LITTLE, ["aegis-lib", "tiny-tool"]),
    ],
)
def test_rpm_in_its_older_databases(host, name, data, expected):
    host.write(f"var/lib/rpm/{name}", data)
    assert sorted(host.names()) == expected


def test_the_system_and_its_kernel(host):
    host.write("usr/lib/os-release", 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n')
    (host.root / "etc").mkdir()
    (host.root / "etc/os-release").symlink_to("../../../../usr/lib/os-release")
    before = host.take()
    assert before.system == System(
        id="debian", version_id="12", name="Debian 12", kernel="6.18.4", arch="x86_64"
    )
    host.write("usr/lib/os-release", "ID=debian\nVERSION_ID=13\n")
    assert host.software.changed()
    assert host.take().digest != before.digest


def test_an_empty_host_has_no_software_and_no_trouble(host):
    found = host.take()
    assert (found.packages, found.failed, found.system.id) == ((), (), "linux")


# Python


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
    (host.root / "usr/bin/evil").symlink_to("sudo")
    assert host.names()["evil"].binaries == ()


def test_file_systems_of_others_are_not_entered(host):
    host.environment("/home/ann/venv")
    host.environment("/opt/app", name="own")
    host.write(
        "proc/self/mountinfo",
        "22 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n23 22 0:5 / /home rw - nfs4 server:/home rw\n"
        "24 22 8:2 / /opt rw - xfs /dev/sdb rw\n",
    )
    assert list(host.names()) == ["own"]


# What anybody may plant, and what breaks


def test_hostile_files_neither_stop_nor_fool_it(host, tmp_path):
    site = host.root / "home/eve/venv/lib/python3.11/site-packages"
    host.environment("/home/eve/venv", name="good")
    host.environment("/opt/app", name="fine")
    host.write("home/secret/METADATA", "Name: stolen\nVersion: 1\n")
    (tmp_path / "METADATA").write_text("Name: outside\nVersion: 1\n")
    for name in ("fifo", "link", "huge", "folder", "socket"):
        (site / f"{name}-1.dist-info").mkdir()
    os.mkfifo(site / "fifo-1.dist-info/METADATA")
    os.mkfifo(site / "pipe-1.egg-info")
    (site / "link-1.dist-info/METADATA").symlink_to("/home/secret/METADATA")
    (site / "folder-1.dist-info/METADATA").mkdir()
    with (site / "huge-1.dist-info/METADATA").open("wb") as huge:
        huge.truncate(1 << 40)
    (site / "out-1.dist-info").symlink_to(tmp_path)
    (site / "loop-1.dist-info").symlink_to("loop-1.dist-info")
    (host.root / "home/eve/loop").symlink_to("/home/eve")
    (host.root / "home/eve/a").symlink_to("/home/eve/b")
    (host.root / "home/eve/b").symlink_to("/home/eve/a")
    os.mkfifo(site.parent.parent.parent.parent / "env")
    (Path(os.fsdecode(os.fsencode(site) + b"/\xff\xfe-1.dist-info"))).mkdir()
    found = host.take()
    assert [one.name for one in found.packages] == ["fine", "good"]
    assert len(found.failed) >= 4
    assert all("/home/eve/venv" in one for one in found.failed)


def test_links_out_of_the_root_stay_in_it(host, tmp_path):
    outside = tmp_path / "outside"
    Host(outside).environment("/venv", name="outside")
    (outside / "status").write_text("Package: outside\nVersion: 1\n")
    (host.root / "opt").symlink_to(outside)
    (host.root / "var/lib/dpkg").mkdir(parents=True)
    (host.root / "var/lib/dpkg/status").symlink_to(outside / "status")
    (host.root / "srv").symlink_to("../" * 20 + str(outside))
    assert host.take().packages == ()


def test_a_deep_and_wide_tree_is_searched_within_bounds(host):
    for number in range(500):
        (host.root / f"home/eve/{number:03}/x").mkdir(parents=True)
    deep = host.root / "home/mel"
    for _ in range(200):
        deep /= "d"
    deep.mkdir(parents=True)
    host.environment("/home/zoe/venv")
    found = host.take()
    assert [one.where for one in found.packages] == ["/home/zoe/venv"]
    assert found.failed == ("python: /home/eve: searched 400 folders of more",)


@pytest.mark.parametrize(
    "path",
    ["var/lib/dpkg/status", "lib/apk/db/installed", "var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/Packages.db"],
)
@pytest.mark.parametrize("kind", ["fifo", "folder", "garbage", "loop"])
def test_a_database_that_is_none_is_told_and_the_others_are_read(host, path, kind):
    file = host.root / path
    file.parent.mkdir(parents=True)
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file.name)
    else:
        file.write_bytes(b"\xff\0garbage" * 1000)
    host.environment("/opt/app")
    found = host.take()
    assert [one.name for one in found.packages] == ["app"]
    nothing_to_tell = kind == "garbage" and "apk" in path
    assert len(found.failed) == (0 if nothing_to_tell else 1)


def test_a_database_that_fails_leaves_its_packages_as_they_were(host):
    status = host.write("var/lib/dpkg/status", "Package: a\nStatus: install ok installed\nVersion: 1\n")
    before = host.take()
    status.unlink()
    os.mkfifo(status)
    during = host.take()
    assert during.packages == before.packages
    assert during.digest == before.digest
    assert during.failed[0].startswith("dpkg: ")
    status.unlink()
    status.touch()
    assert host.take().packages == ()


@pytest.fixture
def nobody():
    """The test as an account that may read nothing special."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(own)


def test_what_may_not_be_read_is_told(tmp_path, request):
    root = Path("/tmp") / f"aegisflux-{os.getpid()}-{tmp_path.name}"
    host = Host(root)
    try:
        host.write("var/lib/dpkg/status", "Package: a\nVersion: 1\n", mode=0)
        host.environment("/opt/app", name="hidden")
        host.environment("/opt/other", name="seen")
        (root / "opt/app/lib/python3.11/site-packages/hidden-1.0.dist-info/METADATA").chmod(0)
        rpmdb(root / "var/lib/rpm/rpmdb.sqlite", [package("bash")]).close()
        (root / "var/lib/rpm/rpmdb.sqlite").chmod(0)
        request.getfixturevalue("nobody")
        found = host.take()
        assert [one.name for one in found.packages] == ["seen"]
        assert sorted(one.partition(" ")[0] for one in found.failed) == ["dpkg:", "python", "rpm:"]
    finally:
        shutil.rmtree(root, ignore_errors=True)
        if os.geteuid() == 65_534:
            os.seteuid(0)
            shutil.rmtree(root)


def test_when_time_is_up_what_was_read_is_told(tmp_path):
    clock = count()
    host = Host(tmp_path, seconds=20, monotonic=lambda: float(next(clock)))
    stanzas = [f"Package: p{n}\nStatus: install ok installed\nVersion: 1\n" for n in range(50)]
    host.write("var/lib/dpkg/status", "\n".join(stanzas))
    for number in range(50):
        host.write(f"var/lib/dpkg/info/p{number}.list", f"/usr/bin/p{number}\n")
        host.program(f"usr/bin/p{number}")
    found = host.take()
    assert len(found.packages) == 50
    assert 0 < sum(len(one.binaries) for one in found.packages) < 50
    assert any("no time for the files of" in one for one in found.failed)


def test_no_more_than_twenty_thousand_packages(host):
    one = "Package: p{}\nStatus: install ok installed\nVersion: 1\n"
    host.write("var/lib/dpkg/status", "\n".join(one.format(n) for n in range(20_500)))
    host.environment("/opt/app")
    found = host.take()
    assert len(found.packages) == 20_000
    assert "dpkg: more than 20000 packages" in found.failed


def test_what_would_not_fit_a_message_leaves_out_what_anybody_may_have_put_there(host):
    host.write("var/lib/dpkg/status", "Package: base\nStatus: install ok installed\nVersion: 1\n")
    site = host.root / "home/eve/venv/lib/python3.11/site-packages"
    for number in range(1_999):
        folder = site / f"p{number}-1.dist-info"
        folder.mkdir(parents=True)
        version = "".join(map(chr, os.urandom(200))).encode().hex()[:250]
        (folder / "METADATA").write_text(f"Name: {'n' * 200}{number}\nVersion: {version}\n")
        names = [os.urandom(100).hex() for _ in range(8)]
        (folder / "RECORD").write_text("".join(f"../../../bin/{name},,\n" for name in names))
        if number % 2 == 0:
            for name in names:
                host.program(f"home/eve/venv/bin/{name}")
    found = host.take()
    assert [one.name for one in found.packages][:1] == ["base"]
    assert found.failed[0] == "packages: too large: programs of Python left out"
    assert not any(one.binaries for one in found.packages)
    assert len(found.packages) == 2_000


# The machine that the tests run on


def test_this_machine_has_what_dpkg_says():
    form = "${db:Status-Status}|${Package}|${Version}|${Architecture}|${source:Package}|${source:Version}\n"
    said = subprocess.run(["dpkg-query", "-W", "-f", form], capture_output=True, check=True, text=True).stdout
    expected = set()
    for line in said.splitlines():
        status, name, version, arch, source, source_version = line.split("|")
        if status == "installed":
            expected.add((name, version, arch, source, source_version))
    software = HostSoftware()
    found = software.take("web-1", 1)
    assert {
        (one.name, one.version, one.arch, one.source or one.name, one.source_version or one.version)
        for one in found.packages
        if one.type == "deb"
    } == expected
    owners = {path: one.name for one in found.packages for path in one.binaries}
    assert owners[os.path.realpath("/bin/dpkg")] == "dpkg"
    assert owners[os.path.realpath("/bin/ls")] == "coreutils"
    assert found.system.kernel == os.uname().release
    assert len(encode_inventory(found)) < 1 << 20
