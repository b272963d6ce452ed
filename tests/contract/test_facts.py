"""The store of facts on a real PostgreSQL: every event once, whatever is repeated, killed or raced."""

import asyncio
import os
import random
import signal
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from msgspec.structs import replace
from tests.support.engines import eventually
from tests.support.facts import NOON, SECOND, enriched, execed, flow, listen

from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.adapters.store import postgres
from aegisflux.adapters.store.facts import PostgresFacts
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.domain.enriched import Context, PackageRef
from aegisflux.domain.errors import Conflict, Invalid, Unavailable
from aegisflux.domain.event import Auth, Exit, File, Log, VerdictSeen
from aegisflux.domain.inventory import Package, PackageInventory, System, digest_of
from aegisflux.runtime.supervise import Process
from aegisflux.services.enrich.readers import Asked, Readers

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
DAY = 86_400
KEEP = {"flows": 14 * DAY, "events": 30 * DAY, "flow_minutes": 400 * DAY, "sources": 400 * DAY}
TABLES = "flows, events, flow_minutes, listeners, sources, inventories, packages, package_changes"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts")
    engine = PostgresEngine(folder / "postgres", log=folder / "postgres.log")
    process = Process(engine.child(), folder / "run")
    (folder / "run").mkdir(exist_ok=True)
    await process.start()
    store = PostgresStore(engine.dsn, b"k" * 32)
    await store.open()
    await store.close()
    try:
        yield engine, process
    finally:
        await process.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def facts(server):
    found = PostgresFacts(server[0].dsn)
    await found.open_writer()
    await found._writer.execute(f"truncate {TABLES} restart identity")
    try:
        yield found
    finally:
        await found.close()


async def ids(facts, table="flows"):
    """(host, boot, sequence) of all rows."""
    rows = await facts._writer.fetch(
        f"select host_id, boot_id, seq from {table} t join sources s on s.id = t.source order by 1, 2, 3"
    )
    return [tuple(row) for row in rows]


async def seen(facts, host="web-1"):
    return await facts._writer.fetchval("select seen::text from sources where host_id = $1", host)


async def test_every_query_is_understood_by_the_server(facts):
    for name, text in postgres.named_queries("facts.sql").items():
        try:
            await facts._writer.prepare(text)
        except Exception as error:
            pytest.fail(f"{name}: {error}")


async def test_a_flow_is_a_row_field_by_field(facts):
    context = Context(
        service_id=101, service="web", peer_class="private", peer_host="db-1", peer_service_id=102,
        path="/usr/bin/psql", package=PackageRef("deb", "postgresql-client", "15"),
    )  # fmt: skip
    stored = await facts.commit([enriched(flow(7, pid=9), context=context)])
    assert (stored.new, stored.known) == (1, 0)
    (row,) = await facts._writer.fetch("select * from flows_view")
    found = dict(row)
    assert found.pop("time").timestamp() == NOON / 1e9
    assert found.pop("first_at").timestamp() == (NOON - SECOND) / 1e9
    assert (str(found.pop("local")), str(found.pop("peer"))) == ("10.0.0.1", "10.0.0.2")
    assert found == {
        "host_id": "web-1", "seq": 7, "direction": "egress", "verdict": "allowed", "reason": "allow",
        "proto": 6, "port": 5432, "service_id": 101, "service": "", "peer_service_id": 102,
        "peer_service": "",
        "peer_host": "db-1", "peer_class": "private", "cgroup": "/system.slice/web.service",
        "path": "/usr/bin/psql", "package": "postgresql-client 15", "connections": 1, "packets_out": 3,
        "packets_in": 2, "bytes_out": 300, "bytes_in": 200, "source": 1,
    }  # fmt: skip


