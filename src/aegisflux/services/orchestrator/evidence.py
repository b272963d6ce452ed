"""What is known of a rollout: what its hosts say, and what was denied on them, read from the store.

Legitimate is a denied initiation of a kind that was seen, answered and not blocked in the week before the
rollout began, on any host of the service, and that nobody who approved the plan said is meant to be cut. The
other end is the same when it is the same service, else the same host, else the same address; of callers from
outside, any address of the same class. A new kind is shown, and fails nothing: that the unknown is denied is
what the policy is for.

Denied initiations count from the rollout's beginning, not the turn's: what is still on its way when a turn
passes is not forgotten.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct, field

from aegisflux.domain.address_class import address_class
from aegisflux.domain.net import PROTOCOL_NAMES
from aegisflux.domain.plan import Plan
from aegisflux.domain.stages import Evidence
from aegisflux.ports.store import Row
from aegisflux.services.orchestrator.carried import Carried, DeniedWay, Looked, Part
from aegisflux.services.orchestrator.core import Core

WEEK: Final = 7 * 86_400
MOST_WAYS: Final = 20
LEAST_OTHERS: Final = 100
SETTLED_SECONDS: Final = 120.0
GIVEN: Final = frozenset({"in_force", "observing", "matches nothing"})
Way = tuple[str, str, str]


class Memory(Struct):
    """What was found out about a rollout, and does not change: kinds that were seen before, and those that
    are meant to be cut (client, server, what)."""

    seen: dict[tuple[object, ...], bool] = field(default_factory=dict)
    accepted: frozenset[Way] | None = None


class Seen(Struct, frozen=True):
    """For the machine, and for people."""

    evidence: Evidence
    looked: Looked


class Reader:
    """Reads evidence; remembers what does not change, and works it out again after a restart."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._memory: dict[int, Memory] = defaultdict(Memory)

    def forget(self, live: Iterable[int]) -> None:
        """Rollouts that are not live any more."""
        for number in set(self._memory) - set(live):
            del self._memory[number]

    async def read(self, carried: Carried) -> Seen:
        """All that is known now of the hosts of its stage; raises Unavailable."""
        run, store = carried.run, self._core.store
        hosts = sorted(set(run.enforced) | set(run.turn))
        told = await store.rows("told_by", hosts, carried.services)
        evidence = told_of(carried, told)
        began = max(run.since, evidence.began)
        flows = await self._flows(carried, run.turn or tuple(hosts), began)
        every = await self._flows(carried, tuple(hosts), float(carried.created_at))
        ways = await self._denied(carried, hosts)
        legitimate = sum(way.denied for way in ways if way.legitimate)
        evidence = msgspec.structs.replace(
            evidence,
            flows=max(flows, legitimate),
            flows_in_all=every,
            mute=frozenset(row["host_id"] for row in told if (row["told_at"] or 0.0) < began),
            denied=legitimate,
            sick=await self._sick(carried, hosts),
            lying=dict(evidence.lying) | await self._unheard(carried, hosts),
            changed=dict(evidence.changed) | await self._changed(carried),
        )
        looked = Looked(
            hosts=len(run.turn or hosts),
            in_force=len(evidence.in_force & set(run.turn or hosts)),
            flows=evidence.flows,
            denied=legitimate,
            denied_new=sum(way.denied for way in ways if not way.legitimate),
            ways=tuple(sorted(ways, key=lambda way: not way.legitimate)[:MOST_WAYS]),
        )
        return Seen(evidence, looked)

    async def _flows(self, carried: Carried, hosts: tuple[str, ...], since: float) -> int:
        row = await self._core.store.row("exposure", carried.services, list(hosts), since)
        return int(row["flows"]) if row else 0

    async def _denied(self, carried: Carried, hosts: Sequence[str]) -> list[DeniedWay]:
        digests = [part.digest for part in carried.parts]
        rows = await self._core.store.rows("denied", digests, hosts, float(carried.created_at))
        if not rows:
            return []
        memory = self._memory[carried.id]
        await self._learn(carried, memory, rows)
        named = {row["id"]: row["name"] for row in await self._core.store.rows("services")}
        accepted = await self._accepted(carried, memory)
        return [_way(row, named, memory.seen[_kind(row)], accepted) for row in rows]

    async def _learn(self, carried: Carried, memory: Memory, rows: Sequence[Row]) -> None:
        """Look up the kinds that are new."""
        fresh = list({kind: None for row in rows if (kind := _kind(row)) not in memory.seen})
        if not fresh:
            return
        columns = [list(column) for column in zip(*fresh, strict=True)]
        began = carried.created_at
        values = (list(range(len(fresh))), *columns, float(began - WEEK), float(began))
        found = {row["n"] for row in await self._core.store.rows("seen_before", *values)}
        memory.seen.update({kind: n in found for n, kind in enumerate(fresh)})

    async def _accepted(self, carried: Carried, memory: Memory) -> frozenset[Way]:
        if memory.accepted is None:
            row = await self._core.store.row("plan", carried.plan)
            memory.accepted = frozenset()
            if row is not None and row["accepted"]:
                lines = msgspec.convert(row["body"], Plan).replay.lines
                memory.accepted = frozenset(
                    (name, line.server, line.what) for line in lines for name in _callers(line.client)
                )
        return memory.accepted

    async def _sick(self, carried: Carried, hosts: Sequence[str]) -> dict[str, str]:
        """What watchers said since something is enforced."""
        if not carried.run.enforced:
            return {}
        rows = await self._core.store.rows("sick", carried.services, carried.id, list(hosts))
        named = {part.service_id: part.service for part in carried.parts}
        return {
            named[row["service_id"]] + (f" on {row['host_id']}" if row["host_id"] else ""): (
                f"{row['detail'] or 'no reason was given'} (said by {row['said_by']})"
            )
            for row in rows
        }

    async def _unheard(self, carried: Carried, hosts: Sequence[str]) -> dict[str, str]:
        """Hosts that tell of no flow while others had many with them."""
        values = carried.services, list(hosts), carried.run.since, LEAST_OTHERS
        told_by_all = self._core.clock.now() - SETTLED_SECONDS
        rows = await self._core.store.rows("unheard", *values, told_by_all)
        return {
            row["host_id"]: f"no flows since {carried.run.stage.replace('_', ' ')} began; others had "
            f"{row['others']} connections with it"
            for row in rows
        }

    async def _changed(self, carried: Carried) -> dict[str, str]:
        """Services of which hosts have another version than they were given, or that got a newer one."""
        enforced, found = set(carried.run.enforced), {}
        if carried.run.stage == "promoted":
            return {}
        latest = {row["id"]: row["latest"] for row in await self._core.store.rows("services")}
        for part in carried.parts:
            newest = latest.get(part.service_id)
            if newest != part.version:
                word = f"version {newest} was stored" if newest else "it is not registered any more"
                found[part.service] = f"{word}; the rollout has version {part.version}"
        rows = await self._core.store.rows("assigned_of", carried.services, sorted(enforced))
        has = {(row["service_id"], row["host_id"]): row["version"] for row in rows}
        for part in carried.parts:
            for host in sorted(enforced & set(part.hosts)):
                version = has.get((part.service_id, host))
                if version != part.version and part.service not in found:
                    now = f"version {version}" if version else "nothing"
                    found[part.service] = f"{host} was given {now} instead of version {part.version}"
        return found


