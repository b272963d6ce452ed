"""The inventory of a moment, and what is in force, as the store has them."""

from collections import defaultdict
from hashlib import sha256

import msgspec
from msgspec import Struct

from aegisflux.domain import snapshot as snapshots
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace
from aegisflux.domain.rollout import runs
from aegisflux.domain.snapshot import MapSnapshot
from aegisflux.ports.store import Queries
from aegisflux.wire.canonical import unpacked

_encode = msgspec.json.Encoder(order="sorted").encode


class Now(Struct, frozen=True):
    """Hosts, services and what is in force; `digest` of all of it: it changes when any of it does."""

    inventory: Inventory
    in_force: dict[str, MapSnapshot]
    digest: str


async def read(store: Queries) -> Now:
    """As the store has it; raises Unavailable."""
    places = {r["host_id"]: r for r in await store.rows("host_places")}
    hosts = {name: HostPlace(r["labels"], tuple(sorted(r["addresses"]))) for name, r in places.items()}
    running: dict[int, set[str]] = defaultdict(set)
    for row in await store.rows("all_running"):
        running[row["service_id"]].add(row["host_id"])
    services = {}
    for row in await store.rows("services"):
        labelled = {name for name, place in hosts.items() if runs(row["host_labels"], place.labels)}
        reported = running[row["id"]] & set(hosts) - labelled
        services[row["name"]] = ServicePlace(
            row["id"], tuple(sorted(reported | labelled)), row["latest"] + 1, tuple(sorted(reported))
        )
    rows = await store.rows("in_force")
    in_force = {row["name"]: snapshots.decode(unpacked(row["snapshot"])) for row in rows}
    inventory = Inventory(services, hosts)
    known = [inventory, {row["name"]: row["version"] for row in rows}]
    return Now(inventory, in_force, "sha256:" + sha256(_encode(known)).hexdigest())
