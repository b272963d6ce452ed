"""One enrolled host that does what it likes on the bus, against two others: nothing of it reaches them.

Real NATS, PostgreSQL and orchestrator. The victim is an agent of the product on a simulated datapath; the
attacker has its own valid credentials and clients that ask for anything; `other` is a third, honest host.
What a host can be reached by is heard with its own credentials (`tap`).
"""

import asyncio
import json
import ssl
import time

import msgspec
import pytest
import pytest_asyncio
from nacl.signing import SigningKey
from tests.support.agents import AgentLab
from tests.support.agents import Plane as Forger
from tests.support.control import WHO, body, running_plane
from tests.support.engines import eventually, opened
from tests.support.hostile_nats import Raw, Socket

from aegisflux.adapters.bus import accounts as nats_accounts
from aegisflux.adapters.bus.subscribed import taken
from aegisflux.agent.identity import signer, verify
from aegisflux.agent.parts import AgentSettings, Parts, inline
from aegisflux.agent.runner import Runner
from aegisflux.domain.manifest import Answer, ContentChunk, ContentRequest, KeySet, Nack
from aegisflux.domain.trust import Trusted, accept_keys
from aegisflux.wire import envelope, subjects
from aegisflux.wire.natsjwt import Credentials

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
MARK = b"\x1b[31mFOREIGN\x07"
FORGERIES = 200
INBOX_TOKENS = 4  # where the agent's client hears answers: its own random token, and one of the request
ATTACKER, VICTIM, OTHER = "evil-1", "victim-1", "other-1"


