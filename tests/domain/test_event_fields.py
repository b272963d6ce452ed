"""What the agent's own events hold: a field more is seen here, and said in SECURITY.md."""

import pytest

from aegisflux.domain import event

HEAD = "seq time_ns clamped"
FIELDS = {
    event.Exec: "pid start_ns uid path args args_cut comm cgroup ancestors",
    event.Exit: "pid start_ns code signal path comm",
    event.FlowSeen: "direction proto local peer port first_ns last_ns packets_out packets_in bytes_out "
    "bytes_in connections verdict reason service_id cgroup pid start_ns path",
    event.Listen: "proto address port closed pid start_ns path cgroup service_id",
    event.VerdictSeen: "service_id direction proto peer verdict reason local local_port peer_port rule "
    "digest candidate",
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_an_agents_events_hold_this_and_no_more(kind):
    """No payload, no environment, no content of a file."""
    assert set(kind.__struct_fields__) == {*HEAD.split(), *FIELDS[kind].split()}
    assert event.Ancestor.__struct_fields__ == ("pid", "start_ns", "comm")
