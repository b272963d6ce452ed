"""What a host's software is read as: real dpkg, rpm's and apk's databases, real environments of Python."""

import os
import shutil
import subprocess
import tempfile
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hosts import Debian, Host
from tests.support.packages import BDB_LITTLE, ndb, package, rpmdb

from aegisflux.adapters.inventory.host import HostSoftware
from aegisflux.domain.inventory import Package, System, delta
from aegisflux.wire.inventory import encode_inventory


@pytest.fixture
def host(tmp_path):
    (tmp_path / "root").mkdir()
    return Host(tmp_path / "root")


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


@pytest.mark.parametrize("link", ["/usr/lib/os-release", "../../../../usr/lib/os-release"])
def test_the_system_and_its_kernel(host, link):
    host.write("usr/lib/os-release", 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n')
    (host.root / "etc").mkdir()
    (host.root / "etc/os-release").symlink_to(link)
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


def test_links_within_the_root_are_followed_as_from_inside(host):
    host.write("data/dpkg/status", "Package: a\nVersion: 1\n")
    (host.root / "var/lib").mkdir(parents=True)
    (host.root / "var/lib/dpkg").symlink_to("/data/dpkg")
    assert list(host.names()) == ["a"]


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
    assert found.failed == ("python: /home/eve: has more than 400 folders; the rest was not searched",)


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


DATABASES = [
    "var/lib/dpkg/status", "var/lib/dpkg/info/a.list", "lib/apk/db/installed", "var/lib/rpm/rpmdb.sqlite",
    "etc/os-release", "opt/v/lib/python3.11/site-packages/a-1.dist-info/METADATA",
    "opt/v/lib/python3.11/site-packages/a-1.dist-info/RECORD", "proc/self/mountinfo",
]  # fmt: skip


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(DATABASES), st.binary(max_size=300)))
def test_no_bytes_whatever_keep_an_inventory_from_being_taken(files):
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder))
        host.write("var/lib/dpkg/status", "Package: a\nVersion: 1\n")
        for path, data in files.items():
            host.write(path, data)
        host.take()
        assert not host.software.changed()


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
