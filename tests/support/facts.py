"""Events as a host would send them, for tests of what comes after."""

from aegisflux.domain.enriched import Context, Enriched, EnrichedBatch
from aegisflux.domain.event import Ancestor, Exec, FlowSeen, Listen
from aegisflux.domain.graph import Sights, Upserts

NOON = 1_795_521_600_000_000_000  # 2026-11-24T12:00:00Z
SECOND = 1_000_000_000


def flow(seq, at=NOON, **more):
    """One flow report."""
    given = {
        "direction": "egress", "proto": 6, "local": "10.0.0.1", "peer": "10.0.0.2", "port": 5432,
        "packets_out": 3, "packets_in": 2, "bytes_out": 300, "bytes_in": 200, "connections": 1,
        "verdict": "allowed", "reason": "allow", "cgroup": "/system.slice/web.service",
    }  # fmt: skip
    return FlowSeen(seq=seq, time_ns=at, first_ns=at - SECOND, last_ns=at, **(given | more))


def execed(seq, at=NOON, **more):
    """One exec."""
    given = {"pid": 1000 + seq, "start_ns": seq, "uid": 33, "path": "/usr/bin/env", "args": ("env", "x")}
    return Exec(seq=seq, time_ns=at, ancestors=(Ancestor(1, 1, "init"),), **(given | more))


def listen(seq, at=NOON, **more):
    """One listening socket."""
    given = {"proto": 6, "address": "0.0.0.0", "port": 5432, "cgroup": "/system.slice/db.service"}
    return Listen(seq=seq, time_ns=at, **(given | more))


def enriched(*events, host="web-1", boot="boot-1", context=None, **more):
    """A batch in which every event has the same context."""
    found = context or Context(service_id=101, service="web", peer_class="private", peer_host="db-1")
    return EnrichedBatch(
        host_id=host, boot_id=boot, received_ns=NOON, events=tuple(Enriched(e, found) for e in events), **more
    )


def facts_of(batches, into=None):
    """What batches say of the graph, added to `into`."""
    found, sights = Upserts() if into is None else into, Sights()
    sights.see(batches)
    for _ in sights.put(found):
        pass
    return found
