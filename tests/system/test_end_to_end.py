"""From POST /seg/maps to verdicts of a real kernel, through everything that may happen on the way."""

import os
import random
import shutil
import signal
import time
from contextlib import ExitStack

import pytest
from demo import product
from demo.talking import REFUSED, WORKS
from tests.support import probes
from tests.support.kernel import Pinned
from tests.support.site import SERVICE, UNIT, Site, say, until

from aegisflux.domain import snapshot
from aegisflux.wire import canonical

pytestmark = [pytest.mark.engines, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]
ALWAYS, NEVER, ODD, EVEN = 7000, 7001, 7003, 7002
KILLS_EACH = int(os.environ.get("AEGISFLUX_KILLS", "2"))
VICTIMS = ("agent", "orchestrator", "nats", "postgres")
HOSTS = ("alpha", "beta")


@pytest.fixture(scope="module")
def site():
    with Site(HOSTS) as found:
        found.machine("peer").serve("peer", ALWAYS, NEVER, ODD, EVEN)
        for host in HOSTS:
            found.machine(host).talking = found.machine(host).program(UNIT)
        yield found


def marked(site, version):
    """Each version allows ALWAYS, and of ODD and EVEN only its own."""
    return [site.allow("peer", "tcp", port) for port in (ALWAYS, EVEN if version % 2 == 0 else ODD)]


def word(site, host, port, proto="tcp"):
    return site.machine(host).talking.attempt(proto, site.address("peer"), port)["word"]


def judged_by(site, host, version):
    """Whether connects say that this version, or one like it, judges."""
    own, other = (EVEN, ODD) if version % 2 == 0 else (ODD, EVEN)
    words = [word(site, host, port) for port in (ALWAYS, own, other, NEVER)]
    return words == ["connected", "connected", "EPERM", "EPERM"]


def put_in_force(site):
    """Post the next version and wait until the kernels of all hosts judge by it."""
    version = site.next_version()
    answer = site.post(version, marked(site, version))
    assert answer.status == 200, answer
    for host in HOSTS:
        until(lambda host=host: judged_by(site, host, version), 20, site.machine(host).tail_of_log)
    return version, answer.body


def test_a_post_ends_as_verdicts_and_the_ack_is_what_the_kernel_holds(site):
    version, answer = put_in_force(site)
    assert sorted(answer["target_hosts"]) == sorted(HOSTS)
    content = canonical.content_of(snapshot.from_builtins(site.body(version, marked(site, version))))
    assert answer["digest"] == content.digest
    for host in HOSTS:
        until(lambda host=host: site.in_force(host, version))
        (report,) = site.machine(host).ask("status")["services"]
        assert report["tables_digest"] == content.tables_digest


def test_both_forms_of_target_host(site):
    version = site.next_version()
    body = site.body(version, marked(site, version))
    answer = site.api.post("/seg/maps?target_host=alpha,beta&target_host=beta", body)
    assert (answer.status, answer.body["target_hosts"]) == (200, ["alpha", "beta"])
    for host in HOSTS:
        until(lambda host=host: judged_by(site, host, version))


def test_a_partition_changes_nothing_and_ends_by_convergence(site):
    before, _ = put_in_force(site)
    link = f"p{site.machine('alpha').host.number}"
    site.fleet.hub.run(["ip", "link", "set", link, "down"])
    try:
        assert site.post(before + 1, marked(site, before + 1)).status == 200
        until(lambda: judged_by(site, "beta", before + 1))
        assert site.machine("alpha").ask("status")["services"][0]["version"] == before
        assert word(site, "alpha", NEVER) == "EPERM"
    finally:
        site.fleet.hub.run(["ip", "link", "set", link, "up"])
    until(lambda: judged_by(site, "alpha", before + 1), 40, site.machine("alpha").tail_of_log)


@pytest.mark.nightly
def test_kills_at_random_points_of_a_stream_of_updates(site):
    """Nothing is lost or applied twice, nothing forbidden gets through, nothing allowed is refused."""
    seed = int(os.environ.get("AEGISFLUX_SEED", str(time.time_ns() % 10**9)))
    say(f"seed {seed} (AEGISFLUX_SEED repeats it)")
    chance, victims = random.Random(seed), list(VICTIMS) * KILLS_EACH
    chance.shuffle(victims)
    version, _ = put_in_force(site)
    start_load(site)
    with ExitStack() as stack:
        kernels = [stack.enter_context(Pinned(site.machine(host).pins)) for host in HOSTS]
        for victim in victims:
            version = four_more(site, version, victim, chance)
        for host in HOSTS:
            until(lambda host=host: judged_by(site, host, version), 60, site.machine(host).tail_of_log)
    for kernel in kernels:
        applied_once(kernel.seen)
    assert site.api.get(f"/seg/maps/{SERVICE}").body["latest"] == version
    assert until(lambda: everything_announced(site, version))
    check_load(site)


def four_more(site, version, victim, chance):
    """Post four versions; before one of them the victim dies."""
    at = chance.randrange(4)
    for step in range(4):
        version += 1
        if step == at:
            time.sleep(chance.random() * 0.05)
            say(f"version {version}: kill -9 of {victim}")
            end(site, victim, chance)
        accepted(site, version)
    return version


def applied_once(seen):
    """The kernel got each version as one generation, and never an older one after a newer one."""
    numbers, versions = zip(*seen, strict=True)
    assert list(numbers) == sorted(set(numbers)), seen
    assert list(versions) == sorted(set(versions)), seen
    generations = (numbers[-1] - numbers[0]) // 2  # one that stands shorter than the watcher sleeps is unseen
    assert len(seen) - 1 <= generations <= versions[-1] - versions[0], seen


