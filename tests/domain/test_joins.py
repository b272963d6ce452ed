"""What enrichment adds to an event, told as a story of two hosts."""

import pytest

from aegisflux.domain.address_class import address_class
from aegisflux.domain.enriched import Indicator, OpenVulnerability, PackageRef
from aegisflux.domain.event import Ancestor, Auth, EventBatch, Exec, Exit, FlowSeen, Listen, Log, VerdictSeen
from aegisflux.domain.inventory import Package, PackageInventory, System
from aegisflux.domain.joins import MAX_ADDRESSES, MAX_BOOTS, MAX_LISTENERS, MAX_PROCESSES, Joins
from aegisflux.domain.known import Known, KnownHost, KnownListener, KnownService, KnownVulnerability

WEB, DB = KnownHost("web-1", {"role": "web"}, ("10.0.0.1",)), KnownHost("db-1", {"role": "db"}, ("10.0.0.2",))
SERVICES = (
    KnownService(101, "web", ("unit:web",), {"role": "web"}),
    KnownService(102, "db", ("cgroup:system.slice/db.service",), {}),
)
NGINX = Package(type="deb", name="nginx", version="1.22.1-9", source="nginx", binaries=("/usr/sbin/nginx",))
INVENTORY = PackageInventory(
    host_id="web-1", taken_ns=1, digest="sha256:1", system=System(id="debian"), packages=(NGINX,)
)
BASH = Ancestor(7, 70, "bash")


@pytest.fixture
def joins():
    found = Joins()
    found.learn(Known(hosts=(WEB, DB), services=SERVICES, listeners=(), inventories=(INVENTORY,)))
    return found


def one(joins, host, event, boot="b"):
    batch = EventBatch(host_id=host, boot_id=boot, sent_ns=1, events=(event,))
    (enriched,) = joins.enrich(batch, 5).events
    assert enriched.event == event
    return enriched.context


def flow(
    direction="egress",
    local="10.0.0.1",
    peer="10.0.0.2",
    port=5432,
    cgroup="/system.slice/web.service",
    **more,
):
    return FlowSeen(
        seq=1, time_ns=1, direction=direction, proto=6, local=local, peer=peer, port=port,
        first_ns=1, last_ns=1, cgroup=cgroup, **more,
    )  # fmt: skip


def listen(port=5432, address="0.0.0.0", closed=False, cgroup="/system.slice/db.service", **more):
    return Listen(seq=1, time_ns=1, proto=6, address=address, port=port, closed=closed, cgroup=cgroup, **more)


def execed(pid=10, path="/usr/sbin/nginx", cgroup="/system.slice/web.service"):
    return Exec(seq=1, time_ns=1, pid=pid, start_ns=pid, uid=0, path=path, cgroup=cgroup, ancestors=(BASH,))


def test_a_flow_knows_the_services_of_both_ends(joins):
    one(joins, "db-1", listen())
    found = one(joins, "web-1", flow())
    assert (found.service_id, found.service) == (101, "web")
    assert (found.peer_class, found.peer_host, found.peer_service_id, found.peer_service) == (
        "private", "db-1", 102, "db",
    )  # fmt: skip


def test_the_callee_knows_the_caller_from_the_other_side(joins):
    seen = flow("ingress", "10.0.0.2", "10.0.0.1", cgroup="/system.slice/db.service")
    assert one(joins, "db-1", seen).peer_service_id is None
    one(joins, "web-1", flow())
    found = one(joins, "db-1", seen)
    assert (found.service, found.peer_host, found.peer_service) == ("db", "web-1", "web")


def test_two_callers_on_one_host_are_nobody(joins):
    one(joins, "web-1", flow())
    one(joins, "web-1", flow(cgroup="/user.slice"))
    found = one(joins, "db-1", flow("ingress", "10.0.0.2", "10.0.0.1", cgroup="/system.slice/db.service"))
    assert (found.peer_host, found.peer_service_id) == ("web-1", None)


def test_a_listener_that_ends_is_no_service(joins):
    one(joins, "db-1", listen())
    assert one(joins, "web-1", flow()).peer_service == "db"
    one(joins, "db-1", listen(closed=True))
    assert one(joins, "web-1", flow()).peer_service_id is None


def test_a_listener_on_another_address_is_not_the_peer(joins):
    one(joins, "db-1", listen(address="127.0.0.1"))
    assert one(joins, "web-1", flow()).peer_service_id is None


def test_listeners_of_the_store_are_known_after_a_restart():
    joins = Joins()
    known = KnownListener("db-1", 6, "0.0.0.0", 5432, 102, "/system.slice/db.service")
    joins.learn(Known(hosts=(WEB, DB), services=SERVICES, listeners=(known,), inventories=()))
    assert one(joins, "web-1", flow()).peer_service == "db"