async def test_every_kind_of_event_is_a_row_with_its_body(facts):
    events = [
        execed(1, args=("env", "-i", "\x1b[31m\\u0000\0")),
        Exit(seq=2, time_ns=NOON, pid=5, start_ns=1, code=3),
        listen(3),
        VerdictSeen(
            seq=4, time_ns=NOON, service_id=1, direction="egress", proto=6, peer="fd00::1", verdict="blocked",
            reason="no_match",
        ),
        Auth(seq=5, time_ns=NOON, source="sshd", success=False, user="root", address="203.0.113.9"),
        File(seq=6, time_ns=NOON, source="auditd", action="open", path="/etc/shadow", uid=0),
        Log(seq=7, time_ns=NOON, source="falco", message="m", exe="/bin/sh"),
    ]  # fmt: skip
    assert (await facts.commit([enriched(*events)])).new == 7
    rows = await facts._writer.fetch("select kind, pid, path, user_name, peer, body from events order by seq")
    assert [tuple(map(str, row[:5])) for row in rows] == [
        ("exec", "1001", "/usr/bin/env", "33", "None"),
        ("exit", "5", "", "", "None"),
        ("listen", "None", "", "", "0.0.0.0"),
        ("verdict", "None", "", "", "fd00::1"),
        ("auth", "None", "", "root", "203.0.113.9"),
        ("file", "None", "/etc/shadow", "0", "None"),
        ("log", "None", "/bin/sh", "", "None"),
    ]
    assert rows[0]["body"]["event"]["args"] == ["env", "-i", "\x1b[31m\\u0000\\0"]
    assert rows[0]["body"]["event"]["ancestors"] == [[1, 1, "init"]]
    assert rows[6]["body"]["context"]["service"] == "web"


async def test_nul_and_nonsense_addresses_fail_nothing(facts):
    odd = flow(1, cgroup="/a\0b", peer="not an address", path="/x\0y")
    assert (await facts.commit([enriched(odd)])).new == 1
    (row,) = await facts._writer.fetch("select cgroup, peer, path from flows")
    assert tuple(row) == ("/a\\0b", None, "/x\\0y")


async def test_a_batch_that_comes_again_adds_nothing(facts):
    batch = enriched(flow(1), flow(2), execed(3))
    assert (await facts.commit([batch, batch])).new == 3
    assert (await facts.commit([batch])).known == 3
    again = PostgresFacts(facts._dsn)
    await facts.close()
    await again.open_writer()
    try:
        stored = await again.commit([batch, enriched(flow(2), flow(4))])
        assert (stored.new, stored.known) == (1, 4)
        assert await ids(again) == [("web-1", "boot-1", n) for n in (1, 2, 4)]
        assert await seen(again) == "{[1,5)}"
    finally:
        await again.close()


async def test_gaps_are_kept_and_filled(facts):
    await facts.commit([enriched(flow(1), flow(2), flow(10))])
    assert await seen(facts) == "{[1,3),[10,11)}"
    await facts.commit([enriched(flow(2), flow(3), flow(9))])
    assert await seen(facts) == "{[1,4),[9,11)}"
    assert [number for _, _, number in await ids(facts)] == [1, 2, 3, 9, 10]


async def test_hosts_and_boots_count_on_their_own(facts):
    batches = [enriched(flow(1), host=f"h{n}", boot=f"b{n % 2}") for n in range(300)]
    assert (await facts.commit(batches)).new == 300
    assert (await facts.commit([enriched(flow(1), host="h1", boot="b9")])).new == 1


async def test_flows_are_added_up_by_minute(facts):
    await facts.commit([enriched(flow(1), flow(2), flow(3, NOON + 60 * SECOND), flow(4, verdict="blocked"))])
    await facts.commit([enriched(flow(5), flow(5))])
    rows = await facts._writer.fetch(
        "select verdict, flows, connections, bytes_out from flow_minutes order by minute, verdict"
    )
    assert [tuple(row) for row in rows] == [
        ("allowed", 3, 3, 900),
        ("blocked", 1, 1, 300),
        ("allowed", 1, 1, 300),
    ]


async def test_listeners_are_what_was_said_last(facts):
    await facts.commit([enriched(listen(1), listen(2, port=80), host="db-1")])
    await facts.commit([enriched(listen(3, port=80, closed=True), host="db-1")])
    known = await facts.known()
    (found,) = known.listeners
    assert (found.host_id, found.port, found.service_id) == ("db-1", 5432, 101)


