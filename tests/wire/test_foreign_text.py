"""sshd and auditd: lines as they stand in logs, and lines that somebody made up."""

import gzip
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.errors import Invalid, OverLimit, Refused
from aegisflux.domain.event import Ancestor, Auth, Exec, File, Log
from aegisflux.wire.foreign import FORMATS, auditd
from aegisflux.wire.foreign.common import Record
from aegisflux.wire.foreign.records import split

SECOND = 1_000_000_000
OPENSSH = Path("/work/shared/data/correlator/OpenSSH_2k.log.gz")


def at(*when):
    return int(datetime(*when, tzinfo=UTC).timestamp()) * SECOND


NOW = at(2026, 11, 24, 12)


def line(form, data, now=NOW):
    return FORMATS[form].event(Record(data if isinstance(data, bytes) else data.encode(), "text"), 1, now)


def sshd(said, now=NOW):
    return line("sshd", "Nov 23 06:55:46 LabSZ sshd[24200]: " + said, now)


HEADS = [
    ("Nov 23 06:55:46 web sshd[7]: ", at(2026, 11, 23, 6, 55, 46)),
    ("<86>Nov  3 06:55:46 web sshd[7]: ", at(2026, 11, 3, 6, 55, 46)),
    ("Nov 23 06:55:46.250000 web sshd[7]: ", at(2026, 11, 23, 6, 55, 46) + SECOND // 4),
    ("2026-11-23T07:55:46+0100 web sshd[7]: ", at(2026, 11, 23, 6, 55, 46)),
    ("2026-11-23T06:55:46.250000+00:00 web sshd-session[7]: ", at(2026, 11, 23, 6, 55, 46) + SECOND // 4),
    ("Mon 2026-11-23 06:55:46 UTC web sshd[7]: ", at(2026, 11, 23, 6, 55, 46)),
    ("1795416946.250000 web sshd[7]: ", 1_795_416_946 * SECOND + SECOND // 4),
    ("<86>1 2026-11-23T06:55:46.25Z web sshd 7 - - ", at(2026, 11, 23, 6, 55, 46) + SECOND // 4),
    ('<86>1 2026-11-23T06:55:46Z web sshd 7 ID [a@1 b="x \\" ]"][c@1] ', at(2026, 11, 23, 6, 55, 46)),
]


@pytest.mark.parametrize(("head", "when"), HEADS)
def test_each_form_of_a_head(head, when):
    found = line(
        "sshd", head + "Accepted publickey for deploy from 10.0.0.9 port 5022 ssh2: ED25519 SHA256:x"
    )
    assert (found.time_ns, found.pid, found.success, found.user) == (when, 7, True, "deploy")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Accepted password for root from 10.1.2.3 port 22 ssh2", (True, "root", "password", "10.1.2.3", 22)),
        ("Failed password for root from ::1 port 5 ssh2", (False, "root", "password", "::1", 5)),
        (
            "Failed password for invalid user bob from 1.2.3.4 port 5 ssh2",
            (False, "bob", "password", "1.2.3.4", 5),
        ),
        ("Failed none for invalid user  from 1.2.3.4 port 5 ssh2", (False, "", "none", "1.2.3.4", 5)),
        ("Invalid user bob from 1.2.3.4", (False, "bob", "none", "1.2.3.4", None)),
        ("Invalid user bob from 1.2.3.4 port 99", (False, "bob", "none", "1.2.3.4", 99)),
        (
            "message repeated 5 times: [ Failed password for root from 1.2.3.4 port 5 ssh2]",
            (False, "root", "password", "1.2.3.4", 5),
        ),
        (
            "error: maximum authentication attempts exceeded for root from 1.2.3.4 port 5 ssh2 [preauth]",
            (False, "root", "", "1.2.3.4", 5),
        ),
    ],
)
def test_who_tried_to_be_let_in(said, expected):
    found = sshd(said)
    assert isinstance(found, Auth)
    assert (found.success, found.user, found.method, found.address, found.port) == expected
    assert found.message == said


@pytest.mark.parametrize(
    "user",
    [
        "x from 9.9.9.9 port 1 ssh2",
        "root from 9.9.9.9",
        "Accepted password for root from 9.9.9.9 port 1 ssh2",
    ],
)
def test_a_name_that_looks_like_the_rest_of_a_line_deceives_nobody(user):
    found = sshd(f"Failed password for invalid user {user} from 1.2.3.4 port 5 ssh2")
    assert (found.success, found.user, found.address) == (False, user, "1.2.3.4")


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ("Connection closed by 1.2.3.4 [preauth]", {"address": "1.2.3.4"}),
        ("Received disconnect from 1.2.3.4: 11: Bye Bye [preauth]", {"address": "1.2.3.4"}),
        (
            "Received disconnect from 1.2.3.4 port 5:11: disconnected by user",
            {"address": "1.2.3.4", "port": "5"},
        ),
        (
            "Disconnected from authenticating user root 1.2.3.4 port 5 [preauth]",
            {"address": "1.2.3.4", "port": "5", "user": "root"},
        ),
        ("Disconnected from user bob 1.2.3.4 port 5", {"address": "1.2.3.4", "port": "5", "user": "bob"}),
        (
            "Connection reset by invalid user a b 1.2.3.4 port 5 [preauth]",
            {"address": "1.2.3.4", "port": "5", "user": "a b"},
        ),
    ],
)
def test_who_went(said, fields):
    found = sshd(said)
    assert (type(found), found.rule, found.fields) == (Log, "disconnect", fields)


