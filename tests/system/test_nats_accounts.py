"""Who may do what on the bus: one named test for each refusal of contracts §4, against a real server."""

import dataclasses
import json
import ssl
import time

import pytest
import pytest_asyncio
from nacl.signing import SigningKey
from nats.aio.client import Client
from nats.errors import Error as NatsError

from aegisflux import bootstrap
from aegisflux.adapters.bus import accounts as nats_accounts
from aegisflux.adapters.bus.accounts import PUSH_SUBJECT, LiveAccounts, pusher
from aegisflux.adapters.bus.nats import NatsBus
from aegisflux.adapters.bus.subscribed import taken
from aegisflux.adapters.secrets.file import FileSecrets
from aegisflux.domain.errors import Forbidden, Invalid, Refused, Unavailable
from aegisflux.wire import natsjwt, subjects
from aegisflux.wire.natsjwt import Credentials
from support.engines import eventually, opened, running_nats
from support.hostile_nats import Raw, Socket

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lab(tmp_path_factory):
    """A server with the streams and a manifest for each of two hosts."""
    async with running_nats(tmp_path_factory.mktemp("nats")) as found:
        async with found.control() as control:
            await control.ensure_streams()
            for host in ("web1", "web2"):
                await control.publish(subjects.desired(host), f"of {host}".encode(), msg_id=f"{host}:1")
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def agent(lab):
    """The bus of the agent web1."""
    async with opened(lab.bus(lab.agent("web1"))) as bus:
        yield bus


@pytest_asyncio.fixture(loop_scope="module")
async def hostile(lab):
    """web1 with a client that asks for anything."""
    async with Raw(lab, lab.agent("web1")) as raw:
        yield raw


async def test_an_agent_can_do_what_it_must(lab, agent):
    """Last value, acks, heartbeat and new manifests all cross the account's border."""
    heard = []

    async def hear(message):
        heard.append(message.payload)

    await agent.watch(subjects.desired("web1"), hear)
    async with lab.control() as control:
        found = await agent.last(subjects.desired("web1"))
        assert found.payload == b"of web1"
        assert await agent.last(subjects.confirm("web1")) is None
        await agent.publish(subjects.acks("web1"), b"ack", msg_id="web1:ack:1")
        await agent.publish(subjects.heartbeat("web1"), b"beat", msg_id="web1:beat:1")
        assert (await control.last(subjects.heartbeat("web1"))).payload == b"beat"
        await control.publish(subjects.desired("web1"), b"of web1", msg_id="web1:2")
        await eventually(lambda: heard == [b"of web1"])


async def test_another_host_is_refused(hostile, agent):
    for subject in (subjects.acks("web2"), subjects.heartbeat("web2"), subjects.content("web2")):
        assert await hostile.publish_refused(subject, b"x")
    assert await hostile.publish_refused(subjects.desired("web1"), b"forged")
    assert await hostile.publish_refused(subjects.confirm("web1"), b"forged")
    assert await hostile.publish_refused(subjects.direct_get("DESIRED", subjects.desired("web2")))
    assert await hostile.subscribe_refused(subjects.desired("web2"))
    assert await hostile.subscribe_refused(subjects.confirm("web2"))
    with pytest.raises(Forbidden):
        await agent.last(subjects.desired("web2"))


async def test_the_single_wildcard_is_refused(lab, hostile):
    assert await hostile.publish_refused("agent.acks.*", b"x")
    assert await hostile.subscribe_refused(subjects.ALL_DESIRED)
    assert await hostile.subscribe_refused("actions.*.desired.web1")
    with pytest.raises(Invalid):
        lab.agent("*")


async def test_the_full_wildcard_is_refused(lab, hostile):
    for subject in (">", "actions.>", "agent.>", "$JS.>", "$SYS.>"):
        assert await hostile.subscribe_refused(subject)
    assert await hostile.publish_refused("agent.acks.>", b"x")
    with pytest.raises(Invalid):
        lab.agent(">")


