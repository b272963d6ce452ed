"""dpkg, apk, Python and os-release: files as they lie on hosts, and files that somebody made up."""

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.errors import Invalid
from aegisflux.domain.inventory import MAX_PACKAGES, Package, System
from aegisflux.wire.packages.apk import parse_installed
from aegisflux.wire.packages.common import MAX_FILES, Listed, matters, path, text
from aegisflux.wire.packages.dpkg import parse_list, parse_status
from aegisflux.wire.packages.osrelease import parse_os_release
from aegisflux.wire.packages.python import declared, normalised, parse_metadata, recorded

STATUS = b"""\
Package: libc6
Status: install ok installed
Priority: optional
Section: libs
Installed-Size: 13001
Maintainer: GNU Libc Maintainers <debian-glibc@lists.debian.org>
Architecture: amd64
Multi-Arch: same
Source: glibc
Version: 2.36-9+deb12u14
Conffiles:
 /etc/ld.so.conf.d/x86_64-linux-gnu.conf d4e7a7b88a71b5ffd9e2644e71a0cfab
Description: GNU C Library: Shared libraries
 Contains the standard libraries that are used by nearly all programs on
 Version: this is only text of the description
 .
 the system.
Homepage: https://www.gnu.org/software/libc/libc.html

Package: tar
Status: install ok installed
Architecture: amd64
Version: 1.34+dfsg-1.2+deb12u1

Package: perl-base
Status: hold ok installed
Architecture: amd64
Source: perl (5.36.0-7)
Version: 5.36.0-7+deb12u2+b1

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0
"""
APK = b"""\
C:Q1nyzd4Hd8KHT2J4BoWfYLfE+Bu2k=
P:busybox-binsh
V:1.36.1-r29
A:x86_64
S:1543
T:busybox ash /bin/sh
U:https://busybox.net/
L:GPL-2.0-only
o:busybox
m:Natanael Copa <ncopa@alpinelinux.org>
t:1717416233
D:busybox=1.36.1-r29
p:/bin/sh cmd:sh=1.36.1-r29
F:bin
R:sh
a:0:0:777
Z:Q1pcfTfDNEbNKQc2s1tia7da05M8Q=

C:Q1dGPYVDaDdu9jvGfMKUO8qUAVNNM=
P:musl
V:1.2.5-r0
A:x86_64
o:musl
F:lib
R:ld-musl-x86_64.so.1
a:0:0:755
F:sbin
F:usr
F:usr/bin
R:getent
a:0:0:755
R:ldd
F:usr/share
F:usr/share/doc
R:readme

"""


def deb(name, version, **more):
    return Package(type="deb", name=name, version=version, **more)


def test_packages_of_dpkg_with_their_sources():
    parsed = parse_status(STATUS)
    assert parsed.troubles == ()
    assert [one.package for one in parsed.listed] == [
        deb("libc6", "2.36-9+deb12u14", arch="amd64", source="glibc", source_version="2.36-9+deb12u14"),
        deb("tar", "1.34+dfsg-1.2+deb12u1", arch="amd64"),
        deb("perl-base", "5.36.0-7+deb12u2+b1", arch="amd64", source="perl", source_version="5.36.0-7"),
    ]


@pytest.mark.parametrize(
    ("status", "there"),
    [
        ("install ok installed", True),
        ("hold ok installed", True),
        ("deinstall ok installed", True),
        ("install reinstreq installed", True),
        ("install ok unpacked", True),
        ("install ok half-configured", True),
        ("install ok triggers-awaited", True),
        ("install ok triggers-pending", True),
        ("install reinstreq half-installed", False),
        ("deinstall ok config-files", False),
        ("purge ok not-installed", False),
        ("", False),
    ],
)
def test_a_package_counts_when_its_files_are_there(status, there):
    data = f"Package: a\nStatus: {status}\nVersion: 1\n".encode()
    assert len(parse_status(data).listed) == there


def test_stanzas_of_images_have_no_status():
    assert parse_status(b"Package: base\nVersion: 12\n").listed == (Listed(deb("base", "12")),)


def test_the_first_of_two_equal_fields_counts():
    assert parse_status(b"Package: a\nVersion: 1\nVersion: 2\n").listed == (Listed(deb("a", "1")),)


