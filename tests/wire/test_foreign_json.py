"""Falco, Tetragon, OCSF and our own form: what their documentation shows, and what nobody should send."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.errors import Invalid, Refused
from aegisflux.domain.event import Ancestor, Auth, Exec, Exit, File, FlowSeen, Log
from aegisflux.wire.foreign import FORMATS
from aegisflux.wire.foreign.common import Record

NOW = 1_795_521_600_000_000_000
MS = 1_000_000


def read(form, value, seq=1):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return FORMATS[form].event(Record(data, "json"), seq, NOW)


FALCO = {
    "uuid": "6d1e8a6f-2f1a-4a2b-9a61-6a8a0a1b2c3d",
    "output": "16:31:56.746609046: Error File below a known binary directory opened for writing "
    "(user=root command=touch /bin/hack file=/bin/hack)",
    "priority": "Error",
    "rule": "Write below binary dir",
    "time": "2017-10-09T23:31:56.746609046Z",
    "source": "syscall",
    "hostname": "host1.domain.com",
    "tags": ["filesystem", "mitre_persistence"],
    "output_fields": {
        "evt.time": 1507591916746609046,
        "fd.name": "/bin/hack",
        "proc.cmdline": "touch /bin/hack",
        "proc.exepath": "/usr/bin/touch",
        "proc.pid": 4711,
        "user.name": "root",
        "container.id": None,
    },
}


def test_a_falco_alert_is_a_log_with_its_rule():
    assert read("falco", FALCO, 7) == Log(
        seq=7,
        time_ns=1_507_591_916_746_609_046,
        source="falco",
        message=FALCO["output"],
        severity="high",
        rule="Write below binary dir",
        pid=4711,
        exe="/usr/bin/touch",
        fields={
            "evt.time": "1507591916746609046",
            "fd.name": "/bin/hack",
            "proc.cmdline": "touch /bin/hack",
            "proc.exepath": "/usr/bin/touch",
            "proc.pid": "4711",
            "user.name": "root",
            "tags": "filesystem,mitre_persistence",
        },
    )


@pytest.mark.parametrize(
    ("priority", "severity"),
    [("Emergency", "critical"), ("Critical", "critical"), ("Warning", "medium"), ("Notice", "low"),
     ("Informational", "info"), ("Debug", "info")],
)  # fmt: skip
def test_falcos_priorities(priority, severity):
    assert read("falco", FALCO | {"priority": priority}).severity == severity


@pytest.mark.parametrize("key", ["output", "rule", "time", "priority"])
def test_a_falco_alert_without_one_of_its_parts_is_refused_by_name(key):
    with pytest.raises(Invalid, match=key):
        read("falco", {name: value for name, value in FALCO.items() if name != key})


TETRAGON = {
    "exec_id": "a2luZC1jb250cm9sLXBsYW5lOjExNDI4NjE1NjM2OTAxOjUxNTgz",
    "pid": 51583,
    "uid": 0,
    "cwd": "/",
    "binary": "/usr/bin/whoami",
    "arguments": "--version 'two words'",
    "flags": "execve rootcwd clone",
    "start_time": "2022-05-11T12:54:45.615Z",
    "parent_exec_id": "a2luZC1jb250cm9sLXBsYW5lOjExNDI0NjYxMTY0MDQ0OjUxNTc2",
}
PARENT = {"pid": 51576, "uid": 0, "binary": "/bin/bash", "start_time": "2022-05-11T12:54:41.660Z"}
STARTED = 1_652_273_685_615 * MS


def tetragon(kind, at="2022-05-11T12:54:45.615Z", **body):
    return read(
        "tetragon", {kind: {"process": TETRAGON, "parent": PARENT} | body, "node_name": "n", "time": at}
    )


def test_a_tetragon_exec():
    assert tetragon("process_exec") == Exec(
        seq=1,
        time_ns=STARTED,
        pid=51583,
        start_ns=STARTED,
        uid=0,
        path="/usr/bin/whoami",
        args=("/usr/bin/whoami", "--version", "two words"),
        comm="whoami",
        ancestors=(Ancestor(51576, 1_652_273_681_660 * MS, "bash"),),
    )


def test_a_tetragon_exit_says_code_or_signal():
    ended = tetragon("process_exit", "2022-05-11T12:54:46Z", status=130)
    assert ended == Exit(
        seq=1, time_ns=1_652_273_686_000 * MS, pid=51583, start_ns=STARTED, code=130, path="/usr/bin/whoami",
        comm="whoami",
    )  # fmt: skip
    assert tetragon("process_exit", signal="SIGKILL").signal == 9


def test_a_tetragon_connect_is_an_egress_flow():
    sock = {
        "family": "AF_INET", "type": "SOCK_STREAM", "protocol": "IPPROTO_TCP", "saddr": "10.244.0.6",
        "daddr": "104.198.14.52", "sport": 34965, "dport": 80, "cookie": "18446623695930460928",
    }  # fmt: skip
    found = tetragon("process_kprobe", function_name="tcp_connect", args=[{"sock_arg": sock}])
    assert found == FlowSeen(
        seq=1, time_ns=STARTED, direction="egress", proto=6, local="10.244.0.6", peer="104.198.14.52",
        port=80, first_ns=STARTED, last_ns=STARTED, connections=1, pid=51583, start_ns=STARTED,
        path="/usr/bin/whoami",
    )  # fmt: skip
    with pytest.raises(Invalid, match="two addresses"):
        tetragon("process_kprobe", function_name="tcp_connect", args=[{"sock_arg": sock | {"daddr": "x"}}])


def test_a_tetragon_file_probe_knows_reading_from_writing():
    args = [{"file_arg": {"path": "/etc/passwd"}}, {"int_arg": 4}]
    found = tetragon("process_kprobe", function_name="security_file_permission", args=args)
    assert found == File(
        seq=1, time_ns=STARTED, source="tetragon", action="open", path="/etc/passwd", pid=51583, uid=0,
        exe="/usr/bin/whoami",
    )  # fmt: skip
    args[1] = {"int_arg": 2}
    written = tetragon("process_kprobe", function_name="security_file_permission", args=args)
    assert written.action == "modify"


def test_another_tetragon_probe_is_a_log():
    found = tetragon("process_kprobe", function_name="sys_setuid", args=[{"int_arg": 0}], policy_name="uid")
    assert (found.rule, found.message) == ("uid", "sys_setuid by /usr/bin/whoami")


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"process_loader": {"process": TETRAGON}},
        {"process_exec": {"process": []}, "time": "2022-05-11T12:54:45Z"},
        {"process_exec": {"process": TETRAGON | {"pid": -1}}, "time": "2022-05-11T12:54:45Z"},
        {"process_exec": {"process": TETRAGON | {"uid": "root"}}, "time": "2022-05-11T12:54:45Z"},
        {"process_exec": {"process": TETRAGON}, "time": "yesterday"},
        {"process_exec": {"process": TETRAGON}, "time": "2022-13-45T99:54:45Z"},
    ],
)
def test_what_is_no_tetragon_event_is_refused(value):
    with pytest.raises(Invalid):
        read("tetragon", value)


def test_unbounded_arguments_are_cut_and_marked():
    found = read(
        "tetragon",
        {
            "process_exec": {"process": TETRAGON | {"arguments": "a " * 100_000}},
            "time": "2022-05-11T12:54:45Z",
        },
    )
    assert (len(found.args), found.args_cut) == (256, True)
    quoted = read(
        "tetragon",
        {"process_exec": {"process": TETRAGON | {"arguments": "it's open"}}, "time": "2022-05-11T12:54:45Z"},
    )
    assert quoted.args[1:] == ("it's", "open")


LAUNCH = {
    "class_uid": 1007, "activity_id": 1, "time": 1_652_273_685_615, "metadata": {"version": "1.3.0"},
    "process": {
        "pid": 300, "name": "curl", "cmd_line": "curl -s https://example.org", "user": {"uid": "33"},
        "created_time": 1_652_273_685_000, "file": {"path": "/usr/bin/curl"},
        "parent_process": {"pid": 200, "name": "bash"},
    },
}  # fmt: skip


def test_an_ocsf_launch_and_a_termination():
    assert read("ocsf", LAUNCH) == Exec(
        seq=1, time_ns=STARTED, pid=300, start_ns=1_652_273_685_000 * MS, uid=33, path="/usr/bin/curl",
        args=("curl", "-s", "https://example.org"), comm="curl", ancestors=(Ancestor(200, 0, "bash"),),
    )  # fmt: skip
    ended = read("ocsf", LAUNCH | {"activity_id": 2, "exit_code": 7})
    assert (type(ended), ended.pid, ended.code) == (Exit, 300, 7)
    assert isinstance(read("ocsf", LAUNCH | {"activity_id": 3}), Log)


NETWORK = {
    "class_uid": 4001, "activity_id": 1, "time": 1_652_273_685_615, "action_id": 2,
    "src_endpoint": {"ip": "10.0.0.1", "port": 40_000}, "dst_endpoint": {"ip": "10.0.0.2", "port": 5432},
    "connection_info": {"protocol_num": 6, "direction_id": 2},
    "traffic": {"bytes_in": 5, "bytes_out": 7, "packets_in": 1, "packets_out": 2},
}  # fmt: skip


def test_an_ocsf_flow_seen_from_either_side():
    out = read("ocsf", NETWORK)
    assert (out.direction, out.local, out.peer, out.port) == ("egress", "10.0.0.1", "10.0.0.2", 5432)
    assert (out.bytes_out, out.bytes_in, out.packets_out, out.packets_in) == (7, 5, 2, 1)
    assert (out.verdict, out.connections) == ("blocked", 1)
    into = read("ocsf", NETWORK | {"connection_info": {"protocol_name": "TCP", "direction_id": 1}})
    assert (into.direction, into.local, into.peer, into.proto) == ("ingress", "10.0.0.2", "10.0.0.1", 6)
    assert (into.bytes_out, into.bytes_in) == (5, 7)


def test_an_ocsf_logon():
    value = {
        "class_uid": 3002, "activity_id": 1, "status_id": 2, "time": 1_652_273_685_615, "message": "denied",
        "user": {"name": "root"}, "src_endpoint": {"ip": "::ffff:10.0.0.9", "port": 4},
        "auth_protocol": "NTLM", "service": {"name": "sshd"},
    }  # fmt: skip
    found = read("ocsf", value)
    assert (type(found), found.success, found.user, found.service) == (Auth, False, "root", "sshd")
    assert (found.method, found.port) == ("NTLM", 4)
    assert isinstance(read("ocsf", value | {"status_id": 0}), Log)


def test_an_ocsf_file_activity():
    value = {
        "class_uid": 1001, "activity_id": 5, "time": 1, "file": {"path": "/a"}, "file_result": {"path": "/b"},
        "actor": {"process": {"pid": 9, "file": {"path": "/bin/mv"}}, "user": {"uid": 0}}, "status_id": 1,
    }  # fmt: skip
    assert read("ocsf", value) == File(
        seq=1,
        time_ns=MS,
        source="ocsf",
        action="rename",
        path="/a",
        to_path="/b",
        pid=9,
        uid=0,
        exe="/bin/mv",
    )


def test_another_ocsf_class_is_a_log_with_its_severity():
    value = {"class_uid": 2004, "time": 5, "severity_id": 5, "finding_info": {"title": "Bad"}, "message": "m"}
    found = read("ocsf", value)
    assert (found.severity, found.rule, found.message) == ("critical", "Bad", "m")


@pytest.mark.parametrize(
    "value",
    [{}, {"class_uid": 1007}, {"class_uid": 1007, "time": "now"}, {"class_uid": 1007, "time": 10**18},
     LAUNCH | {"process": None}, LAUNCH | {"process": {"pid": 1}}, {"class_uid": True, "time": 1}],
)  # fmt: skip
def test_ocsf_that_says_too_little_is_refused(value):
    with pytest.raises(Invalid):
        read("ocsf", value)


def test_our_own_form_is_given_its_sequence_and_may_lack_a_time():
    found = read("native", {"type": "exit", "pid": 1, "start_ns": 2, "seq": 99, "clamped": True}, 3)
    assert (found.seq, found.time_ns, found.clamped) == (3, NOW, False)
    with pytest.raises(Invalid, match="pid"):
        read("native", {"type": "exit", "pid": -1, "start_ns": 2})


@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{", b'"x"', b'{"a":' * 50_000, b"\xff\xfe", b"\x00", b'{"time":NaN}']
)
def test_what_is_nothing_at_all_is_refused_by_every_parser(form, data):
    with pytest.raises(Refused):
        FORMATS[form].event(Record(data, "json"), 1, NOW)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
SHAPES = {
    "falco": FALCO,
    "tetragon": {"process_exec": {"process": TETRAGON, "parent": PARENT}, "time": "2022-05-11T12:54:45.615Z"},
    "ocsf": NETWORK,
    "native": {"type": "log", "source": "x", "message": "y"},
}


@given(st.sampled_from(sorted(SHAPES)), st.data())
def test_any_value_in_any_place_is_an_event_or_a_reason(form, data):
    value = json.loads(json.dumps(SHAPES[form]))
    place = value
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(JSON)
        break
    try:
        found = read(form, value)
    except Refused:
        return
    assert found.seq == 1