@pytest.mark.parametrize("name", ["", "Web1", "-web", "a.b", "a b", "a" * 64, "web1\n", "{{name()}}"])
async def test_a_bad_host_name_gets_no_identity(lab, name):
    with pytest.raises(Invalid):
        lab.agent(name)


async def test_a_foreign_inbox_is_refused(hostile):
    for subject in ("_INBOX.web2.>", "_INBOX.>", "_INBOX.*.>", "_INBOX.control.>", "_R_.>"):
        assert await hostile.subscribe_refused(subject)
    assert await hostile.publish_refused("_INBOX.web2.x", b"x")


async def test_creating_a_consumer_is_refused(hostile):
    for subject in (
        "$JS.API.CONSUMER.CREATE.DESIRED",
        "$JS.API.CONSUMER.CREATE.DESIRED.mine.actions.seg.desired.web1",
        "$JS.API.CONSUMER.DURABLE.CREATE.DESIRED.mine",
        "$JS.API.CONSUMER.MSG.NEXT.ACKS.orchestrator",
        "$JS.ACK.ACKS.orchestrator.1.1.1.1.1",
        "$JS.API.STREAM.INFO.DESIRED",
        "$JS.API.INFO",
    ):
        assert await hostile.publish_refused(subject, b"{}", reply="_INBOX.web1.x")


async def test_a_stream_message_get_is_refused(hostile):
    body = json.dumps({"last_by_subj": subjects.desired("web2")}).encode()
    assert await hostile.publish_refused("$JS.API.STREAM.MSG.GET.DESIRED", body, reply="_INBOX.web1.x")


async def test_a_direct_get_with_a_wildcard_is_refused(hostile):
    for token in ("*", ">"):
        where = subjects.direct_get("DESIRED", "actions.seg.desired." + token)
        assert await hostile.publish_refused(where, reply="_INBOX.web1.x")


async def test_a_direct_get_with_a_body_reads_no_other_host(hostile):
    (plain,) = await hostile.answers(subjects.direct_get("DESIRED", subjects.desired("web1")))
    assert (plain.data, plain.headers["Nats-Subject"]) == (b"of web1", subjects.desired("web1"))
    for body in (
        {"last_by_subj": subjects.desired("web2")},
        {"multi_last": [subjects.ALL_DESIRED], "batch": 10},
        {"seq": 2},
        {"batch": 10, "next_by_subj": subjects.ALL_DESIRED},
    ):
        payload = json.dumps(body).encode()
        assert await hostile.publish_refused("$JS.API.DIRECT.GET.DESIRED", payload, reply="_INBOX.web1.x")
        where = subjects.direct_get("DESIRED", subjects.desired("web1"))
        for answer in await hostile.answers(where, payload):
            assert b"web2" not in answer.data, (body, answer)
            assert "web2" not in str(answer.headers), (body, answer)


async def test_a_foreign_reply_subject_writes_no_desired_state(lab, hostile):
    """The exploit of the single account: the server's answer is sent where the reply subject says.

    The same from inside of CONTROL works, before and after: the attack is a real one, and was answered.
    """
    heard = []

    async def hear(message):
        heard.append((message.subject, message.payload))

    victims = (subjects.desired("web2"), subjects.confirm("web2"), subjects.MAPS)
    async with lab.control() as control, Raw(lab, lab.accounts.control_creds(int(time.time()))) as inside:
        for subject in (*victims, subjects.desired("before"), subjects.desired("after")):
            await control.watch(subject, hear)
        before = {subject: await control.last(subject) for subject in victims}
        await inside.inject(subjects.desired("before"))
        await eventually(lambda: len(heard) == 3)
        assert await control.last(subjects.desired("before")) is not None
        for reply in (*victims, "$JS.API.STREAM.DELETE.DESIRED"):
            await hostile.inject(reply)
        await inside.inject(subjects.desired("after"))
        await eventually(lambda: len([s for s, _ in heard if s == subjects.desired("after")]) == 3)
        assert {s for s, _ in heard} == {subjects.desired("before"), subjects.desired("after")}
        assert {subject: await control.last(subject) for subject in victims} == before


