"""Every graph behind the port: upserts add up, what is not said stays, what it forgets is gone."""

import pytest

from aegisflux.adapters.graph.ladybug import LadybugGraph
from aegisflux.domain.enriched import OpenVulnerability, PackageRef
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.graph import NODES, RELATIONS, Edge, Ref, Upserts, software_of, vulnerabilities_of
from aegisflux.domain.inventory import Package, PackageInventory, System
from aegisflux.domain.known import KnownVulnerability
from aegisflux.domain.rollup import MOST
from aegisflux.services.enrich.graphed import AT_ONCE

WEB, DB, HOST = Ref("Service", 101), Ref("Service", 102), Ref("Host", "web-1")
CALLS = Edge("COMMUNICATES", WEB, DB, (6, 5432))
COUNTS = (
    "MATCH (:Service {id: 101})-[e:COMMUNICATES]->(:Service {id: 102}) RETURN e.allowed AS n, e.last_ns AS at"
)


@pytest.fixture
async def graph(tmp_path):
    found = LadybugGraph(tmp_path / "graph")
    await found.open()
    yield found
    await found.close()


def seen(times=1, at=5):
    upserts = Upserts()
    upserts.node(WEB, name="web")
    upserts.node(DB, name="db")
    upserts.edge(CALLS, allowed=times, blocked=0, bytes=10, last_ns=at)
    return upserts


async def test_what_is_seen_twice_is_one_edge_with_the_sum(graph):
    await graph.upsert(seen(2, 5))
    await graph.upsert(seen(3, 9))
    assert list(await graph.rows(COUNTS)) == [{"n": 5, "at": 9}]


async def test_a_node_seen_without_properties_keeps_them(graph):
    await graph.upsert(seen())
    bare = Upserts()
    bare.node(WEB)
    await graph.upsert(bare)
    assert list(await graph.rows("MATCH (s:Service {id: 101}) RETURN s.name AS name")) == [{"name": "web"}]


async def test_every_kind_of_node_and_edge_can_be_put_in(graph):
    upserts = Upserts()
    refs = {}
    for node in NODES:
        refs[node.label] = upserts.node(Ref(node.label, 1 if node.key.kind == "int" else "x"))
    for relation in RELATIONS:
        for start, end in relation.ends:
            upserts.edge(Edge(relation.name, refs[start], refs[end], (1,) * len(relation.keys)))
    await graph.upsert(upserts)
    (row,) = await graph.rows("MATCH ()-[e]->() RETURN count(e) AS n")
    assert row["n"] == sum(len(relation.ends) for relation in RELATIONS)


async def test_more_rows_than_a_chunk(graph):
    upserts = Upserts()
    for number in range(5000):
        upserts.node(Ref("Endpoint", f"10.0.{number // 250}.{number % 250}"))
    await graph.upsert(upserts)
    (row,) = await graph.rows("MATCH (e:Endpoint) RETURN count(e) AS n")
    assert row["n"] == 5000


async def test_a_large_fleet_goes_in_by_parts(graph):
    services, ports = 1000, 20
    upserts = Upserts()
    for number in range(services):
        upserts.node(Ref("Service", number), name=f"service {number}")
        for port in range(ports):
            other = Ref("Service", (number + port) % services)
            edge = Edge("COMMUNICATES", Ref("Service", number), other, (6, port))
            upserts.edge(edge, allowed=1, blocked=0, bytes=1, last_ns=1)
    for part in upserts.parts(AT_ONCE):
        await graph.upsert(part)
    (row,) = await graph.rows("MATCH (:Service)-[e:COMMUNICATES]->(:Service) RETURN count(e) AS n")
    assert row["n"] == services * ports


async def test_software_is_replaced(graph):
    def inventory(*names):
        packages = tuple(Package(type="deb", name=name, version="1") for name in names)
        return PackageInventory(host_id="web-1", taken_ns=1, digest="", system=System(), packages=packages)

    for names in (("a", "b"), ("b", "c")):
        await graph.forget_software("web-1")
        await graph.upsert(software_of(inventory(*names)))
    rows = await graph.rows(
        "MATCH (:Host {id: 'web-1'})-[:HAS]->(p:Package) RETURN p.name AS name ORDER BY name"
    )
    assert [row["name"] for row in rows] == ["b", "c"]