@pytest.mark.parametrize(
    ("text", "now", "expected"),
    [
        ("Dec 31 23:59:59", at(2027, 1, 1), at(2026, 12, 31, 23, 59, 59)),
        ("Jan  1 00:00:01", at(2026, 12, 31, 23, 59, 59), at(2027, 1, 1, 0, 0, 1)),
        ("Nov 26 00:00:00", at(2026, 11, 24, 12), at(2025, 11, 26)),
        ("Feb 29 01:00:00", at(2026, 11, 24), at(2024, 2, 29, 1)),
        ("Feb 29 01:00:00", at(2103, 1, 1), at(2096, 2, 29, 1)),
    ],
)
def test_the_year_that_a_line_lacks(text, now, expected):
    assert line("sshd", f"{text} web sshd[1]: x", now).time_ns == expected


@pytest.mark.parametrize(
    "text",
    [
        "Nov 31 06:55:46 web sshd[1]: x",
        "Nop 3 06:55:46 web sshd[1]: x",
        "Nov 3 25:55:46 web sshd[1]: x",
        "Nov 23 06:55:46 web cron[1]: x",
        "Nov 23 06:55:46 web notsshd[1]: x",
        "2026-11-23T06:55:46Z",
        "<86>1 2026-11-23T06:55:46Z web cron 7 - - x",
        "sshd[1]: Accepted password for root from 1.1.1.1 port 1 ssh2",
    ],
)
def test_a_line_that_is_not_sshds_is_refused(text):
    with pytest.raises(Invalid):
        line("sshd", text)


def test_hostile_lines_are_bounded_and_quick():
    started = time.monotonic()
    long = "from " * 100_000
    for said in (long, f"Failed password for {long}", f"Disconnected from user {long}1.2.3.4 x"):
        assert len(sshd(said).message) <= 4096
    for head in (b"<86>1 2026-11-23T06:55:46Z web sshd 7 - " + b"[" + b'a="\\' * 50_000, b"A" * 200_000):
        with pytest.raises(Refused):
            line("sshd", head)
    assert time.monotonic() - started < 2
    found = sshd("Failed password for invalid user \x1b[2J\x00 from 1.2.3.4 port 5 ssh2")
    assert "\x00" not in found.user
    odd = line("sshd", b"Nov 23 06:55:46 web sshd[1]: Invalid user \xff\xfe from 1.2.3.4")
    assert odd.user == "\\xff\\xfe"


def test_two_thousand_real_lines_are_all_understood():
    if not OPENSSH.exists():
        pytest.skip(f"{OPENSSH} is not here")
    records = list(split(gzip.decompress(OPENSSH.read_bytes()), "text/plain", "sshd"))
    events = [FORMATS["sshd"].event(record, n + 1, NOW) for n, record in enumerate(records)]
    assert len(events) == 2000
    said = b"\n".join(record.data for record in records)
    failed = sum(b": Failed " in record.data for record in records)
    invalid = sum(b": Invalid user " in record.data for record in records)
    kinds = Counter((type(e).__name__, getattr(e, "method", "") == "none") for e in events)
    repeated = said.count(b"message repeated")
    assert sum(1 for e in events if isinstance(e, Auth) and e.success) == said.count(b": Accepted ")
    assert kinds["Auth", True] >= invalid
    auths = sum(1 for e in events if isinstance(e, Auth))
    exceeded = said.count(b"maximum authentication attempts")
    assert auths == failed + invalid + said.count(b": Accepted ") + repeated + exceeded


