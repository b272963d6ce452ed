"""Agents told as transcripts: a signed manifest comes, the (simulated) kernel changes, an answer goes."""

import asyncio

import msgspec
import pytest

from aegisflux.domain.errors import OverLimit, Unavailable
from aegisflux.domain.flow import Flow
from aegisflux.domain.manifest import CandidateRef
from aegisflux.domain.net import TCP, parse_address
from aegisflux.wire import subjects
from support.agents import WALL, AgentLab, body, edges


def tcp(peer: str, port: int) -> Flow:
    return Flow("egress", TCP, parse_address(peer), port, 40_000)


ALLOWED, OTHER = tcp("10.0.0.1", 443), tcp("192.0.2.1", 443)


@pytest.fixture
async def lab():
    return await AgentLab().begin()


def content(lab, version=1, service_id=101, **fields):
    return lab.plane.content(body(version, service_id, edges=edges("10.0.0.0/8 tcp/443"), **fields))


async def test_a_manifest_is_applied_and_acked_from_the_kernel(lab):
    made = content(lab)
    await lab.desire(lab.plane.service(made))
    (ack,) = lab.answers()
    assert (ack.serial, ack.version, ack.digest) == (1, 1, made.digest)
    assert ack.tables_digest == lab.kernel.held()[0].tables_digest == made.tables_digest
    assert ack.deadline == WALL + 600
    assert lab.kernel.judge("web/worker", ALLOWED).word == "allowed"
    assert lab.kernel.judge("web", OTHER).word == "blocked"
    assert lab.kernel.judge("db", OTHER).reason == "unmanaged"
    assert [r.state for r in lab.heartbeat().services] == ["in_force"]
    assert lab.heartbeat().services[0].cgroups == ("web",)


async def test_the_same_manifest_again_changes_nothing(lab):
    data = lab.plane.desired(lab.plane.service(content(lab)))
    await lab.give(data)
    lab.answers()
    before, writes = lab.kernel.held(), lab.store.writes
    await lab.give(data)
    assert (lab.kernel.held(), lab.answers(), lab.store.writes) == (before, [], writes)


async def test_the_serial_is_durable_before_anything_is_applied(lab):
    order = []
    write, flip = lab.store.write, lab.kernel.flip
    lab.store.write = lambda name, value: (order.append(name), write(name, value))
    lab.kernel.flip = lambda loaded: (order.append("flip"), flip(loaded))
    await lab.desire(lab.plane.service(content(lab)))
    assert order.index("accepted") < order.index("flip")
    assert "book" in order[: order.index("flip")], "the intent is written down before the flip"


async def test_a_disk_that_is_full_stops_the_manifest_and_not_the_agent(lab):
    await lab.desire(lab.plane.service(content(lab)))

    def full(name, value):
        raise Unavailable("no space left on device")

    write, lab.store.write = lab.store.write, full
    data = lab.plane.desired(lab.plane.service(content(lab, 2)))
    await lab.give(data)
    assert lab.held() == ["active 101 v1"]
    lab.store.write = write
    await lab.give(data)
    assert lab.held() == ["active 101 v2"]


async def test_renewal_moves_only_the_deadline(lab):
    made = content(lab)
    await lab.desire(lab.plane.service(made))
    first = lab.kernel.held()[0]
    lab.clocks.advance(300)
    await lab.desire(lab.plane.service(made))
    second = lab.kernel.held()[0]
    assert second.generation_id == first.generation_id
    assert second.deadline_ns == first.deadline_ns + 300 * 10**9


async def test_a_step_of_the_wall_clock_never_moves_a_deadline_in_the_kernel(lab):
    made = content(lab)
    data = lab.plane.desired(lab.plane.service(made))
    await lab.give(data)
    first = lab.kernel.held()[0].deadline_ns
    for step in (-86_400, 10 * 86_400):
        lab.clocks.wall += step
        await lab.give(data)
        await lab.runner.converge()
        await lab.runner.tick()
    assert lab.kernel.held()[0].deadline_ns == first