async def test_what_was_not_seen_for_long_is_forgotten(graph):
    host, shell = Ref("Host", "web-1"), Ref("Binary", "/bin/sh")
    old, new = Ref("Endpoint", "192.0.2.1"), Ref("Endpoint", "192.0.2.2")
    upserts = Upserts()
    for ref in (host, shell, old, new):
        upserts.node(ref)
    for peer, at in ((old, 99), (new, 100)):
        edge = Edge("COMMUNICATES", host, peer, (6, 443))
        upserts.edge(edge, allowed=1, blocked=0, bytes=1, last_ns=at)
    upserts.edge(Edge("EXECUTES", host, shell), runs=1, last_ns=99)
    for port, closed in ((22, False), (80, True)):
        upserts.edge(Edge("LISTENS", host, new, (6, port)), closed=closed, last_ns=1)
    await graph.upsert(upserts)
    await graph.forget_before(100)
    edges = await graph.rows("MATCH (:Host)-[e]->(n) RETURN label(e) AS name, e.port AS port ORDER BY port")
    assert [(row["name"], row["port"]) for row in edges] == [("LISTENS", 22), ("COMMUNICATES", 443)]
    (row,) = await graph.rows("MATCH (n) RETURN count(n) AS n")
    assert row["n"] == 2


async def test_a_vulnerability_is_found_by_host(graph):
    """As blast-radius asks; a vulnerability known twice is one."""
    nginx = PackageRef("deb", "nginx", "1", "nginx")
    of_package = OpenVulnerability(id="CVE-2026-1", package="nginx", severity="high", kev=True)
    known = [KnownVulnerability(host, nginx, of_package) for host in ("web-1", "db-1")]
    packages = (Package(type="deb", name="nginx", version="1"),)
    inventory = PackageInventory(host_id="web-1", taken_ns=1, digest="", system=System(), packages=packages)
    await graph.upsert(vulnerabilities_of(known))
    await graph.upsert(software_of(inventory))
    rows = await graph.rows(
        "MATCH (:Host {id: 'web-1'})-[:HAS]->(:Package)-[:AFFECTED_BY]->(v:Vulnerability) "
        "RETURN v.id AS id, v.kev AS kev"
    )
    assert list(rows) == [{"id": "CVE-2026-1", "kev": True}]


async def test_a_failed_upsert_leaves_nothing(graph):
    broken = seen()
    broken.edge(Edge("COMMUNICATES", WEB, DB, ("six", 5432)), allowed=1)
    with pytest.raises((Unavailable, ValueError)):
        await graph.upsert(broken)
    (row,) = await graph.rows("MATCH (n) RETURN count(n) AS n")
    assert row["n"] == 0


async def test_clear_forgets_all_but_the_schema(graph):
    await graph.upsert(seen())
    await graph.clear()
    assert list(await graph.rows(COUNTS)) == []
    await graph.upsert(seen())
    assert (await graph.rows(COUNTS))[0]["n"] == 1


async def test_a_bad_query_is_unavailable_and_says_where(graph):
    with pytest.raises(Unavailable, match="graph"):
        await graph.rows("MATCH nonsense")


async def test_a_torn_file_is_forgotten(tmp_path):
    (tmp_path / "graph").write_bytes(b"nonsense" * 1000)
    graph = LadybugGraph(tmp_path / "graph")
    await graph.open()
    await graph.upsert(seen())
    assert "2 nodes" in await graph.check()
    await graph.close()


async def test_what_is_in_stays_over_a_restart(tmp_path):
    for expected in (1, 2):
        graph = LadybugGraph(tmp_path / "graph")
        await graph.open()
        await graph.upsert(seen())
        assert (await graph.rows(COUNTS))[0]["n"] == expected
        await graph.close()


async def test_a_sum_stays_at_its_bound(graph):
    edge = Edge(
        "COMMUNICATES", Ref("Host", "web-1"), Ref("Endpoint", "\0\x1b' }) DETACH DELETE n //"), (6, 1)
    )
    for _ in range(3):
        upserts = Upserts()
        upserts.node(edge.start)
        upserts.node(edge.end)
        for _ in range(3):
            upserts.edge(edge, allowed=1, blocked=0, bytes=(1 << 63) - 1, last_ns=5)
        await graph.upsert(upserts)
    (row,) = await graph.rows("MATCH (:Host)-[e:COMMUNICATES]->() RETURN e.bytes AS bytes")
    assert row["bytes"] == MOST