def told_of(carried: Carried, rows: Sequence[Row]) -> Evidence:
    """What hosts say of themselves, without the flows."""
    by_host: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_host[row["host_id"]].append(row)
    heard, nacked, lying, changed = {}, {}, {}, {}
    in_force, began = set(), 0.0
    for host, told in by_host.items():
        heard[host] = float(told[0]["seen_at"] or 0.0)
        if told[0]["released_at"] is not None:
            changed[host] = "it was released from the fleet"
        given = [(part, _report(told, part.service_id)) for part in carried.parts if host in part.hosts]
        if all(_holds(carried, part, report) for part, report in given):
            in_force.add(host)
            began = max(began, *(_since(carried, report) for _, report in given), 0.0)
        for part, report in given:
            if report is None:
                continue
            if word := _refusal(carried, part, report):
                nacked[host] = word
            if word := _lie(part, report):
                lying[host] = word
        if (told[0]["heartbeat_serial"] or 0) > told[0]["serial"]:
            lying[host] = (
                f"it has manifest {told[0]['heartbeat_serial']}, {told[0]['serial']} is the newest made"
            )
    return Evidence(
        heard=heard, in_force=frozenset(in_force), began=began, nacked=nacked, lying=lying, changed=changed
    )


def _report(rows: Sequence[Row], service_id: int) -> Row | None:
    return next((row for row in rows if row["service_id"] == service_id), None)