def everything_announced(site, version):
    """Each version once, in the order of the commits."""
    found = site.announced()
    assert found == sorted(set(found))
    return found == list(range(1, version + 1))


def accepted(site, version):
    """Post as a client does whose answer may get lost: again, the same, until it is accepted."""
    body = site.body(version, marked(site, version))

    def posted():
        try:
            answer = site.api.post("/seg/maps", body)
        except OSError:
            return False
        assert answer.status in (200, 503), answer
        return answer.status == 200

    until(posted, 60, site.fleet.tail_of_log)


def end(site, victim, chance):
    if victim != "agent":
        site.kill(victim)
        return
    host = chance.choice(HOSTS)
    site.end_agent(host)
    site.start_agent(host)


def start_load(site):
    for host in HOSTS:
        for name, port in (("always", ALWAYS), ("never", NEVER)):
            site.machine(host).talking.ask(
                do="load", name=name, proto="tcp", address=site.address("peer"), port=port, every=0.01
            )


def check_load(site):
    for host in HOSTS:
        counts = site.machine(host).talking.ask(do="counts")
        assert set(counts["always"]) == {"connected"}, (host, counts)
        assert set(counts["never"]) <= set(REFUSED), (host, counts)


def test_all_hosts_converge_after_the_bus_lost_its_data(site):
    version, _ = put_in_force(site)
    before = {host: site.desired(host) for host in HOSTS}
    assert all(before.values())
    server = site.pids("nats")
    assert (site.data / "nats" / "jetstream").is_dir()
    shutil.rmtree(site.data / "nats" / "jetstream", ignore_errors=True)  # the server writes meanwhile
    until(lambda: site.pids("nats") != server, 20, site.fleet.tail_of_log)
    until(lambda: {host: site.desired(host) for host in HOSTS} == before, 60, site.fleet.tail_of_log)
    version += 1
    accepted(site, version)
    for host in HOSTS:
        until(lambda host=host: judged_by(site, host, version), 60, site.machine(host).tail_of_log)


def test_a_host_boots_without_a_control_plane(site):
    version, _ = put_in_force(site)
    until(lambda: site.confirmed("alpha", version))
    site.fleet.kill_control()
    try:
        site.end_agent("alpha")
        site.start_agent("alpha")
        until(
            lambda: site.reported("alpha").get("state") == "in_force", 20, site.machine("alpha").tail_of_log
        )
        assert site.reported("alpha")["version"] == version
        assert judged_by(site, "alpha", version)
    finally:
        site.start_control()
    put_in_force(site)


def test_all_hosts_converge_after_the_bus_lost_its_data_between_two_starts(site):
    version, _ = put_in_force(site)
    site.fleet.kill_control()
    shutil.rmtree(site.data / "nats")
    site.start_control()
    until(lambda: all(site.desired(host) for host in HOSTS), 60, site.fleet.tail_of_log)
    version += 1
    accepted(site, version)
    for host in HOSTS:
        until(lambda host=host: judged_by(site, host, version), 60, site.machine(host).tail_of_log)


def deadline_of(agent, version):
    (service,) = agent.ask("status")["services"]
    return service["version"] == version and service["deadline"]


@pytest.mark.nightly  # by day over an agent alone: test_agent_kernel.py
def test_a_lease_ends_in_the_kernel_while_the_agent_is_stopped():
    """A posted snapshot is not renewed; nobody has to be alive for its end."""
    with Site(("gamma",), lease=5) as site:
        site.machine("peer").serve("peer", ALWAYS, NEVER)
        agent, talking = site.machine("gamma"), site.machine("gamma").program(UNIT)
        address = site.address("peer")
        allowed = [site.allow("peer", "tcp", ALWAYS)]
        assert site.post(1, allowed, on_expiry="closed").status == 200
        assert talking.until(REFUSED, "tcp", address, NEVER, 20)["word"] in REFUSED
        assert site.post(2, allowed, on_expiry="closed").status == 200
        ends = until(lambda: deadline_of(agent, 2))
        assert talking.attempt("tcp", address, ALWAYS)["word"] == "connected"
        agent.agent.send_signal(signal.SIGSTOP)
        found = talking.until(REFUSED, "tcp", address, ALWAYS, 10)
        late = time.time() - ends
        agent.agent.send_signal(signal.SIGCONT)
        assert found["word"] in REFUSED, "the connect itself, or its first packet"
        assert -1.5 < late < 1.5
        assert product.why(agent, UNIT, "tcp", address, ALWAYS)["reason"] == "expired_closed"


@pytest.mark.nightly  # by day over an agent alone: test_agent_kernel.py
def test_a_unit_restarted_a_hundred_times_never_gets_through(site):
    """A literal path is bound by the kernel before the first process is in it."""
    put_in_force(site)
    host = site.machine("alpha").host
    site.machine("alpha").talking.end()
    words = set()
    for _ in range(100):
        until(lambda: removed(site.cgroup("alpha")))
        words.add(host.call(probes.tcp, site.address("peer"), NEVER, cgroup=f"{UNIT}.service"))
    assert words == {"EPERM"}
    site.machine("alpha").talking = site.machine("alpha").program(UNIT)
    assert word(site, "alpha", ALWAYS) in WORKS


def removed(path):
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