AUDIT_OPEN = """\
type=SYSCALL msg=audit(1364481363.243:24287): arch=c000003e syscall=2 success=no exit=-13 a0=7fffd19c5592 \
a1=0 a2=7fffd19c4b50 a3=a items=1 ppid=2686 pid=3538 auid=1000 uid=1000 tty=pts0 ses=1 comm="cat" \
exe="/bin/cat" subj=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023 key="sshd_config"
type=CWD msg=audit(1364481363.243:24287):  cwd="/home/shadowman"
type=PATH msg=audit(1364481363.243:24287): item=0 name="/etc/ssh/sshd_config" inode=409248 dev=fd:00 \
mode=0100600 ouid=0 ogid=0 rdev=00:00 obj=system_u:object_r:etc_t:s0  nametype=NORMAL cap_fp=none cap_fi=none
type=PROCTITLE msg=audit(1364481363.243:24287) : proctitle=636174002F6574632F7373682F737368645F636F6E666967"""
EXECVE = """\
type=SYSCALL msg=audit(1700000000.123:77): arch=c000003e syscall=59 success=yes exit=0 items=2 ppid=100 \
pid=200 auid=1000 uid=0 tty=pts0 comm="sh" exe="/usr/bin/dash" key=(null)\x1dARCH=x86_64 UID="root"
type=EXECVE msg=audit(1700000000.123:77): argc=3 a0="sh" a1="-c" a2=6563686F2022686922203B206C73
type=CWD msg=audit(1700000000.123:77): cwd="/root"
type=PATH msg=audit(1700000000.123:77): item=0 name="/bin/sh" inode=1 nametype=NORMAL
type=PATH msg=audit(1700000000.123:77): item=1 name="/lib64/ld-linux-x86-64.so.2" inode=2 nametype=NORMAL
type=EOE msg=audit(1700000000.123:77): """
LOGIN = (
    "type=USER_LOGIN msg=audit(1700000001.5:78): pid=999 uid=0 auid=4294967295 ses=4294967295 "
    'subj=system_u:system_r:sshd_t:s0 msg=\'op=login acct="root" exe="/usr/sbin/sshd" hostname=? '
    "addr=192.0.2.7 terminal=ssh res=failed'"
)


def groups(text):
    data = text if isinstance(text, bytes) else text.encode()
    return [record.data for record in split(data, "text/plain", "auditd")]


def test_an_exec_is_joined_from_its_records():
    (group,) = groups(EXECVE)
    assert line("auditd", group) == Exec(
        seq=1, time_ns=1_700_000_000_123_000_000, pid=200, start_ns=0, uid=0, path="/usr/bin/dash",
        args=("sh", "-c", 'echo "hi" ; ls'), comm="sh", ancestors=(Ancestor(100, 0, ""),),
    )  # fmt: skip


def test_records_of_two_serials_may_lie_between_each_other():
    one, two = EXECVE.split("\n"), LOGIN.split("\n")
    mixed = "\n".join([one[0], two[0], *one[1:]])
    first, second = groups(mixed)
    assert line("auditd", first) == line("auditd", EXECVE)
    assert isinstance(line("auditd", second), Auth)


def test_a_file_that_was_opened_in_vain():
    (group,) = groups(AUDIT_OPEN)
    assert line("auditd", group) == File(
        seq=1, time_ns=1_364_481_363_243_000_000, source="auditd", action="open", path="/etc/ssh/sshd_config",
        pid=3538, uid=1000, exe="/bin/cat", success=False,
    )  # fmt: skip


def test_a_relative_path_begins_where_the_process_was():
    text = AUDIT_OPEN.replace('name="/etc/ssh/sshd_config"', 'name="x"')
    assert line("auditd", text).path == "/home/shadowman/x"