async def test_a_wall_clock_that_is_behind_never_lengthens_a_lease(lab):
    made = content(lab)
    data = lab.plane.desired(lab.plane.service(made))
    lab.clocks.wall -= 400_000
    await lab.give(data)
    assert lab.kernel.held()[0].deadline_ns == lab.clocks.boot_ns + 600 * 10**9


async def test_a_lease_ends_in_the_kernel_by_itself(lab):
    await lab.desire(lab.plane.service(content(lab, on_expiry="closed")))
    lab.clocks.advance(601)
    assert lab.kernel.judge("web", ALLOWED).reason == "expired_closed"
    assert lab.heartbeat().services[0].state == "expired"


async def test_a_service_that_is_not_in_the_manifest_is_removed(lab):
    one, two = content(lab), content(lab, service_id=102)
    await lab.desire(lab.plane.service(one), lab.plane.service(two, name="db", selectors=("cgroup:db",)))
    assert lab.held() == ["active 101 v1", "active 102 v1"]
    await lab.desire(lab.plane.service(two, name="db", selectors=("cgroup:db",)))
    assert lab.held() == ["active 102 v1"]
    assert [b.path for b in lab.kernel.bindings()] == ["db"]


async def test_a_service_without_active_is_known_and_not_enforced(lab):
    await lab.desire(lab.plane.service(content(lab)))
    await lab.desire(lab.plane.service(None))
    assert lab.held() == []
    assert lab.kernel.judge("web", OTHER).reason == "unmanaged"


async def test_a_candidate_is_judged_beside_the_active_and_blocks_nothing(lab):
    one, two = content(lab), lab.plane.content(body(2))
    candidate = CandidateRef(2, two.digest)
    await lab.desire(lab.plane.service(one, candidate=candidate))
    assert lab.held() == ["active 101 v1", "candidate 101 v2"]
    assert lab.kernel.judge("web", ALLOWED).word == "allowed"
    await lab.runner.tick()
    assert [(d.role, d.mode) for _, d in lab.runner.reporter.denied] == [("candidate", "observe")]
    await lab.desire(lab.plane.service(one))
    assert lab.held() == ["active 101 v1"]


@pytest.mark.parametrize(
    ("method", "fault", "reason"),
    [
        ("load", OverLimit("map", 1, 2, "tables"), "map_full"),
        ("load", Unavailable("EPERM"), "load_failed"),
        ("flip", Unavailable("EINVAL"), "load_failed"),
    ],
)
async def test_a_failed_load_is_a_named_nack_and_the_last_good_stays(lab, method, fault, reason):
    await lab.desire(lab.plane.service(content(lab)))
    lab.answers()
    lab.kernel.faults[method] = fault
    await lab.desire(lab.plane.service(content(lab, 2)))
    assert lab.said() == [f"nack {reason} 101 v2"]
    assert lab.held() == ["active 101 v1"]
    assert lab.heartbeat().services[0].state == "nacked"
    await lab.runner.converge()
    assert lab.said() == ["ack 101 v2"]
    assert lab.heartbeat().services[0].state == "in_force"


async def test_what_reads_back_differently_never_judges(lab):
    load = lab.kernel.load

    def half_written(slot, role, generation):
        import msgspec

        return msgspec.structs.replace(load(slot, role, generation), tables_digest="sha256:" + "0" * 64)

    lab.kernel.load = half_written
    await lab.desire(lab.plane.service(content(lab)))
    assert lab.said() == ["nack readback_mismatch 101 v1"]
    assert lab.held() == []


async def test_drift_is_found_reported_and_repaired(lab):
    made = content(lab)
    await lab.desire(lab.plane.service(made))
    lab.answers()
    lab.kernel.tamper(0, lab.plane.content(body(9)).tables)
    await lab.runner.drift()
    assert lab.kernel.held()[0].tables_digest == made.tables_digest
    assert lab.said() == ["ack 101 v1"]
    assert lab.heartbeat().services[0].drift
    assert lab.heartbeat().loss == {"drift": 1}