async def test_losses_and_offsets_are_kept(facts):
    await facts.commit([enriched(flow(1), lost={"ring": 5}, offset_ns=7)])
    await facts.commit([enriched(flow(2), lost={"spool": 1}, offset_ns=9)])
    (row,) = await facts._writer.fetch("select lost, offset_ns from sources")
    assert (row["lost"], row["offset_ns"]) == ({"ring": 5, "spool": 1}, 9)


async def test_listeners_change_hands(facts):
    await facts.commit([enriched(listen(1, port=80), listen(2, port=81))])
    known = [replace(k, service_id=7) for k in (await facts.known()).listeners if k.port == 80]
    await facts.own(known)
    await facts.own([])
    assert {k.port: k.service_id for k in (await facts.known()).listeners}[80] == 7
    await facts.own([replace(known[0], service_id=None), replace(known[0], port=9)])
    assert [k.port for k in (await facts.known()).listeners if k.service_id == 7] == []


def inventory(*names, host="web-1", taken=NOON):
    packages = tuple(
        Package(
            type="deb", name=n, version="1-1", source="src", source_version="1", binaries=(f"/usr/bin/{n}",)
        )
        for n in names
    )
    system = System(id="debian")
    return PackageInventory(
        host_id=host, taken_ns=taken, digest=digest_of(system, packages), system=system, packages=packages
    )


async def test_an_inventory_is_replaced_and_its_changes_are_told(facts):
    first = await facts.keep_inventory(inventory("a", "b"))
    assert [p.name for p in first.added] == ["a", "b"]
    assert await facts.keep_inventory(inventory("b", "a", taken=NOON + 1)) is None
    second = await facts.keep_inventory(inventory("b", "c"))
    assert ([p.name for p in second.added], [p.name for p in second.removed]) == (["c"], ["a"])
    rows = await facts._writer.fetch("select name from packages where host_id = 'web-1' order by name")
    assert [row["name"] for row in rows] == ["b", "c"]
    changes = await facts._writer.fetch("select added, name from package_changes order by added, name")
    assert [tuple(row) for row in changes] == [(False, "a"), (True, "a"), (True, "b"), (True, "c")]
    assert (await facts.known()).inventories == (inventory("b", "c"),)