class Tap:
    """All that a host may hear, beside its agent."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []

    async def open(self, raw: Raw) -> "Tap":
        for subject in subjects.agent_subscribes(raw.host):
            await raw.nc.subscribe(subject, cb=self._hear)
        await taken(raw.nc)
        return self

    async def _hear(self, message) -> None:
        self.heard.append((message.subject, bytes(message.data)))


class Site:
    """The control plane, and the three hosts on it."""

    def __init__(self, plane) -> None:
        self.plane, self.lab = plane, plane.lab
        self.logs: list[str] = []

    async def begin(self, stack) -> "Site":
        plane = self.plane
        self.attacker, self.victim = await plane.enroll(ATTACKER), await plane.enroll(VICTIM)
        self.other = await plane.agent(OTHER)
        await plane.orchestrator.registry.put(101, "web", ["cgroup:web"], {}, WHO)
        await plane.orchestrator.snapshots.post(body(101, 1), [VICTIM], "", WHO)
        self.bus = await stack.enter_async_context(opened(self.lab.bus(self.victim.credentials)))
        self.runner, self.stop = self._agent(), asyncio.Event()
        running = asyncio.create_task(self.runner.run(self.stop))
        stack.push_async_callback(self._end, running)
        self.raw = await stack.enter_async_context(Raw(self.lab, self.attacker.credentials, ATTACKER))
        watching = await stack.enter_async_context(Raw(self.lab, self.victim.credentials, VICTIM))
        self.tap = await Tap().open(watching)
        self.own = await Tap().open(self.raw)
        await eventually(self._in_force, 20)
        return self

    async def _in_force(self) -> bool:
        status = await self.plane.orchestrator.views.status(101)
        return any(host.observed is not None and host.observed.version == 1 for host in status.hosts)

    async def _end(self, running) -> None:
        self.stop.set()
        await running

    def _agent(self) -> Runner:
        lab, core = AgentLab(), self.plane.orchestrator.core
        parts = Parts(
            host_id=VICTIM,
            boot_id="boot",
            version="0",
            bus=self.bus,
            datapath=lab.kernel,
            store=lab.store,
            cgroups=lab.cgroups,
            sign=signer(bytes(self.victim.key)),
            verify=verify,
            wall=time.time,
            blocking=inline,
            prober=lab.probe,
            trim=lambda: None,
            log=self.logs.append,
            settings=AgentSettings(heartbeat_seconds=0.5),
        )
        known = envelope.opened(core.keys.envelope, envelope.KEY_SET)
        return Runner(
            parts, accept_keys(Trusted(VICTIM, core.keys.root_public, KeySet(0, ())), known, verify)
        )

    async def nacks(self) -> list[Nack]:
        """What the victim signed against something, of all that the store of answers holds."""
        found, after = [], 0
        while messages := await self.plane.bus.read("ACKS", after, 500, subjects.acks(VICTIM)):
            after = messages[-1].sequence
            for message in messages:
                sealed = envelope.opened(envelope.decode_envelope(message.payload, 1 << 20), envelope.ANSWER)
                said = msgspec.msgpack.decode(sealed.payload, type=Answer)
                found += [said] if isinstance(said, Nack) else []
        return found

    async def stored(self, host: str) -> dict[str, int]:
        """The newest sequence of each subject on which something lies for or of a host."""
        asked = (*subjects.agent_hears(), subjects.ALL_ACKS, subjects.ALL_TELEMETRY)
        found = {pattern.replace("*", host): 0 for pattern in asked}
        for subject in found:
            last = await self.plane.bus.last(subject)
            found[subject] = last.sequence if last else 0
        return found

    async def untouched(self, heard: int) -> None:
        """Nothing reached the victim since: what our own services say now is the next that it hears."""
        await self.raw.nc.flush()
        sentinel = f"sentinel {time.monotonic_ns()}".encode()
        watched = subjects.confirm(VICTIM)
        await self.plane.bus.publish(watched, sentinel)
        await eventually(lambda: (watched, sentinel) in self.tap.heard)
        foreign = [one for one in self.tap.heard[heard:] if one[0] != watched and is_foreign(*one)]
        assert not foreign, foreign[:3]


def is_foreign(subject: str, payload: bytes) -> bool:
    """Whether it is neither a manifest of ours, which renewals bring at any time, nor an answer to the
    agent."""
    if subject.startswith(subjects.inbox(VICTIM)) and len(subject.split(".")) == INBOX_TOKENS:
        return MARK in payload
    try:
        message = envelope.decode_manifest_message(payload, 1 << 20)
    except Exception:
        return True
    return subject != subjects.desired(VICTIM) or MARK in payload or not message.manifest.signatures


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory):
    from contextlib import AsyncExitStack

    async with running_plane(tmp_path_factory.mktemp("plane")) as plane, AsyncExitStack() as stack:
        yield await Site(plane).begin(stack)


def foreign_replies() -> tuple[str, ...]:
    """Where an answer would do harm."""
    return (
        subjects.desired(VICTIM), subjects.confirm(VICTIM), subjects.inbox(VICTIM) + ".x", "_INBOX." + VICTIM,
        subjects.content(VICTIM), subjects.acks(VICTIM), subjects.telemetry(VICTIM),
        subjects.inventory(VICTIM), subjects.heartbeat(VICTIM), subjects.MAPS, subjects.RAW,
        subjects.dead("acks"), "$JS.API.STREAM.DELETE.DESIRED", "$JS.API.STREAM.PURGE.DESIRED",
        "$JS.ACK.ACKS.orchestrator.1.1.1.1.1", "_R_.x", "_INBOX.control.x", "$SYS.REQ.CLAIMS.UPDATE",
        "$SYS.REQ.SERVER.PING", "*", ">", subjects.ALL_DESIRED, "actions.seg.>", "_INBOX.>",
    )  # fmt: skip


@pytest.mark.parametrize("via", subjects.agent_publishes(ATTACKER))
async def test_an_answer_goes_nowhere_else_whatever_the_reply_subject_says(site, via):
    """Requests, acknowledgements of the store and looks into streams, each with each foreign reply."""
    heard, before = len(site.tap.heard), await site.stored(VICTIM)
    streams = await site.plane.bus.call("$JS.API.STREAM.NAMES", b"")
    for reply in foreign_replies():
        await site.raw.nc.publish(via, MARK, reply=reply)
    await site.untouched(heard)
    after = await site.stored(VICTIM)
    same = [subject for subject in before if subject != subjects.confirm(VICTIM)]
    assert [after[subject] for subject in same if "desired" not in subject] == [
        before[subject] for subject in same if "desired" not in subject
    ]
    assert set(json.loads(streams)["streams"]) == set(
        json.loads(await site.plane.bus.call("$JS.API.STREAM.NAMES", b""))["streams"]
    )


async def test_the_primitive_is_real_and_ends_in_the_account_of_who_asks(site):
    """Without accounts of their own, this is how a host wrote to another: it still writes to itself."""
    mine = subjects.desired(ATTACKER)
    await site.raw.nc.publish(subjects.heartbeat(ATTACKER), MARK)
    heard = len(site.own.heard)
    await site.raw.nc.publish(subjects.direct_get("HEARTBEATS", subjects.heartbeat(ATTACKER)), reply=mine)
    await eventually(lambda: (mine, MARK) in site.own.heard[heard:])
    await site.untouched(len(site.tap.heard))


@pytest.mark.parametrize(
    "header",
    [
        "Nats-Trace-Dest: actions.seg.desired." + VICTIM,
        "Nats-Trace-Dest: _INBOX." + VICTIM + ".x",
        "Nats-Schedule: @at 2000-01-01T00:00:00Z\r\nNats-Schedule-Target: actions.seg.desired." + VICTIM,
        "Nats-Schedule: @every 1s\r\nNats-Schedule-Target: agent.acks." + VICTIM,
        "Nats-Rollup: all", "Nats-Rollup: sub", "Nats-TTL: 1", "Nats-Incr: +1", "Nats-Batch-Id: x",
        "Nats-Expected-Last-Subject-Sequence-Subject: agent.heartbeat." + VICTIM,
        "Nats-Request-Info: {}", "Nats-Subject: actions.seg.desired." + VICTIM,
        "Nats-Stream: DESIRED\r\nNats-Sequence: 1", "Nats-Marker-Reason: Purge",
        "Aegisflux-Refused: \x1b[31m", "Aegisflux-Subject: agent.acks." + VICTIM,
    ],
)  # fmt: skip
async def test_no_header_reaches_another_host(site, header):
    heard, before = len(site.tap.heard), await site.stored(VICTIM)
    beats = await site.plane.bus.last(subjects.heartbeat(OTHER))
    data = f"NATS/1.0\r\n{header}\r\n\r\n".encode()
    for via in subjects.agent_publishes(ATTACKER):
        for reply in ("", subjects.desired(VICTIM)):
            command = f"HPUB {via} {reply} {len(data)} {len(data) + len(MARK)}\r\n".encode()
            await site.raw.nc._send_command(command + data + MARK + b"\r\n")
    await site.raw.nc._flush_pending()
    await site.untouched(heard)
    after = await site.stored(VICTIM)
    acks, telemetry = subjects.acks(VICTIM), subjects.telemetry(VICTIM)
    assert (after[acks], after[telemetry]) == (before[acks], before[telemetry])
    assert (await site.plane.bus.last(subjects.heartbeat(OTHER))) == beats


def subjects_of_others() -> tuple[str, ...]:
    """What the attacker may not publish."""
    rows = [row.pattern for row in subjects.REGISTER]
    named = [pattern.replace("*", VICTIM) for pattern in rows]
    looks = [
        subjects.direct_get(subjects.stream_of(name).name, name)
        for name in (subjects.desired(VICTIM), subjects.heartbeat(VICTIM), subjects.inventory(VICTIM))
    ]
    wild = [pattern for pattern in rows if "*" in pattern] + [p.replace("*", ">") for p in rows if "*" in p]
    own = [subjects.desired(ATTACKER), subjects.confirm(ATTACKER)]
    return (
        *named, *looks, *wild, *own, "_INBOX." + VICTIM + ".x", "_INBOX.control.x", "_R_.x", "*", ">",
        "$JS.API.STREAM.MSG.GET.DESIRED", "$JS.API.STREAM.CREATE.MINE", "$JS.API.CONSUMER.CREATE.ACKS.mine",
        "$JS.ACK.ACKS.orchestrator.1.1.1.1.1", "$JS.API.DIRECT.GET.DESIRED", "$JS.API.INFO",
        "$SYS.REQ.USER.INFO", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.SERVER.PING",
    )  # fmt: skip


async def test_what_names_another_host_cannot_be_published(site):
    for subject in dict.fromkeys(subjects_of_others()):
        assert await site.raw.publish_refused(subject, MARK), subject


async def test_what_others_hear_cannot_be_subscribed(site):
    hears = subjects.agent_subscribes(VICTIM)
    wild = (
        "*",
        ">",
        "*.>",
        "_INBOX.>",
        "_INBOX.*.>",
        "_INBOX.*",
        "_R_.>",
        "_R_.*",
        "_R_",
        "actions.>",
        "$JS.>",
    )
    rows = [row.pattern for row in subjects.REGISTER if "*" in row.pattern]
    for subject in (*hears, *wild, *rows, subjects.MAPS, subjects.RAW, "$SYS.>", "_INBOX.control.>"):
        assert await site.raw.subscribe_refused(subject), subject


def forgery(number: int) -> bytes:
    """Bytes that are no manifest of this fleet, in as many ways as there are checks before the signature."""
    forger = Forger(host=VICTIM)
    text = f"{MARK.decode('latin-1')}{number}"
    kinds = (
        lambda: MARK + b"%d" % number,
        lambda: forger.message(forger.manifest(serial=10_000 + number)),
        lambda: forger.message(forger.manifest(serial=10_000 + number), key_id=text),
        lambda: envelope.encode(envelope.seal(text, b"x", text, signer(bytes(forger.key)))),
        lambda: msgspec.msgpack.encode({"keys": {"payload_type": text}, text: number}),
    )
    return kinds[number % len(kinds)]()


async def test_forged_messages_make_the_victim_sign_nothing_and_say_nothing_of_theirs(site):
    """Even from who can write the bus itself: our own account stands for that here."""
    loss, before = site.runner.reporter.loss, len(await site.nacks())
    dropped = sum(count for name, count in loss.items() if name.startswith("dropped."))
    serial, lines = site.runner.accepted.trusted.serial, len(site.logs)
    genuine = await site.plane.bus.last(subjects.desired(VICTIM))
    for number in range(FORGERIES):
        where = subjects.desired(VICTIM) if number % 2 else subjects.confirm(VICTIM)
        await site.plane.bus.publish(where, forgery(number))
    # a signed key set that anybody may have seen, beside a manifest that nobody signed; one for another host
    keys = envelope.decode_manifest_message(genuine.payload, 1 << 20).keys
    junk = envelope.seal(envelope.MANIFEST, MARK, "k", signer(bytes(SigningKey.generate())))
    await site.plane.bus.publish(
        subjects.desired(VICTIM), envelope.encode(envelope.ManifestMessage(keys, junk))
    )
    stranger = await site.plane.bus.last(subjects.desired(ATTACKER))
    await site.plane.bus.publish(subjects.desired(VICTIM), stranger.payload)

    def counted() -> bool:
        now = sum(count for name, count in loss.items() if name.startswith("dropped."))
        return now >= dropped + FORGERIES + 2

    await eventually(counted)
    await site.runner.beat()
    assert len(await site.nacks()) == before, "not one of them is answered"
    assert site.runner.accepted.trusted.serial >= serial
    texts = [*site.logs[lines:], *site.runner.reporter.troubles.texts(), str(site.runner.heartbeat())]
    assert not any("FOREIGN" in text or "\x1b" in text for text in texts)
    assert len(site.logs) - lines < 10, "counted, not logged one by one"
    host = await site.plane.orchestrator.hosts.one(VICTIM)
    await eventually(lambda: True)
    assert any("no key of this fleet signed" in text for text in (*host.troubles, *texts))
    await site.plane.bus.publish(subjects.desired(VICTIM), genuine.payload)


@pytest.mark.parametrize("how", [subjects.telemetry, subjects.acks, subjects.heartbeat, subjects.inventory])
async def test_ids_of_the_victim_suppress_nothing_of_it(site, how):
    ids = [f"{VICTIM}:boot:{number}" for number in range(500)]
    for msg_id in ids:
        data = f"NATS/1.0\r\nNats-Msg-Id: {msg_id}\r\n\r\n".encode()
        command = f"HPUB {how(ATTACKER)} {len(data)} {len(data) + 1}\r\n".encode()
        await site.raw.nc._send_command(command + data + b"x\r\n")
    await site.raw.nc._flush_pending()
    await site.raw.nc.flush()
    sequences = [await site.bus.publish(how(VICTIM), one.encode(), msg_id=one) for one in ids[:16]]
    assert sequences == sorted(set(sequences)), "each is stored, and none is another one's"
    assert (await site.plane.bus.last(how(VICTIM))).sequence >= sequences[-1]


async def works(site) -> float:
    """How long the other host's round of a heartbeat, a look and a request took, in seconds."""
    started = time.monotonic()
    await site.other.beat()
    assert await site.other.bus.last(subjects.desired(OTHER)) is not None
    asked = msgspec.msgpack.encode(ContentRequest("sha256:" + "1" * 64, 1, 0))
    answer = await site.other.bus.request(subjects.content(OTHER), asked)
    assert "not_named" in msgspec.msgpack.decode(answer, type=ContentChunk).error
    return time.monotonic() - started


