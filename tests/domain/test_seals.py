"""The MAC of a row is over all that it says, and of its kind and key alone."""

import pytest

from aegisflux.domain import seals

KEY = b"k" * 32
ROWS = {
    "content": dict.fromkeys(seals.CONTENT, "x") | {"payload_sha256": b"d", "version": 1, "copy_of": None},
    "had": {"service_id": 1, "host_id": "h", "versions": [1, 2]},
}


@pytest.mark.parametrize(("kind", "column"), [(kind, name) for kind, row in ROWS.items() for name in row])
def test_each_column_counts(kind, column):
    row = ROWS[kind]
    mac = seals.mac_of(KEY, kind, row)
    assert seals.is_sealed(KEY, kind, row, mac)
    assert not seals.is_sealed(KEY, kind, row | {column: "other"}, mac)


@pytest.mark.parametrize("kind", ROWS)
def test_no_other_key_no_other_kind_and_no_mac_will_do(kind):
    row = ROWS["content"] | ROWS["had"]
    mac = seals.mac_of(KEY, kind, row)
    other = {"content": "had", "had": "content"}[kind]
    for key, of, given in ((b"x" * 32, kind, mac), (KEY, other, mac), (KEY, kind, None), (KEY, kind, b"")):
        assert not seals.is_sealed(key, of, row, given)


def test_more_columns_of_a_row_change_nothing():
    assert seals.mac_of(KEY, "had", ROWS["had"]) == seals.mac_of(KEY, "had", ROWS["had"] | {"mac": b"m"})