async def test_a_viewer_hears_announcements_and_enriched_events_and_nothing_else(lab):
    credentials = lab.accounts.viewer_creds(int(time.time()))
    async with Raw(lab, credentials) as viewer, lab.control() as control:
        for subject in (subjects.MAPS, subjects.ENRICHED):
            heard = await viewer.nc.subscribe(subject)
            await taken(viewer.nc)
            await control.publish(subject, b"news", msg_id=f"news:{subject}")
            assert (await heard.next_msg(timeout=5)).data == b"news"
        mute = (subjects.MAPS, subjects.ENRICHED, subjects.desired("web1"), subjects.acks("web1"))
        for subject in (*mute, subjects.telemetry("web1"), "$JS.API.INFO", "x"):
            assert await viewer.publish_refused(subject, b"x")
        deaf = (subjects.ALL_DESIRED, subjects.ALL_ACKS, subjects.ALL_TELEMETRY, subjects.RAW)
        for subject in (*deaf, ">", "events.>", "_INBOX.control.>", "dead.*"):
            assert await viewer.subscribe_refused(subject)


async def test_a_revoked_user_is_cut_off_and_stays_out(lab):
    async with lab.system() as system, opened(lab.bus(lab.agent("web2"))) as other:
        live = LiveAccounts(lab.accounts, pusher(system))
        seed = bytes(SigningKey.generate())
        public = bytes(SigningKey(seed).verify_key)
        async with opened(lab.bus(lab.agent("gone", seed))) as bus:
            await live.revoke_agent("gone", public, int(time.time()))
            await eventually(lambda: not bus.connected)
            await eventually(lambda: "authorization" in bus.last_error.lower())
            assert not bus.connected
        assert (await other.last(subjects.desired("web2"))).payload == b"of web2"
        await eventually(lambda: int(time.time()) > lab.accounts.revoked("gone", public))
        async with opened(lab.bus(lab.agent("gone", seed))) as again:
            assert again.connected
        await live.push_all()
        assert other.connected


def stored(lab) -> set[str]:
    """What the server keeps in its folder of accounts, whatever it is called."""
    return {path.name for path in (lab.engine.data_dir / "accounts").iterdir()}


def key_pair(number: int) -> tuple[bytes, bytes]:
    seed = bytes([number]) * 32
    return seed, bytes(SigningKey(seed).verify_key)


async def test_the_account_of_a_released_host_is_deleted_and_the_key_can_come_back(lab):
    seed, public = key_pair(1)
    name = lab.accounts.host_account("released", public) + ".jwt"
    async with lab.system() as system, opened(lab.bus(lab.agent("web2"))) as other:
        live = LiveAccounts.over(system, lab.accounts)
        await live.admit_agent("released", public)
        assert name in stored(lab)
        before = lab.accounts.issue_agent("released", public, int(time.time()))
        async with opened(lab.bus(Credentials(before, seed))) as bus:
            await live.revoke_agent("released", public, int(time.time()))
            await eventually(lambda: not bus.connected)
            assert not [file for file in stored(lab) if file.startswith(name)]
            await eventually(lambda: "authorization" in bus.last_error.lower())
        assert other.connected
        await eventually(lambda: int(time.time()) > lab.accounts.revoked("released", public))
        await live.admit_agent("released", public)
        again = lab.accounts.issue_agent("released", public, int(time.time()))
        async with opened(lab.bus(Credentials(again, seed))) as bus, lab.control() as control:
            await bus.publish(subjects.heartbeat("released"), b"again")
            await control.publish(subjects.desired("released"), b"again", msg_id="again")
            assert (await bus.last(subjects.desired("released"))).payload == b"again"
        refused = lab.bus(Credentials(before, seed))
        refused.open()
        await eventually(lambda: "authorization" in refused.last_error.lower())
        await refused.close()


