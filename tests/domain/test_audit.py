"""The audit log tells of each way to falsify it."""

import msgspec

from aegisflux.domain import audit
from aegisflux.domain.audit import Entry, Head, Line

KEY = b"k" * 32


def log(count: int) -> tuple[list[Line], Head]:
    head, lines = audit.first_head(KEY), []
    for number in range(count):
        line, head = audit.following(head, KEY, number, Entry("ann", "snapshot.post", f"service/{number}"))
        lines.append(line)
    return lines, head


def test_a_whole_log_has_no_problem():
    for count in (0, 1, 9):
        assert list(audit.problems(*log(count), KEY)) == []


def test_an_edit_is_found():
    lines, head = log(5)
    lines[2] = msgspec.structs.replace(lines[2], entry=Entry("eve", "snapshot.post", "service/2"))
    assert list(audit.problems(lines, head, KEY)) == [
        "edit: line 3 does not have the hash that its content gives"
    ]


def test_a_gap_is_found():
    lines, head = log(5)
    del lines[2]
    assert next(iter(audit.problems(lines, head, KEY))).startswith("gap: line 3")


def test_a_cut_off_tail_is_found():
    lines, head = log(5)
    assert "cut-off" in next(iter(audit.problems(lines[:3], head, KEY)))


def test_a_tail_cut_off_with_its_head_is_found_by_the_mac():
    lines, _ = log(5)
    forged = Head(3, lines[2].hash, bytes(32))
    assert list(audit.problems(lines[:3], forged, KEY)) == [
        "edit: the head was not written by this control plane"
    ]
