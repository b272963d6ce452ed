"""One bad item never fails its list: the others go through, and the bad one is named and counted.

One case for each loop of the agent over something that comes from outside of it.
"""

import os
import struct

import msgspec
import pytest

from aegisflux.adapters.datapath.bpf import listeners, namespaces, traffic
from aegisflux.adapters.inventory.environments import MAX_MOUNTS, Environment, _away, read_environment
from aegisflux.adapters.inventory.tree import Tree
from aegisflux.agent import notes
from aegisflux.agent.collector import Collector
from aegisflux.agent.parts import Feed
from aegisflux.agent.spool import Spool
from aegisflux.agent_bootstrap import load_config
from aegisflux.domain.errors import Invalid, OverLimit, Unavailable
from aegisflux.domain.flow import DEFAULT_FAILSAFE
from aegisflux.domain.manifest import MAX_SERVICES, ActiveRef, ServiceState
from aegisflux.runtime import procfs
from aegisflux.runtime.cgroupfs import own_cgroup, v2_root
from aegisflux.wire import envelope
from support.agents import WALL, AgentLab, body
from support.hosts import Host
from support.sources import FakeSource, Kernel

SECOND = 10**9


# Texts of the kernel that any user writes into: FUSE mounts, names of processes


MOUNTS = os.fsdecode(
    b"24 1 0:22 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    b"30 1 0:30 / /sys/fs/bpf rw shared:1 - bpf bpf rw\n"
    b"31 1 0:31 / /home/u/a\\040b\\134c\\011d rw - fuse.x x rw\n"
    b"32 1 0:32 / /home/u/\xff\xfe rw - fuse.x x rw\n"
    b"33 1 0:33 / /home/u/\xc2\xa0\xe2\x80\xa8x\x0b\x1c\x85y rw - fuse.x x rw\n"
    b"nonsense\n- \n 1 2 - \n"
    b"34 1 0:34 /sub /mnt/part rw - cgroup2 cgroup2 rw\n"
)


def test_a_mount_of_a_user_hides_no_other():
    found = procfs.mounts(MOUNTS)
    assert [(one.kind, one.point) for one in found] == [
        ("cgroup2", "/sys/fs/cgroup/unified"), ("bpf", "/sys/fs/bpf"), ("fuse.x", "/home/u/a b\\c\td"),
        ("fuse.x", "/home/u/\udcff\udcfe"), ("fuse.x", "/home/u/\xa0\u2028x\x0b\x1c\udc85y"),
        ("cgroup2", "/mnt/part"),
    ]  # fmt: skip
    assert str(v2_root(MOUNTS)) == "/sys/fs/cgroup/unified"
    assert notes.bpf_file_systems(MOUNTS) == [notes.Path("/sys/fs/bpf")]


def test_an_own_cgroup_with_strange_bytes_is_one_line():
    assert (
        own_cgroup(os.fsdecode(b"1:name=x:/\n0::/a\x0b\x85\xff\xe2\x80\xa8b\n")) == "a\x0b\udc85\udcff\u2028b"
    )