async def test_accounts_that_earlier_versions_left_of_released_hosts_go(lab):
    publics = {f"old-{number}": key_pair(number)[1] for number in range(10, 14)}
    names = {host: lab.accounts.host_account(host, public) + ".jwt" for host, public in publics.items()}
    operator = lab.accounts._keys["nats-operator"]
    theirs = natsjwt.public_nkey("account", key_pair(9)[1])
    foreign = natsjwt.account_jwt(
        theirs, name="of somebody else", issuer=operator.public, now=int(time.time()), sign=operator.sign
    )

    async def enrolled():
        return [("old-10", publics["old-10"]), ("never-pushed", key_pair(8)[1])]

    async with lab.system() as system:
        for host, public in publics.items():
            await pusher(system)(lab.accounts.host_claim(host, public))
        await pusher(system)(foreign)
        before = stored(lab)
        assert {*names.values(), theirs + ".jwt"} <= before
        live = LiveAccounts.over(system, lab.accounts, enrolled)
        await live.push_all()
        await live.forget_released()
        left = stored(lab)
        assert names["old-10"] in left
        assert not {names[f"old-{number}"] for number in (11, 12, 13)} & left
        assert {theirs + ".jwt", *(f"{public}.jwt" for public in lab.accounts.account_jwts())} <= left
        await live.forget_released()
        assert stored(lab) == left


async def test_a_server_that_deletes_nothing_stops_no_release(lab):
    class Refusing:
        async def call(self, subject, payload, timeout=5.0):
            if subject == PUSH_SUBJECT:
                return b'{"data": {"code": 200}}'
            return b'{"error": {"code": 500, "description": "delete must be enabled in server config"}}'

    system = Refusing()
    live = LiveAccounts.over(system, lab.accounts)
    _, public = key_pair(20)
    await live.revoke_agent("kept", public, int(time.time()))
    assert lab.accounts.revoked("kept", public)
    with pytest.raises(Unavailable, match="delete must be enabled"):
        await live.forget_released()


async def test_the_credentials_of_a_service_end_and_it_makes_its_next_ones(lab, monkeypatch):
    monkeypatch.setattr(nats_accounts, "SERVICE_SECONDS", 2)
    monkeypatch.setattr(nats_accounts, "SERVICE_SPREAD", 1)
    shown, heard = [], []

    def fresh() -> str:
        shown.append(lab.accounts.control_creds(int(time.time())).jwt)
        return shown[-1]

    async def hear(message):
        heard.append(message.payload)

    first = lab.bus(lab.accounts.control_creds(int(time.time())))
    async with opened(NatsBus(dataclasses.replace(first._options, fresh=fresh))) as bus:
        await bus.watch(subjects.desired("web3"), hear)
        await eventually(lambda: len(set(shown)) >= 3)
        monkeypatch.undo()
        await eventually(lambda: natsjwt.claims(shown[-1])["exp"] > time.time() + 60)
        await bus.ready(10)
        await bus.publish(subjects.desired("web3"), b"later", msg_id="later")
        await eventually(lambda: heard == [b"later"])


async def test_the_credentials_of_a_viewer_end_and_that_is_said(lab, monkeypatch, tmp_path):
    monkeypatch.setattr(nats_accounts, "VIEWER_SECONDS", 2)
    creds, ca = tmp_path / "creds", tmp_path / "ca"
    creds.write_text(lab.accounts.viewer_creds(int(time.time())).text)
    ca.write_text(lab.pki.ca_pem)
    environ = {"NATS_URL": lab.engine.url, "NATS_CREDS": str(creds), "NATS_CA": str(ca)}
    for count in (0, 0, 1):  # the first one begins while they hold
        with pytest.raises(Refused, match=r"ended at .* run eval"):
            await bootstrap.watch(environ, subjects.MAPS, lambda _: [], print, count)


async def test_a_new_signing_key_of_viewers_lets_no_earlier_viewer_in(lab):
    """What SECURITY.md says to do when a viewer's credentials leak."""
    leaked = lab.accounts.viewer_creds(int(time.time()))
    async with lab.system() as system, lab.control() as control, opened(lab.bus(leaked)) as viewer:
        (lab.directory / "secrets" / "nats-sign-viewer").unlink()
        lab.accounts = nats_accounts.NatsAccounts(FileSecrets(lab.directory / "secrets"), 0)
        await LiveAccounts.over(system, lab.accounts).push_all()
        await eventually(lambda: not viewer.connected)
        await eventually(lambda: "authorization" in viewer.last_error.lower())
        assert control.connected
        async with opened(lab.bus(lab.accounts.viewer_creds(int(time.time())))) as again:
            assert again.connected