def rss(site) -> int:
    """What the NATS server holds, in MiB."""
    with open(f"/proc/{site.lab.process.pid}/status") as lines:
        return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS"))


async def test_six_hundred_connections_of_one_host_leave_the_others_theirs(site):
    context = ssl.create_default_context(cadata=site.lab.pki.ca_pem)
    sockets = [Socket(site.lab, site.attacker.credentials) for _ in range(600)]
    let_in, slowest = 0, 0.0
    try:
        for start in range(0, len(sockets), 50):
            some = sockets[start : start + 50]
            *found, took = await asyncio.gather(*(one.open(context) for one in some), works(site))
            let_in, slowest = let_in + sum(found), max(slowest, took)
        async with opened(site.lab.bus(site.other.credentials)) as late:
            assert (await late.last(subjects.desired(OTHER))) is not None
        refused = next(one.error for one in sockets if one.error)
    finally:
        for one in sockets:
            one.close()
    assert let_in <= nats_accounts.HOST_CONNECTIONS
    assert "maximum account active connections exceeded" in refused.lower()
    assert slowest < 5, "bounded here against a machine under load; bench/neighbour.py has the figure"


async def test_readers_that_do_not_read_cost_a_bounded_amount(site):
    context = ssl.create_default_context(cadata=site.lab.pki.ca_pem)
    await site.raw.nc.publish(subjects.inventory(ATTACKER), bytes(1_000_000))
    await site.raw.nc.flush()
    where = subjects.direct_get("INVENTORY", subjects.inventory(ATTACKER))
    before, most, slowest = rss(site), 0, 0.0
    sockets = [Socket(site.lab, site.attacker.credentials) for _ in range(12)]
    try:
        let_in = [one for one in sockets if await one.open(context)]
        assert let_in
        for one in let_in:
            one.say(f"SUB _INBOX.{ATTACKER}.>  1\r\n".encode())
            one.say(f"PUB {where} _INBOX.{ATTACKER}.x 0\r\n\r\n".encode() * 300)
        until = time.monotonic() + 4
        while time.monotonic() < until:
            most = max(most, rss(site))
            slowest = max(slowest, await works(site))
            await asyncio.sleep(0.05)
    finally:
        for one in sockets:
            one.close()
    assert most < 450, f"{before} to {most} MiB"
    assert slowest < 5


async def test_credentials_that_ended_are_cut_off_and_later_ones_come_over_the_bus(site, monkeypatch):
    monkeypatch.setattr(nats_accounts, "AGENT_SECONDS", 2)
    monkeypatch.setattr(nats_accounts, "AGENT_SPREAD", 1)
    short = site.lab.agent("short-1", bytes(site.other.key))
    monkeypatch.undo()
    async with opened(site.lab.bus(short)) as bus:
        await eventually(lambda: not bus.connected)
        await eventually(lambda: "auth" in bus.last_error.lower())
        later = site.lab.accounts.issue_agent("short-1", bytes(site.other.key.verify_key), int(time.time()))
        bus.use(later)
        await eventually(lambda: bus.connected)
    renewed = json.loads(await site.other.bus.request(subjects.credentials(OTHER), b""))
    ends = Credentials(renewed["user_jwt"], bytes(site.other.key)).ends
    assert 12 * 86_400 <= ends - time.time() <= 14 * 86_400