def test_the_kernels_word_beats_the_selectors(joins):
    assert one(joins, "web-1", flow(service_id=7)).service == "service-7"


def test_a_service_of_other_labels_is_not_of_this_host(joins):
    assert one(joins, "db-1", flow()).service_id is None


def test_a_cgroup_below_that_of_a_service_belongs_to_it(joins):
    assert one(joins, "web-1", flow(cgroup="/system.slice/web.service/worker/3")).service == "web"


def test_what_changes_holds_for_the_next_event(joins):
    assert one(joins, "web-1", flow()).service == "web"
    joins.learn_services([KnownService(101, "front", ("unit:web",), {})])
    joins.learn_hosts([KnownHost("web-1", {"role": "x"}, ()), KnownHost("new", {}, ("10.0.0.2",))])
    found = one(joins, "web-1", flow())
    assert (found.service, found.peer_host) == ("front", "new")


def test_a_service_that_comes_later_owns_what_listened_and_called_before():
    """Whoever registers services after the agents came must not restart anything."""
    joins = Joins()
    joins.learn_hosts([WEB, DB])
    seen = flow("ingress", "10.0.0.2", "10.0.0.1", cgroup="/system.slice/db.service")
    one(joins, "db-1", listen())
    assert one(joins, "web-1", flow()).peer_service_id is None
    assert one(joins, "db-1", seen).peer_service_id is None
    joins.learn_services(SERVICES)
    assert one(joins, "web-1", flow()).peer_service == "db"
    assert one(joins, "db-1", seen).peer_service == "web"
    joins.learn_services(SERVICES[:1])
    assert one(joins, "web-1", flow()).peer_service_id is None


def test_listeners_that_change_hands_are_named_once(joins):
    joins.learn_services([])
    one(joins, "db-1", listen())
    one(joins, "db-1", listen(port=80, service_id=7))
    assert joins.moved_listeners() == []
    joins.learn_services(SERVICES)
    moved = KnownListener("db-1", 6, "0.0.0.0", 5432, 102, "/system.slice/db.service")
    assert (joins.moved_listeners(), joins.moved_listeners()) == ([moved], [])
    joins.learn_hosts([WEB, DB])
    assert joins.moved_listeners() == []


def test_a_listener_of_the_store_is_of_the_service_that_its_cgroup_has_now():
    known = KnownListener("db-1", 6, "0.0.0.0", 5432, 999, "/system.slice/db.service")
    told = KnownListener("db-1", 6, "0.0.0.0", 80, 101, "")
    joins = Joins()
    joins.learn(Known(hosts=(WEB, DB), services=SERVICES, listeners=(known, told), inventories=()))
    assert one(joins, "web-1", flow()).peer_service == "db"
    assert one(joins, "web-1", flow(port=80)).peer_service == "web"
    assert [(known.port, known.service_id) for known in joins.moved_listeners()] == [(5432, 102)]


def test_an_address_of_two_hosts_is_of_none(joins):
    joins.learn_hosts([WEB, DB, KnownHost("copy", {}, ("10.0.0.2",))])
    assert one(joins, "web-1", flow()).peer_host == ""
    assert joins.misses["peer_host"] == 1


def test_an_exec_knows_its_package(joins):
    assert one(joins, "web-1", execed()).package == PackageRef("deb", "nginx", "1.22.1-9", "nginx")
    assert one(joins, "web-1", execed(path="/tmp/x")).package is None
    assert joins.misses["package"] == 1


def test_a_flow_knows_the_binary_and_the_ancestry_of_its_process(joins):
    one(joins, "web-1", execed(pid=10))
    found = one(joins, "web-1", flow(pid=10, start_ns=10))
    assert (found.path, found.ancestors, found.package.name) == ("/usr/sbin/nginx", (BASH,), "nginx")
    other_boot = one(joins, "web-1", flow(pid=10, start_ns=10, port=1), boot="c")
    assert (other_boot.path, other_boot.ancestors) == ("", ())
    assert joins.misses["process"] == 1


def test_an_exit_knows_what_ended_and_ends_it(joins):
    one(joins, "web-1", execed(pid=10))
    ended = Exit(seq=2, time_ns=2, pid=10, start_ns=10)
    assert one(joins, "web-1", ended).path == "/usr/sbin/nginx"
    assert one(joins, "web-1", ended).path == ""


def test_processes_are_bounded_and_the_oldest_goes(joins):
    for pid in range(MAX_PROCESSES + 1):
        one(joins, "web-1", execed(pid=pid))
    assert one(joins, "web-1", flow(pid=0, start_ns=0)).path == ""
    assert one(joins, "web-1", flow(pid=1, start_ns=1, port=1)).path == "/usr/sbin/nginx"