async def test_lost_bindings_are_bound_again(lab):
    await lab.desire(lab.plane.service(content(lab)))
    lab.kernel.bind([])
    await lab.runner.drift()
    assert [b.path for b in lab.kernel.bindings()] == ["web"]


# Cgroups


async def test_cgroups_that_come_and_go_are_followed(lab):
    await lab.desire(lab.plane.service(content(lab), selectors=("unit:web@*", "cgroup:web")))
    lab.cgroups.tree["system.slice/web@1.service"] = 21
    await lab.runner.bind()
    assert lab.kernel.slot_of("system.slice/web@1.service") == 0
    del lab.cgroups.tree["system.slice/web@1.service"]
    lab.cgroups.tree["system.slice/web@2.service"] = 22
    await lab.runner.bind()
    assert {b.cgroup_id for b in lab.kernel.bindings()} == {11, 21, 22}, "sockets may outlive a cgroup"
    assert lab.heartbeat().services[0].cgroups == ("system.slice/web@2.service", "web")


async def test_a_literal_is_bound_by_the_kernel_before_the_agent_knows(lab):
    await lab.desire(lab.plane.service(content(lab), selectors=("unit:web",)))
    lab.kernel.created(31, "system.slice/web.service")
    assert lab.kernel.judge("system.slice/web.service", OTHER).word == "blocked"


async def test_two_services_on_one_cgroup_are_a_conflict_that_is_said(lab):
    one, two = content(lab), content(lab, service_id=102)
    await lab.desire(
        lab.plane.service(one, selectors=("cgroup:w*",)), lab.plane.service(two, selectors=("cgroup:web",))
    )
    reports = {r.service_id: r for r in lab.heartbeat().services}
    assert reports[102].cgroups == ("web",)
    assert reports[101].conflicts == ("web: belongs to service 102",)


async def test_the_agents_own_cgroup_is_never_bound(lab):
    lab.cgroups.own = "web"
    await lab.desire(lab.plane.service(content(lab)))
    assert lab.kernel.bindings() == []


async def test_cut_is_asked_for_after_the_flip(lab):
    await lab.desire(lab.plane.service(content(lab, established="cut")))
    assert lab.kernel.cuts == [0]


# On the bus


async def test_an_agent_that_was_away_converges_on_the_last_value(lab):
    host = lab.plane.host
    for version in (1, 2, 3):
        data = lab.plane.desired(lab.plane.service(content(lab, version)))
        await lab.bus.publish(subjects.desired(host), data, msg_id=f"m{version}")
    await lab.runner.refresh()
    await lab.runner.converge()
    assert lab.held() == ["active 101 v3"]


async def test_a_running_agent_hears_applies_acks_and_beats(lab):
    host, stop, ready = lab.plane.host, asyncio.Event(), asyncio.Event()
    heard = []

    async def hear(messages):
        heard.extend(messages)

    acks = await lab.bus.consume("ACKS", "test", hear)
    life = asyncio.create_task(lab.runner.run(stop, ready.set))
    async with asyncio.timeout(5):
        await ready.wait()
        data = lab.plane.desired(lab.plane.service(content(lab)))
        await lab.bus.publish(subjects.desired(host), data, msg_id="m1")
        while not heard or await lab.bus.last(subjects.heartbeat(host)) is None:
            await asyncio.sleep(0.005)
    assert lab.held() == ["active 101 v1"]
    stop.set()
    await life
    await acks.close()


async def test_a_heartbeat_of_a_crowded_host_fits_into_a_message(lab):
    made = [content(lab, service_id=i) for i in range(101, 357)]
    lab.cgroups.tree = {f"slice-{i}/{'x' * 80}-{n}": i * 100 + n for i in range(101, 357) for n in range(20)}
    await lab.desire(*(lab.plane.service(m, selectors=(f"cgroup:slice-{m.service_id}/*",)) for m in made))
    assert len(lab.held()) == 256
    assert len(msgspec.msgpack.encode(lab.heartbeat())) < 700_000
    await lab.runner.beat()
    assert lab.heartbeat().loss == {"cgroups.cut": 256 * 12}
