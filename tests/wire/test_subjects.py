"""The register: complete, and the source of what an agent may do."""

import pytest

from aegisflux.domain.errors import Invalid
from aegisflux.wire import subjects


def test_every_row_has_both_ends_and_a_place():
    for row in subjects.REGISTER:
        assert all((row.payload, row.producer, row.consumers, row.meaning))
        if row.delivery != "request and reply":
            assert subjects.stream_of(row.pattern).last_value == (row.delivery == "last value")


def test_every_stream_keeps_rows_of_the_register():
    patterns = {row.pattern for row in subjects.REGISTER}
    assert all(set(stream.subjects) <= patterns for stream in subjects.STREAMS)


def test_an_agent_may_do_this_and_no_more():
    assert set(subjects.agent_publishes("web1")) == {
        "agent.content.web1",
        "agent.credentials.web1",
        "agent.acks.web1",
        "agent.heartbeat.web1",
        "telemetry.web1",
        "inventory.packages.web1",
        "$JS.API.DIRECT.GET.DESIRED.actions.seg.desired.web1",
        "$JS.API.DIRECT.GET.CONFIRM.actions.seg.confirm.web1",
        "$JS.API.DIRECT.GET.INVENTORY.inventory.packages.web1",
        "$JS.API.DIRECT.GET.HEARTBEATS.agent.heartbeat.web1",
    }
    assert set(subjects.agent_subscribes("web1")) == {
        "actions.seg.desired.web1",
        "actions.seg.confirm.web1",
        "_INBOX.web1.>",
    }


@pytest.mark.parametrize("name", ["web1", "maps", "seg", "acks", "raw", "telemetry"])
def test_the_account_of_a_host_crosses_what_names_it_and_nothing_else(name):
    """Also of a host whose name is a token of another row, in whatever the register has for others."""
    crosses = (*subjects.host_requests(name), *subjects.host_hears(name))
    for subject in (*subjects.agent_publishes(name), *subjects.agent_hears()):
        own = subject.replace("*", name)
        assert any(subjects.matches(pattern, own) for pattern in crosses), own
    others = [row.pattern.replace("*", "other") for row in subjects.REGISTER]
    others += [subjects.direct_get(subjects.stream_of(other).name, other) for other in others if kept(other)]
    for subject in (*others, "_INBOX.other.x", f"_INBOX.{name}.x", f"$JS.API.STREAM.DELETE.{name}", "_R_.x"):
        assert not any(subjects.matches(pattern, subject) for pattern in crosses), subject


def kept(subject):
    """Whether a stream keeps it."""
    try:
        return bool(subjects.stream_of(subject))
    except Invalid:
        return False


def test_in_streams_that_hosts_write_no_id_counts():
    written = {stream.name for stream in subjects.STREAMS if stream.of_hosts}
    assert written == {"ACKS", "HEARTBEATS", "TELEMETRY", "INVENTORY"}


@pytest.mark.parametrize("host", ["a", "web-1", "0_x", "a" * 63])
def test_a_host_name_is_one_token(host):
    assert subjects.host_of(subjects.acks(host)) == host


@pytest.mark.parametrize("host", ["", "*", ">", "a.b", "A", "-a", "a" * 64, "a\n", "ä", "{{name()}}"])
def test_other_names_are_refused(host):
    for build in (subjects.desired, subjects.confirm, subjects.content, subjects.acks, subjects.heartbeat):
        with pytest.raises(Invalid):
            build(host)


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("*.b.>", "a.b.c", True),
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
    ],
)
def test_matching_is_that_of_nats(pattern, subject, expected):
    assert subjects.matches(pattern, subject) is expected