def test_a_bad_stanza_is_told_and_the_others_are_read():
    data = b"Package: a\nVersion: 1\n\nVersion: 2\n\nPackage: c\n\n\n\nPackage: d\nVersion: 4"
    parsed = parse_status(data)
    assert [one.package.name for one in parsed.listed] == ["a", "d"]
    assert [trouble.split(":")[0] for trouble in parsed.troubles] == ["stanza 2", "stanza 3"]


def test_troubles_are_few_and_the_rest_is_counted():
    assert parse_status(b"Version: 1\n\n" * 50).troubles[-1] == "47 more"


@pytest.mark.parametrize(
    ("parse", "stanza"),
    [(parse_status, b"Package: p\nVersion: 1\n\n"), (parse_installed, b"P:p\nV:1\n\n")],
    ids=["dpkg", "apk"],
)
def test_no_more_packages_than_the_limit(parse, stanza):
    parsed = parse(stanza * (MAX_PACKAGES + 1))
    assert len(parsed.listed) == MAX_PACKAGES
    assert parsed.troubles == (f"more than {MAX_PACKAGES} packages",)


def test_a_list_gives_programs_and_metadata_of_python():
    data = (
        b"/.\n/usr/bin/ls\n/bin/cat\n/usr/share/doc/x\n/usr/lib/systemd/systemd\n/usr/lib/libx.so.1\n"
        b"/usr/lib/python3/dist-packages/yaml-6.egg-info/PKG-INFO\n/usr/bin/\xff\nrelative/bin/x\n"
        b"/usr/lib/python3/dist-packages/six.egg-info\n/usr/share/egg-packages.egg-info\n"
    )
    assert parse_list(data) == (
        "/usr/bin/ls",
        "/bin/cat",
        "/usr/lib/systemd/systemd",
        "/usr/lib/python3/dist-packages/yaml-6.egg-info/PKG-INFO",
        "/usr/lib/python3/dist-packages/six.egg-info",
    )


def test_a_list_gives_a_bounded_number_of_files():
    assert len(parse_list(b"".join(b"/bin/%d\n" % n for n in range(MAX_FILES + 9)))) == MAX_FILES


@pytest.mark.parametrize(
    ("file", "kept"),
    [
        ("/usr/sbin/sshd", True),
        ("/opt/google/chrome/chrome", True),
        ("/usr/lib/postgresql/15/bin/postgres", True),
        ("/usr/libexec/sudo/sesh", True),
        ("/lib/systemd/systemd-udevd", True),
        ("/usr/local/bin/tool.py", True),
        ("/usr/games/sl", True),
        ("/usr/lib/x86_64-linux-gnu/libc.so.6", False),
        ("/etc/passwd", False),
        ("/usr/share/man/man1/ls.1.gz", False),
        ("/usr/sbinary/x", False),
    ],
)
def test_which_files_matter(file, kept):
    assert matters(file) is kept


@pytest.mark.parametrize("parse", [parse_status, parse_installed])
@pytest.mark.parametrize("data", [b"\n" * (2 << 20), b"P:\n\n" * (1 << 17)], ids=["lines", "stanzas"])
def test_a_database_of_nothing_takes_little_memory(parse, data):
    tracemalloc.start()
    try:
        assert parse(data).listed == ()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("parse", [parse_status, parse_installed])
def test_a_database_of_empty_lines_takes_little_time(parse):
    before = time.process_time()
    assert parse(b"\n" * (16 << 20)).listed == ()
    assert time.process_time() - before < 2


def test_packages_of_apk_with_their_origin_and_files():
    assert parse_installed(APK).listed == (
        Listed(
            Package(
                type="apk",
                name="busybox-binsh",
                version="1.36.1-r29",
                arch="x86_64",
                source="busybox",
                source_version="1.36.1-r29",
            ),
            ("/bin/sh",),
        ),
        Listed(
            Package(type="apk", name="musl", version="1.2.5-r0", arch="x86_64"),
            ("/usr/bin/getent", "/usr/bin/ldd"),
        ),
    )