async def test_packages_come_in_pages_without_one_missing(facts):
    """The same version may be there for two architectures, and in two places."""
    where = [("amd64", ""), ("i386", ""), ("amd64", "/srv/root"), ("i386", "/srv/root")]
    packages = tuple(
        Package(type="deb", name="libc6", version="2", arch=arch, where=place) for arch, place in where
    )
    await facts.keep_inventory(
        PackageInventory(host_id="web-1", taken_ns=NOON, digest="d", system=System(), packages=packages)
    )
    readers, found, cursor = Readers(facts), [], None
    for _ in range(5):
        page = await readers.packages(None, None, None, cursor, 1)
        found += [(row["arch"], row["place"]) for row in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert (sorted(found), cursor) == (sorted(where), None)


UNKNOWN = {
    "flows": ("host", "service", "from", "to"),
    "events": ("host", "service"),
}


@pytest.mark.parametrize("minus", ["", "-"])
@pytest.mark.parametrize(
    ("query", "field"), [(query, field) for query, fields in UNKNOWN.items() for field in fields]
)
async def test_a_filter_by_a_name_that_nothing_has_is_refused(facts, query, field, minus):
    await facts.commit([enriched(flow(1))])
    readers = Readers(facts)

    def asked(name):
        return Asked(now=NOON / 1e9, filter=f"{minus}{field}={name}")

    with pytest.raises(Invalid, match=rf'filter\.{field}: .*got "nosuch"'):
        await getattr(readers, query)(asked("nosuch"))
    if field != "service":
        await getattr(readers, query)(
            asked("web-1")
        )  # no host of that name is enrolled: it told of itself once


async def test_packages_of_a_host_that_nobody_knows_are_refused(facts):
    await facts.commit([enriched(flow(1))])
    readers, long_ago = Readers(facts), datetime.fromtimestamp(0, UTC)
    for ask in (
        lambda host: readers.packages(host, None, None, None, 1),
        lambda host: readers.package_changes(host, long_ago, 1),
    ):
        with pytest.raises(Invalid, match=r'^host: expected a host that is known .*got "nosuch"'):
            await ask("nosuch")
        await ask("web-1")
    with pytest.raises(Invalid, match=r"^type: expected deb or rpm"):
        await readers.packages(None, None, "debian", None, 1)


async def test_one_writer_only(facts, server):
    other = PostgresFacts(server[0].dsn)
    try:
        with pytest.raises(Conflict, match="writer already"):
            await other.open_writer()
    finally:
        await other.close()


async def test_marks_that_somebody_moved_are_read_again(facts):
    await facts.commit([enriched(flow(1))])
    await facts._writer.execute("update sources set seen = '{[1,3)}'")
    with pytest.raises(Unavailable, match="moved by somebody else"):
        await facts.commit([enriched(flow(2))])
    assert (await facts.commit([enriched(flow(2), flow(3))])).new == 1
    assert [number for _, _, number in await ids(facts)] == [1, 3]


async def test_a_change_of_the_registry_is_told(facts):
    heard = []

    async def changed(what):
        heard.append(what)

    await facts.watch(changed)
    await facts._writer.execute(
        "insert into services (id, name, created_at) values (7, 'seven', 1) on conflict do nothing"
    )
    await facts._writer.execute(
        "insert into hosts (host_id, enrolled_at) values ('h', 1) on conflict do nothing"
    )
    await facts._writer.execute("update hosts set addresses = '{10.0.0.9}' where host_id = 'h'")
    await eventually(lambda: heard.count("services") == 1 and heard.count("hosts") == 2)
    await facts._writer.execute("update hosts set seen_at = 5, addresses = '{10.0.0.9}' where host_id = 'h'")
    await facts._writer.execute("update services set latest = 5 where id = 7")
    known = await facts.known()
    assert [h.addresses for h in known.hosts] == [("10.0.0.9",)]
    assert [s.name for s in known.services] == ["seven"]
    assert len(heard) == 3
    await facts._writer.execute("delete from services; delete from hosts")


async def test_partitions_come_ahead_and_go_with_the_retention(facts):
    now = NOON / 1e9
    await facts.commit([enriched(flow(1), flow(2, NOON - 20 * DAY * SECOND), execed(3))])
    done = await facts.upkeep(now, KEEP)
    assert [what for what in done if what.startswith("made flows")] == [
        "made flows_20261124", "made flows_20261125", "made flows_20261126",
    ]  # fmt: skip
    assert "deleted 1 rows of flows_other" in done
    assert await facts._writer.fetchval("select count(*) from only flows_20261124") == 1
    assert await facts.upkeep(now, KEEP) == []
    await facts.commit([enriched(flow(4))])
    later = await facts.upkeep(now + 15 * DAY, KEEP)
    assert "dropped flows_20261124" in later
    assert await ids(facts) == []
    assert len(await ids(facts, "events")) == 1
    assert (await facts.commit([enriched(flow(4))])).known == 1


async def test_kills_of_the_server_lose_and_double_nothing(facts, server):
    _, process = server
    draw = random.Random(7)
    sent, kills = 0, 3

    async def insist(batch):
        while True:
            try:
                return await facts.commit([batch])
            except Unavailable:
                await asyncio.sleep(0.02)

    async def killer():
        for _ in range(kills):
            await asyncio.sleep(draw.random() / 2)
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
            await process.start()

    killing = asyncio.create_task(killer())
    while not killing.done():
        batch = enriched(*(flow(sent + n) for n in range(1, 101)))
        await insist(batch)
        if draw.random() < 0.3:
            await insist(batch)
        sent += 100
    await killing
    assert [number for _, _, number in await ids(facts)] == list(range(1, sent + 1))
    assert await facts._writer.fetchval("select sum(flows) from flow_minutes") == sent