async def test_nobody_enters_without_an_identity(lab):
    async def quiet(_error):
        return

    context = ssl.create_default_context(cadata=lab.pki.ca_pem)
    with pytest.raises(NatsError):
        await Client().connect(lab.engine.url, tls=context, allow_reconnect=False, error_cb=quiet)


@pytest.mark.parametrize(
    ("oldest", "newest", "let_in"),
    [
        (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3, True),
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3, True),
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, False),
        (ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_2, False),
    ],
)
async def test_a_client_without_tls_1_3_is_refused(lab, oldest, newest, let_in):
    context = ssl.create_default_context(cadata=lab.pki.ca_pem)
    context.minimum_version, context.maximum_version = oldest, newest
    client = Socket(lab, lab.agent("web1"))
    try:
        assert await client.open(context) == let_in, client.error
    finally:
        client.close()
    assert let_in or "PROTOCOL_VERSION" in client.error.upper()


async def test_the_server_has_nothing_to_say_about_its_configuration(lab):
    first = (lab.directory / "nats.log").read_text().partition("Server is ready")[0]
    assert [line for line in first.splitlines() if " [INF] " not in line] == []


async def test_an_agent_of_a_foreign_operator_is_refused(lab, tmp_path):
    from support.engines import NatsLab

    stranger = NatsLab.make(tmp_path)
    bus = lab.bus(stranger.agent("web1"))
    bus.open()
    await eventually(lambda: "authorization" in bus.last_error.lower())
    assert not bus.connected
    await bus.close()


async def test_a_server_with_a_foreign_certificate_gets_no_identity(lab, tmp_path):
    from support.engines import NatsLab

    stranger = NatsLab.make(tmp_path)
    stranger.engine = lab.engine
    bus = stranger.bus(lab.agent("web1"))
    bus.open()
    await eventually(lambda: "certificate" in bus.last_error.lower())
    assert not bus.connected
    await bus.close()


@pytest.mark.parametrize(
    "subject",
    [
        subjects.desired("web1"), subjects.confirm("web1"), subjects.acks("web1"),
        subjects.MAPS, subjects.ENRICHED,
        "$JS.API.STREAM.PURGE.TELEMETRY", "$JS.API.STREAM.DELETE.EVENTS_RAW",
        "$JS.API.STREAM.MSG.GET.DESIRED",
        "$JS.API.CONSUMER.CREATE.ACKS.ingest", "$JS.API.CONSUMER.MSG.NEXT.ACKS.orchestrator",
        "$JS.API.DIRECT.GET.DESIRED", "$JS.API.CONSUMER.DELETE.TELEMETRY.ingest",
    ],
)  # fmt: skip
async def test_ingest_may_publish_nothing_but_what_it_checked(lab, subject):
    async with Raw(lab, lab.accounts.ingest_creds(int(time.time()))) as client:
        assert await client.publish_refused(subject, b"x")


async def test_ingest_reads_telemetry_and_passes_it_on(lab):
    credentials = lab.accounts.ingest_creds(int(time.time()))
    heard = []

    async def take(messages):
        heard.extend(message.payload for message in messages)

    async with lab.control() as control, opened(lab.bus(credentials)) as bus:
        await control.publish(subjects.telemetry("web1"), b"events", msg_id="events-1")
        reading = await bus.consume("TELEMETRY", "ingest", take)
        await eventually(lambda: heard == [b"events"])
        await reading.close()
        assert await bus.lag("TELEMETRY", "ingest") in (0, 1)
        await bus.publish(subjects.RAW, b"checked", msg_id="raw-1")
        await bus.publish(subjects.dead("telemetry"), b"refused", msg_id="dead-1")
        assert [message.payload for message in await bus.read("DEAD", 0, 10)] == [b"refused"]