def test_requests_of_third_parties_are_forgotten_before_the_boot_of_the_host(joins):
    one(joins, "web-1", execed(pid=10))
    for number in range(3 * MAX_BOOTS):
        one(joins, "web-1", execed(pid=11), boot=f"http:{number}")
    assert len(joins._hosts["web-1"].processes) == MAX_BOOTS
    assert one(joins, "web-1", flow(pid=10, start_ns=10)).path == "/usr/sbin/nginx"


def test_boots_and_listeners_of_a_host_are_bounded(joins):
    for number in range(2 * MAX_LISTENERS):
        one(joins, "web-1", listen(port=number), boot=str(number))
    for number in range(2 * MAX_ADDRESSES):
        one(joins, "web-1", listen(port=1, address=f"10.1.0.{number}"))
    host = joins._hosts["web-1"]
    assert (len(host.processes), len(host.listeners)) == (MAX_BOOTS, MAX_LISTENERS)
    assert len(host.listeners[6, 1]) == MAX_ADDRESSES


def test_a_released_host_has_no_labels_and_no_addresses(joins):
    joins.learn_hosts([DB])
    assert one(joins, "web-1", flow(peer="10.0.0.1")).peer_class == "private"
    assert joins.misses["host"] == 1


def test_a_denied_flow_knows_its_peer(joins):
    one(joins, "db-1", listen())
    seen = VerdictSeen(
        seq=1, time_ns=1, service_id=101, direction="egress", proto=6, peer="10.0.0.2", peer_port=5432,
        verdict="blocked", reason="no_match",
    )  # fmt: skip
    assert one(joins, "web-1", seen).peer_service == "db"


def test_events_of_third_parties_know_what_can_be_known(joins):
    auth = Auth(seq=1, time_ns=1, source="sshd", success=False, address="10.0.0.1")
    assert one(joins, "db-1", auth).peer_host == "web-1"
    log = Log(seq=1, time_ns=1, source="falco", message="m", exe="/usr/sbin/nginx")
    assert one(joins, "web-1", log).package.name == "nginx"
    assert one(joins, "web-1", Log(seq=1, time_ns=1, source="falco", message="m")).package is None


CVE = OpenVulnerability(id="CVE-2026-1", package="nginx", severity="high", kev=True, epss=0.9)


def test_an_open_vulnerability_is_of_the_package_as_that_host_has_it(joins):
    has = PackageRef("deb", "nginx", "1.22.1-9", "nginx")
    other = PackageRef("deb", "nginx", "1.23", "nginx")
    assert one(joins, "web-1", execed()).vulnerabilities == ()
    joins.learn_vulnerabilities([KnownVulnerability("web-1", has, CVE), KnownVulnerability("db-1", has, CVE)])
    assert one(joins, "web-1", execed()).vulnerabilities == (CVE,)
    assert one(joins, "web-1", flow(pid=10, start_ns=10)).vulnerabilities == (CVE,)
    assert one(joins, "web-1", execed(path="/usr/bin/true")).vulnerabilities == ()
    assert one(joins, "db-1", execed()).vulnerabilities == ()
    joins.learn_vulnerabilities([KnownVulnerability("web-1", other, CVE)])
    assert one(joins, "web-1", execed()).vulnerabilities == ()


def test_indicators_are_of_the_peer_or_the_path(joins):
    address = Indicator(value="10.0.0.2", kind="ip", feed="own")
    path = Indicator(value="/usr/sbin/nginx", kind="path", feed="own")
    joins.learn_indicators([address, path])
    assert one(joins, "web-1", flow(path="/usr/sbin/nginx")).indicators == (address, path)
    assert one(joins, "web-1", execed()).indicators == (path,)
    auth = Auth(seq=1, time_ns=1, source="sshd", success=False, address="10.0.0.2")
    assert one(joins, "web-1", auth).indicators == (address,)
    joins.learn_indicators([])
    assert one(joins, "web-1", execed()).indicators == ()


def test_an_unknown_host_is_counted(joins):
    one(joins, "stranger", flow())
    assert joins.misses["host"] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.2.3", "private"),
        ("172.31.255.255", "private"),
        ("172.32.0.0", "public"),
        ("8.8.8.8", "public"),
        ("127.0.0.2", "loopback"),
        ("169.254.1.1", "link_local"),
        ("100.64.0.1", "shared"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("0.0.0.0", "unspecified"),
        ("198.51.100.7", "documentation"),
        ("240.0.0.1", "reserved"),
        ("::1", "loopback"),
        ("fe80::1", "link_local"),
        ("fd00::1", "private"),
        ("2001:db8::1", "documentation"),
        ("2606:4700::1", "public"),
        ("ff02::1", "multicast"),
        ("::ffff:10.0.0.1", "private"),
        ("nonsense", None),
    ],
)
def test_the_class_of_an_address(text, expected):
    assert address_class(text) == expected