def test_a_rename_has_two_names():
    text = (
        'type=SYSCALL msg=audit(1.0:5): arch=c00000b7 syscall=38 success=yes pid=7 uid=1 exe="/bin/mv"\n'
        'type=PATH msg=audit(1.0:5): item=0 name="/d" nametype=PARENT\n'
        'type=PATH msg=audit(1.0:5): item=1 name="/d/a" nametype=DELETE\n'
        'type=PATH msg=audit(1.0:5): item=2 name="/d/b" nametype=CREATE'
    )
    found = line("auditd", text)
    assert (found.action, found.path, found.to_path) == ("rename", "/d/a", "/d/b")


def test_a_login_that_failed():
    found = line("auditd", LOGIN)
    assert found == Auth(
        seq=1, time_ns=1_700_000_001_500_000_000, source="auditd", success=False, user="root", service="sshd",
        method="login", address="192.0.2.7", pid=999, message="USER_LOGIN",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["USER_AUTH", "USER_ACCT", "CRED_ACQ", "CRED_DISP", "USER_START"])
def test_the_other_kinds_of_letting_in(kind):
    text = (
        LOGIN.replace("USER_LOGIN", kind).replace("res=failed", "res=success").replace("op=login", "op=PAM:x")
    )
    found = line("auditd", text)
    assert (found.success, found.message, found.method) == (True, kind, "PAM:x")


def test_a_name_in_hexadecimal_is_a_name():
    found = line("auditd", LOGIN.replace('acct="root"', "acct=726F6F7420726573"))
    assert (found.user, found.success) == ("root res", False)


def test_long_arguments_come_in_pieces_and_many_are_cut():
    text = EXECVE.replace(
        'argc=3 a0="sh" a1="-c" a2=6563686F2022686922203B206C73',
        'argc=900 a0="sh" a1_len=6 a1[0]=6162 a1[1]=6364',
    )
    found = line("auditd", text)
    assert (found.args, found.args_cut) == (("sh", "abcd"), True)


def test_without_an_execve_record_the_title_tells_the_arguments():
    lines = [text for text in EXECVE.split("\n") if "type=EXECVE" not in text]
    lines.append("type=PROCTITLE msg=audit(1700000000.123:77): proctitle=7368002D63")
    assert line("auditd", "\n".join(lines)).args == ("sh", "-c")


def test_what_no_rule_knows_is_a_log():
    found = line(
        "auditd",
        "type=SERVICE_START msg=audit(1.5:9): pid=1 uid=0 msg='unit=cron comm=\"systemd\" res=success'",
    )
    assert (type(found), found.rule, found.fields["unit"]) == (Log, "SERVICE_START", "cron")
    failed = line("auditd", EXECVE.replace("success=yes", "success=no"))
    assert isinstance(failed, Log)


@pytest.mark.parametrize(
    "text",
    ["type=SYSCALL", "msg=audit(1.0:1): x", "type=X msg=audit(99999999999999.0:1): x",
     "type=X msg=audit(-1.0:1): x",
     "type=SYSCALL msg=audit(1.0:1): arch=c000003e syscall=59 success=yes pid=x uid=0",
     "type=SYSCALL msg=audit(999999999999.0:1): pid=1 uid=1"],
)  # fmt: skip
def test_what_is_no_audit_record_is_refused(text):
    with pytest.raises(Invalid):
        line("auditd", text)


def test_groups_are_bounded():
    body = b"".join(b"type=X msg=audit(1.0:%d): x\n" % n for n in range(auditd.MAX_GROUPS + 1))
    with pytest.raises(OverLimit):
        groups(body)
    (one,) = groups(b"type=X msg=audit(1.0:1): x\n" * 1000)
    assert one.count(b"\n") == auditd.MAX_LINES - 1


@given(
    st.text(alphabet="=\"'ab01 ()\x1d\\", max_size=80),
    st.sampled_from(["SYSCALL", "USER_LOGIN", "EXECVE", "PATH"]),
)
def test_any_rest_of_a_record_is_an_event_or_a_reason(rest, kind):
    try:
        found = line("auditd", f"type={kind} msg=audit(1.0:1): pid=1 uid=0 {rest}")
    except Refused:
        return
    assert found.seq == 1


@given(st.text(max_size=120))
def test_whatever_sshd_says_is_an_event_or_a_reason(said):
    try:
        found = sshd(said)
    except Refused:
        return
    assert found.source == "sshd"
