"""rpm's headers and the databases they lie in: as rpm wrote them, as the format allows, and damaged."""

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.packages import (
    ARCH,
    BDB_BIG,
    BDB_LITTLE,
    DIRINDEXES,
    NAME,
    OLDFILENAMES,
    RELEASE,
    VERSION,
    header,
    ndb,
    package,
)

from aegisflux.domain.errors import Invalid
from aegisflux.domain.inventory import MAX_PACKAGES, Package
from aegisflux.wire.packages.common import Listed
from aegisflux.wire.packages.rpm import parse_header, parse_headers
from aegisflux.wire.packages.rpmfiles import bdb_headers, ndb_headers

TINY = Listed(
    Package(
        type="rpm",
        name="tiny-tool",
        version="1:1.2-3",
        arch="x86_64",
        source="aegis-lib",
        source_version="1.2-3",
    ),
    ("/usr/bin/tiny", "/usr/lib/python3/dist-packages/tiny-1.dist-info/METADATA"),
)
LIBRARY = Listed(Package(type="rpm", name="aegis-lib", version="1:1.2-3", arch="x86_64"))


def reader(data):
    return lambda at, size: data[at : at + size]


def one(**more):
    return parse_header(package("bash", "5.2", "3.fc40", **more)).package


@pytest.mark.parametrize("data", [BDB_LITTLE, BDB_BIG], ids=["little", "big"])
def test_headers_that_rpm_wrote_are_read_from_berkeley_db(data):
    parsed = parse_headers(bdb_headers(reader(data)))
    assert parsed.troubles == ()
    assert sorted(parsed.listed, key=lambda one: one.package.name) == [LIBRARY, TINY]


def test_headers_are_read_from_ndb_and_empty_slots_are_none():
    blobs = [package(f"p{n}", files=[f"/usr/bin/p{n}"]) for n in range(5)]
    parsed = parse_headers(ndb_headers(reader(ndb(blobs))))
    assert parsed.troubles == ()
    assert [(one.package.name, one.files) for one in parsed.listed] == [
        (f"p{n}", (f"/usr/bin/p{n}",)) for n in range(5)
    ]


@pytest.mark.parametrize(
    ("more", "source"),
    [
        ({}, ("", "")),
        ({"source": "bash-5.2-3.fc40.src.rpm"}, ("", "")),
        ({"source": "bash-5.2-2.fc40.src.rpm"}, ("bash", "5.2-2.fc40")),
        ({"source": "shells-all-7-1.nosrc.rpm"}, ("shells-all", "7-1")),
        ({"source": "bash.src.rpm"}, ("", "")),
        ({"source": "bash-5.2-3.fc40.x86_64.rpm"}, ("", "")),
        ({"source": "(none)"}, ("", "")),
    ],
)
def test_the_source_is_that_of_sourcerpm_unless_it_is_the_package_itself(more, source):
    found = one(**more)
    assert (found.source, found.source_version) == source


@pytest.mark.parametrize(("more", "version"), [({}, "5.2-3.fc40"), ({"epoch": 0}, "0:5.2-3.fc40")])
def test_the_epoch_stands_before_the_version_where_there_is_one(more, version):
    assert one(**more).version == version


def test_a_version_without_a_release_stands_alone():
    assert parse_header(header({NAME: "a", VERSION: "1"})).package == Package(
        type="rpm", name="a", version="1"
    )


def test_files_of_old_headers_are_whole_paths():
    old = {NAME: "a", VERSION: "1", RELEASE: "1", OLDFILENAMES: ["/bin/a", "/etc/a"]}
    assert parse_header(header(old)).files == ("/bin/a",)


def test_keys_are_not_software():
    assert parse_header(package("gpg-pubkey")) is None


def test_text_is_made_printable_and_short():
    found = parse_header(header({NAME: "a\udcff\x07b", VERSION: "1" * 300, ARCH: "x"})).package
    assert (found.name, len(found.version)) == ("a\ufffd\ufffdb", 256)


@pytest.mark.parametrize(
    "tags",
    [
        {VERSION: "1"},
        {NAME: "a"},
        {NAME: 7, VERSION: "1"},
        {NAME: "a", VERSION: "1", DIRINDEXES: [0]},
        {NAME: "a", VERSION: "1", DIRINDEXES: [3], 1117: ["a"], 1118: ["/"]},
        {NAME: "a", VERSION: "1", DIRINDEXES: "text"},
    ],
)
def test_a_header_that_lacks_or_contradicts_itself_is_refused_and_the_others_are_read(tags):
    with pytest.raises(Invalid):
        parse_header(header(tags))
    parsed = parse_headers([header(tags), package("good")])
    assert [one.package.name for one in parsed.listed] == ["good"]
    assert parsed.troubles[0].startswith("header 1: ")


@pytest.mark.parametrize("cut", range(0, 120, 7))
def test_a_header_that_is_cut_short_is_refused(cut):
    with pytest.raises(Invalid):
        parse_header(package("bash", files=["/usr/bin/bash"])[:cut])


def test_counts_that_no_data_can_hold_are_refused_at_once():
    huge = pack(">II", 1, 4) + pack(">IIiI", NAME, 8, 0, 0xFFFFFFFF) + b"a\0b\0"
    with pytest.raises(Invalid):
        parse_header(huge)
    with pytest.raises(Invalid):
        parse_header(pack(">II", 0xFFFFFFFF, 0xFFFFFFFF))


def test_no_more_packages_than_the_limit():
    parsed = parse_headers(package("p") for _ in range(MAX_PACKAGES + 5))
    assert len(parsed.listed) == MAX_PACKAGES
    assert parsed.troubles == (f"more than {MAX_PACKAGES} packages",)


def test_what_stands_before_a_broken_blob_is_kept():
    data = ndb([package("first"), package("second")])
    parsed = parse_headers(ndb_headers(reader(data[: len(data) - 40])))
    assert [one.package.name for one in parsed.listed] == ["first"]
    assert len(parsed.troubles) == 1


def test_an_overflow_chain_that_bites_its_tail_ends():
    page = 1024
    data = bytearray(BDB_LITTLE)
    for at in range(page, len(data), page):
        if data[at + 25] == 7:  # an overflow page: let it lead to itself
            data[at + 16 : at + 20] = pack("<I", at // page)
    parsed = parse_headers(bdb_headers(reader(bytes(data))))
    assert len(parsed.listed) + len(parsed.troubles) == 2


@pytest.mark.parametrize("of", [ndb_headers, bdb_headers])
@pytest.mark.parametrize("data", [b"", b"\0" * 8192, b"RpmP\1" + bytes(5000)])
def test_a_file_of_another_kind_is_said(of, data):
    (trouble,) = parse_headers(of(reader(data))).troubles
    assert "header" in trouble


@given(st.binary(max_size=400))
def test_no_bytes_are_more_than_a_header_or_invalid(data):
    try:
        parse_header(data)
    except Invalid:
        pass


@given(st.data())
def test_no_damage_to_a_database_is_more_than_a_trouble(data):
    of, whole = data.draw(
        st.sampled_from(
            [
                (bdb_headers, BDB_LITTLE),
                (bdb_headers, BDB_BIG),
                (ndb_headers, ndb([package("a"), package("b")])),
            ]
        )
    )
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    parsed = parse_headers(of(reader(bytes(damaged))))
    assert len(parsed.listed) <= 8 * 512
