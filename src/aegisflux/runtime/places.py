"""The inventory of a moment, and what is in force, as the store has them."""

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256

import msgspec
from msgspec import Struct

from aegisflux.domain import snapshot as snapshots
from aegisflux.domain.definition import Definition
from aegisflux.domain.own_addresses import MOST_TOLD
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace
from aegisflux.domain.rollout import Labelled
from aegisflux.domain.snapshot import MapSnapshot
from aegisflux.ports.store import Queries, Row
from aegisflux.runtime.beside import beside
from aegisflux.wire.canonical import unpacked

Rows = Sequence[Row]
_encode = msgspec.json.Encoder(order="sorted").encode


class Now(Struct, frozen=True):
    """Hosts, services and what is in force; `digest` of all of it: it changes when any of it does."""

    inventory: Inventory
    in_force: dict[str, MapSnapshot]
    digest: str


async def read(store: Queries) -> Now:
    """As the store has it; raises Unavailable. Made in a thread: a large fleet takes a second."""
    places, running = await store.rows("host_places"), await store.rows("all_running")
    services, in_force = await store.rows("services"), await store.rows("in_force")
    return await beside(_made, places, running, services, in_force)


def _made(places: Rows, running: Rows, services: Rows, in_force: Rows) -> Now:
    hosts = {
        r["host_id"]: HostPlace(
            r["labels"], tuple(sorted(r["addresses"][:MOST_TOLD]))
        )  # more were stored once
        for r in places
    }
    by_report: dict[int, set[str]] = defaultdict(set)
    for row in running:
        by_report[row["service_id"]].add(row["host_id"])
    labelled = Labelled({name: place.labels for name, place in hosts.items()})
    found = {}
    for row in services:
        proven = labelled.running(row["host_labels"])
        reported = {host for host in by_report[row["id"]] if host in hosts and host not in proven}
        found[row["name"]] = ServicePlace(
            row["id"],
            tuple(sorted(reported | proven)),
            row["latest"] + 1,
            tuple(sorted(reported)),
            str(Definition(row["name"], tuple(row["selectors"]), row["host_labels"])),
        )
    snaps = {row["name"]: snapshots.decode(unpacked(row["snapshot"])) for row in in_force}
    inventory = Inventory(found, hosts)
    known = [inventory, {row["name"]: row["version"] for row in in_force}]
    return Now(inventory, snaps, "sha256:" + sha256(_encode(known)).hexdigest())