def test_a_search_enters_no_file_system_of_a_user_whatever_its_name(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_bytes(os.fsencode(MOUNTS))
    away = _away(Tree(tmp_path))
    assert [away(path) for path in ("/home/u/a b\\c\td/venv", "/home/u/\udcff\udcfe", "/home/u")] == [
        True,
        True,
        False,
    ]
    assert MAX_MOUNTS >= 1 << 20


@pytest.mark.parametrize("stat", [b"1 (a\xff) b) \n", b"1 (\x1b[31m) X 1\n", b"", b"1 (x) S 1 2\n"])
def test_a_process_of_any_name_is_looked_at(tmp_path, monkeypatch, stat):
    (tmp_path / "1").mkdir()
    (tmp_path / "1/stat").write_bytes(stat)
    monkeypatch.setattr(procfs, "PROC", tmp_path)
    assert procfs.start_time(1) is None


# Packages


@pytest.fixture
def host(tmp_path):
    (tmp_path / "root").mkdir()
    return Host(tmp_path / "root")


def test_a_link_of_a_user_to_a_name_that_is_no_text_stops_no_inventory(host):
    host.environment("/home/u/venv")
    host.environment("/opt/app")
    folder = os.fsencode(host.root / "home/u/venv")
    os.rename(folder + b"/bin", folder + b"/\xff\x1b")
    os.symlink(b"\xff\x1b", folder + b"/bin")
    found = host.take()
    assert [(one.where, one.binaries) for one in found.packages] == [
        ("/home/u/venv", ("/home/u/venv/\\xff\x1b/app",)), ("/opt/app", ("/opt/app/bin/app",))
    ]  # fmt: skip


def test_a_stanza_that_cannot_be_read_leaves_the_others(host):
    for name in ("a", "c"):
        host.write(f"/var/lib/dpkg/status.d/{name}", f"Package: {name}\nVersion: 1\n")
    host.write("/var/lib/dpkg/status.d/d", b"Package: d\x00\xff\x1b\nVersion: 1\n")
    (host.root / "var/lib/dpkg/status.d/b").symlink_to("nowhere")
    (host.root / "var/lib/dpkg/status.d/e").mkdir()
    found = host.take()
    assert [one.name for one in found.packages] == ["a", "c", "d\ufffd\ufffd\ufffd"]


def test_one_site_that_cannot_be_read_leaves_the_others_of_its_environment(host):
    host.environment("/opt/app")
    sites = ("/opt/app/lib/python3.9/gone", "/opt/app/lib/python3.11/site-packages")
    found = read_environment(Tree(host.root), Environment("/opt/app", sites), frozenset(), lambda: False)
    assert [one.package.name for one in found.listed] == ["app"]
    assert "python3.9/gone" in found.troubles[0]


# Telemetry


@pytest.mark.parametrize("method", ["open", "read", "done", "resume"])
@pytest.mark.parametrize("error", [OSError(5, "io"), ValueError("x"), struct.error("short"), IndexError("y")])
def test_a_source_that_fails_leaves_the_others(tmp_path, method, error):
    bad, good = FakeSource(Kernel(), "bad"), FakeSource(Kernel(), "good")
    for source in (bad, good):
        source.kernel.happen(3)
    bad.refuse[method] = error
    logs = []
    for _ in range(2):  # the second one resumes
        spool = Spool(tmp_path, "web1", "boot-1", 64 << 20)
        collector = Collector(
            [Feed(bad, "events"), Feed(good, "events")], spool, "web1", "boot-1", 1e6, logs.append
        )
        for now in range(1, 5):
            collector.step(float(now), WALL * SECOND)
            if now == 1:
                good.kernel.happen(3)
        assert collector.report["sources"]["good"] == "open"
        collector.close()
    assert good.kernel.done == len(good.kernel.events)
    assert any(line.startswith(f"telemetry: bad: {type(error).__name__}") for line in logs)


def test_a_namespace_that_cannot_be_read_leaves_the_others_and_is_counted(monkeypatch):
    fds = {7: os.open("/", os.O_RDONLY), 8: os.open("/", os.O_RDONLY), 9: os.open("/", os.O_RDONLY)}
    key, look = listeners.Key(6, "10.0.0.1", 80, "web"), listeners.Look({})

    def inside_each(spaces, _call):
        bad = {fds[8]: struct.error("short"), fds[9]: PermissionError(1, "setns")}
        look.take(listeners.Origin(7, "root"), key, 5)
        return [bad.get(fd) for fd in spaces]

    monkeypatch.setattr(listeners, "namespaces", lambda *_: fds)
    monkeypatch.setattr(listeners, "inside_each", inside_each)
    monkeypatch.setattr(listeners, "account_of", lambda _: None)
    assert listeners._Walk(look, lambda _: "web").everywhere() == {8, 9}
    assert list(look.found) == [key]


@pytest.mark.parametrize("error", [OSError(1, "x"), struct.error("x"), ValueError("x"), IndexError("x")])
def test_what_fails_inside_a_namespace_is_raised_outside(monkeypatch, error):
    class Libc:
        def setns(self, *_):
            return 0

    def call():
        raise error

    monkeypatch.setattr(namespaces, "_libc", Libc())
    with pytest.raises(type(error)):
        namespaces.inside(0, call)


def test_a_flow_record_of_no_program_of_ours_is_counted(monkeypatch, tmp_path):
    source = traffic.Traffic(tmp_path, None, None)
    source._cgroups = type("Names", (), {"begin": lambda _: None})()
    source._entries = [(b"good", b""), (b"bad", b""), (b"good", b"")]
    monkeypatch.setattr(source, "_services", lambda _: {})

    def event(seq, key, *_):
        if key == b"bad":
            raise struct.error("short")
        return seq

    monkeypatch.setattr(source, "_event", event)
    reading = source.read(5, 10)
    assert reading.events == (5, 6)
    assert source._malformed == 1


# Desired state


@pytest.fixture
async def lab():
    return await AgentLab().begin()


def ids(lab):
    return sorted(held.service_id for held in lab.kernel.held())


def content(lab, number, version=1):
    return lab.plane.content(body(version, number))


BAD = {
    "a lease of more than 30 days": lambda good: msgspec.structs.replace(
        good, active=msgspec.structs.replace(good.active, lease_until=WALL + 40 * 86_400)
    ),
    "another digest under a known version": lambda good: msgspec.structs.replace(
        good, active=msgspec.structs.replace(good.active, digest="sha256:" + "0" * 64)
    ),
    "a digest that is none": lambda good: msgspec.structs.replace(
        good, active=ActiveRef(2, "sha256:x", WALL + 60)
    ),
    "a name that is no text": lambda good: msgspec.structs.replace(good, name=msgspec.Raw(b"\xa1\xff")),
    "selectors that are numbers": lambda good: msgspec.structs.replace(good, selectors=(1, 2)),
    "no number": lambda good: msgspec.structs.replace(good, service_id="x"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_service_of_a_manifest_that_cannot_be_believed_stays_as_it_was(lab, bad):
    web, db, new = (lab.plane.service(content(lab, n)) for n in (101, 102, 103))
    await lab.desire(web, db)
    lab.answers()
    await lab.desire(BAD[bad](web), db, new)
    assert ids(lab) == [101, 102, 103]
    nack, ack = lab.answers()
    named = None if bad == "no number" else 101
    assert (type(nack).__name__, nack.service_id, ack.service_id) == ("Nack", named, 103)
    failures = lab.runner.applier.failures
    assert set(failures) == (set() if named is None else {101})
    await lab.desire(web, db, new)
    assert lab.runner.applier.failures == {}
    await lab.desire(db)
    assert ids(lab) == [102]


async def test_a_manifest_of_which_no_service_can_be_believed_changes_nothing(lab):
    web = lab.plane.service(content(lab, 101))
    await lab.desire(web)
    lab.answers()
    await lab.desire(BAD["a digest that is none"](web))
    assert ids(lab) == [101]
    assert lab.said() == ["nack bad_schema"]


async def test_a_service_that_is_named_twice_is_refused_and_the_others_are_not(lab):
    web, db = (lab.plane.service(content(lab, n)) for n in (101, 102))
    await lab.desire(web, msgspec.structs.replace(web, name="other"), db)
    assert ids(lab) == [102]
    assert [type(one).__name__ for one in lab.answers()] == ["Nack", "Ack"]


async def test_too_many_services_are_refused_also_when_they_cannot_be_read(lab):
    bad = ServiceState("x", "x", ())
    await lab.desire(*(bad for _ in range(MAX_SERVICES)), lab.plane.service(content(lab, 101)))
    assert lab.said() == ["nack over_limit"]


@pytest.mark.parametrize(
    "error", [OverLimit("x", 1, 2, "x"), Invalid("x", "y"), KeyError(5), struct.error("z")]
)
@pytest.mark.parametrize("method", ["load", "renew", "remove"])
async def test_a_step_that_fails_for_one_service_stops_no_other(lab, method, error):
    services = [lab.plane.service(content(lab, n)) for n in (101, 102, 103)]
    if method != "load":
        await lab.desire(*services)
    slot = lab.runner.applier.book.services[102].slot if method != "load" else 1
    real = getattr(lab.kernel, method)

    def fails(at, *values):
        if at == slot:
            raise error
        return real(at, *values)

    setattr(lab.kernel, method, fails)
    lab.answers()
    later = [
        lab.plane.service(content(lab, n), lease=WALL + 500 if method == "renew" else None)
        for n in (101, 102, 103)
    ]
    await lab.desire(*(() if method == "remove" else later))
    answers = lab.answers()
    assert 102 in [one.service_id for one in answers if type(one).__name__ == "Nack"]
    if method == "remove":
        assert ids(lab) == [102]
    else:
        assert {101, 103} <= {one.service_id for one in answers if type(one).__name__ == "Ack"}


async def test_a_stray_that_cannot_be_removed_stops_neither_start_nor_repair(lab):
    services = [lab.plane.service(content(lab, n)) for n in (101, 102)]
    await lab.desire(*services)
    lab.runner.applier.book = msgspec.structs.replace(lab.runner.applier.book, services={})
    real = lab.kernel.remove

    def fails(slot, role):
        if slot == 0:
            raise OSError(16, "busy")
        real(slot, role)

    lab.kernel.remove = fails
    await lab.runner.applier.recover(lab.kernel.held())
    assert ids(lab) == [101]
    assert any("slot 0" in line for line in lab.logs)
    assert lab.heartbeat().loss["slots"] == 1


async def test_counters_of_one_service_that_cannot_be_read_leave_those_of_the_others(lab):
    await lab.desire(*(lab.plane.service(content(lab, n)) for n in (101, 102)))
    real = lab.kernel.counters

    def counters(slot):
        if slot == 0:
            raise Unavailable("gone")
        return real(slot)

    lab.kernel.counters = counters
    await lab.runner.reporter.count({101: 0, 102: 1})
    assert 102 in lab.runner.reporter.verdicts
    assert lab.heartbeat().loss["counters"] == 1


async def test_a_damaged_message_is_dropped_and_counted(lab):
    """Who could make a host answer could make it sign."""
    for data in (
        b"\xff",
        b"\x93\xa1\xff\xa1\xff\x90",
        b"\x91" * 5000,
        envelope.encode(envelope.Envelope("", b"", ())),
    ):
        assert not await lab.runner.receive(data)
    assert lab.said() == []
    assert sum(n for name, n in lab.heartbeat().loss.items() if name.startswith("dropped.")) == 4


# Settings


GOOD = {"direction": "ingress", "proto": "tcp", "port": 2222}
NO_PATHS = (
    "", "/", "unit:x", "Unit:x", "cgroup:x", "cgroup:/x", "unit:x*", "/unit:x", "0::/x", "1:name=systemd:/x",
    "x-*", "x?", "x/[ab]", "a//b",
    "./x", "a/../b", "a/.", " x", "x ", "a/ /b", "a\nb", "a\0b", "/sys/fs/cgroup/unified/x",
    "/sys/fs/cgroup/x", "sys/fs/cgroup", "x" * 254, "a/" * 31 + "b", 5,
)  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        {"direction": "in", "proto": "tcp", "port": 22},
        {"direction": "ingress", "proto": "tcp", "port": 70_000},
        {"direction": "ingress", "proto": "tcp", "port": -1},
        {"direction": "ingress", "proto": "tcp", "port": 22, "cidr": "10.0.0.0/99"},
        {"direction": "ingress", "proto": "tcp", "port": 22, "cgruop": "x"},
        {"proto": "tcp"},
        "tcp/22",
        {"direction": "ingress\x1b[31m", "proto": "tcp", "port": 22},
        *({**GOOD, "cgroup": text} for text in NO_PATHS),
    ],
)
async def test_a_failsafe_line_that_is_wrong_takes_no_other_with_it(tmp_path, monkeypatch, bad):
    monkeypatch.setenv(
        "AEGISFLUX_AGENT_FAILSAFE", msgspec.json.encode([GOOD, bad, GOOD | {"port": 2223}]).decode()
    )
    found = load_config(tmp_path / "none") if (tmp_path / "none").exists() else load_config()
    settings = found.settings()
    assert [rule.port for rule in settings.failsafe] == [22, 2222, 2223]
    (text,) = settings.failsafe_refused
    assert text.startswith("failsafe 2: ")
    assert text.isprintable()
    lab = await AgentLab(failsafe=settings.failsafe, failsafe_refused=settings.failsafe_refused).begin()
    assert lab.heartbeat().loss == {"failsafe.refused": 1}


def test_lines_that_have_no_room_are_named(monkeypatch):
    lines = [GOOD | {"port": port} for port in range(1, 20)]
    monkeypatch.setenv("AEGISFLUX_AGENT_FAILSAFE", msgspec.json.encode(lines).decode())
    settings = load_config().settings()
    assert [rule.port for rule in settings.failsafe] == [22, *range(1, 16)]
    assert len(settings.failsafe_refused) == 4


def test_a_failsafe_that_is_well_is_as_it_was_written(monkeypatch):
    monkeypatch.setenv("AEGISFLUX_AGENT_FAILSAFE", msgspec.json.encode([GOOD]).decode())
    settings = load_config().settings()
    assert ([rule.port for rule in settings.failsafe], settings.failsafe_refused) == ([2222], ())
    monkeypatch.delenv("AEGISFLUX_AGENT_FAILSAFE")
    assert load_config().settings().failsafe == DEFAULT_FAILSAFE
    monkeypatch.setenv("AEGISFLUX_AGENT_FAILSAFE", "[{")
    with pytest.raises(Invalid, match="AEGISFLUX_AGENT_FAILSAFE"):
        load_config()