def _holds(carried: Carried, part: Part, report: Row | None) -> bool:
    if report is None:
        return False
    if carried.run.stage == "observe":
        return bool(report["candidate"] == part.digest)
    confirmed = not report["awaits"] or report["confirmed_at"] is not None
    return report["digest"] == part.digest and report["state"] in GIVEN and confirmed


def _since(carried: Carried, report: Row | None) -> float:
    if report is None or carried.run.stage == "promoted":
        return 0.0
    return float(report["candidate_since" if carried.run.stage == "observe" else "since"] or 0.0)


def _refusal(carried: Carried, part: Part, report: Row) -> str:
    """A Nack of this version that came since the turn began, or what stands in its way by hand."""
    if report["state"] == "panicked":
        return f"{part.service}: the host is in panic: somebody took enforcement off there"
    if not report["nack_reason"] or report["nack_version"] not in (None, part.version):
        return ""
    if report["nack_at"] < int(carried.run.since) or report["nack_serial"] < report["ack_serial"]:
        return ""
    if part.digest in (report["digest"], report["candidate"]) and report["nack_reason"] != "not_confirmed":
        return ""
    return f"{part.service} version {part.version}: {report['nack_reason']}: {report['nack_detail']}"


def _lie(part: Part, report: Row) -> str:
    if report["digest"] == part.digest and report["tables_digest"] not in (None, part.tables_digest):
        return (
            f"{part.service} version {part.version} with the tables {report['tables_digest']}; "
            f"compiled were {part.tables_digest}"
        )
    if report["digest"] == part.digest and report["version"] != part.version:
        return f"{part.service}: version {report['version']} with the digest of version {part.version}"
    return ""


def _callers(client: str) -> set[str]:
    """As what a caller of the replay was accepted: one from outside stands for its class."""
    found = address_class(client)
    return {client} if found is None else {client, _class_of(found)}


def _class_of(word: str) -> str:
    return f"any {word} address"


def _kind(row: Row) -> tuple[object, ...]:
    names = ("service_id", "direction", "proto", "port", "peer_service_id", "peer_host", "peer", "peer_class")
    return tuple(row[name] for name in names)


def _way(row: Row, named: Mapping[int, str], seen: bool, accepted: frozenset[Way]) -> DeniedWay:
    own = named.get(row["service_id"], f"service {row['service_id']}")
    peer = named.get(row["peer_service_id"]) or (
        f"host:{row['peer_host']}" if row["peer_host"] else row["peer"] or "?"
    )
    client, server = (own, peer) if row["direction"] == "egress" else (peer, own)
    what = f"{PROTOCOL_NAMES.get(row['proto'], str(row['proto']))}/{row['port']}"
    outside = row["direction"] == "ingress" and client == row["peer"]
    names = {client, _class_of(row["peer_class"])} if outside else {client}
    return DeniedWay(
        host=row["host_id"],
        direction=row["direction"],
        client=client,
        server=server,
        what=what,
        denied=row["denied"],
        reason=row["reason"] or "",
        first_at=row["first_at"],
        legitimate=seen and not accepted & {(name, server, what) for name in names},
    )