def test_a_stanza_of_apk_without_a_version_is_told_and_gives_its_files_to_nobody():
    parsed = parse_installed(b"P:a\nF:bin\nR:a\n\nP:b\nV:1\nR:b")
    assert parsed.listed == (Listed(Package(type="apk", name="b", version="1")),)
    assert len(parsed.troubles) == 1


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("Django", "django"),
        ("ruamel.yaml", "ruamel-yaml"),
        ("a__b-.c", "a-b-c"),
        ("zope.interface", "zope-interface"),
    ],
)
def test_names_of_projects_are_normalised(name, normal):
    assert normalised(name) == normal


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_metadata_is_read_up_to_its_body(end):
    head = [b"Metadata-Version: 2.1", b"Name: Flask_Login", b"Version: 0.6.3", b"License: a", b"  Version: 9"]
    data = end.join([*head, b"", b"Name: not-this", b"Version: 2"])
    assert parse_metadata(data, "/opt/app") == Package(
        type="pypi", name="flask-login", version="0.6.3", where="/opt/app"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Name: a",
        b"Version: 1",
        b"Name: ../x\nVersion: 1",
        b"Name: a b\nVersion: 1",
        b"\nName: a\nVersion: 1",
    ],
)
def test_metadata_without_name_and_version_is_refused(data):
    with pytest.raises(Invalid):
        parse_metadata(data, "/opt/app")


RECORD = b"""\
../../../bin/flask,sha256=abc,231
"../../../bin/fl ask",sha256=abc,231
../../../bin/sub/x,,
../../../../bin/up,,
../../../../../../usr/bin/sudo,,
../../bin/down,,
/usr/bin/su,,
flask/bin/inner.py,,
flask/__init__.py,sha256=abc,11
"""


def test_a_record_gives_programs_of_its_own_environment_only():
    site = "/opt/app/lib/python3.11/site-packages"
    assert recorded(RECORD, site, "/opt/app") == ("/opt/app/bin/fl ask", "/opt/app/bin/flask")


def test_entry_points_give_scripts():
    data = b"[console_scripts]\nflask = flask.cli:main\n# no = x\n../up = a:b\n"
    data += b"[ gui_scripts ]\nview=a:b\n[other]\nx = y\n"
    assert declared(data, "/opt/app") == ("/opt/app/bin/flask", "/opt/app/bin/view")


DEBIAN = b"""\
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
ID=debian
"""


@pytest.mark.parametrize(
    ("data", "system"),
    [
        (DEBIAN, System(id="debian", version_id="12", name="Debian GNU/Linux 12 (bookworm)")),
        (b"ID='arch'\nNAME='Arch Linux'", System(id="arch", name="Arch Linux")),
        (b'ID="a\\"b"\n#ID=c\nid=d\nNAME=x\\$y', System(id='a"b', name="x$y")),
        (b"", System(id="linux")),
        (b'ID=""', System(id="linux")),
        (b"ID=a\nID=b", System(id="b")),
        (b"ID=a\nNAME='b\\$'", System(id="a", name="b\\$")),
        (b'ID="', System(id='"')),
        (b"ID=a\x1b[31m\xff", System(id="a\ufffd[31m\ufffd")),
    ],
)
def test_the_system_is_what_os_release_says(data, system):
    found = parse_os_release(data, "", "")
    assert found == system


def test_the_kernel_is_what_was_given():
    assert parse_os_release(b"ID=x", "6.18.4", "aarch64") == System(id="x", kernel="6.18.4", arch="aarch64")


@given(st.binary(max_size=2000))
def test_text_fits_and_can_be_sent(raw):
    found = text(raw)
    assert len(found) <= 256
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in found)
    found.encode()


@given(st.binary(max_size=50))
def test_a_path_is_absolute_or_nothing(raw):
    found = path(raw)
    assert found == "" or (found.encode() == raw and raw.startswith(b"/"))


FIELDS = [
    b"Package: ", b"Status: ", b"Version: ", b"Source: ", b"P:", b"V:", b"F:", b"R:", b"Name: ", b"ID=",
    b"\n", b"\n\n",
    b"installed", b"[console_scripts]", b"../../../bin/", b"(", b")", b"=", b"\0", b"\xff", b'"', b"'", b"\\",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FIELDS) | st.binary(max_size=8), max_size=40).map(b"".join)


@given(TEXTS)
def test_no_bytes_whatever_are_more_than_packages_and_troubles(data):
    for parsed in (parse_status(data), parse_installed(data)):
        assert all(one.package.name and one.package.version for one in parsed.listed)
        assert len(parsed.troubles) <= 4
    assert all(file.startswith("/") for file in parse_list(data))
    parse_os_release(data, "k", "a")
    programs = recorded(data, "/v/lib/python3.11/site-packages", "/v") + declared(data, "/v")
    assert all(one.startswith("/v/bin/") and one.count("/") == 3 for one in programs)
    try:
        assert parse_metadata(data, "/v").type == "pypi"
    except Invalid:
        pass
