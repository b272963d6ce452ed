"""Ingest over a bus in memory, and its HTTP as others use it."""

import asyncio
import base64
import gzip
import json
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
import pytest_asyncio
import zstandard
from tests.support.believing import Trusting
from tests.support.engines import eventually
from tests.support.facts import NOON, SECOND, execed, flow

from aegisflux.adapters.bus.memory import Broker, MemoryBus
from aegisflux.domain.errors import OverLimit, Unavailable
from aegisflux.domain.event import EventBatch
from aegisflux.runtime.access import hashed
from aegisflux.runtime.spare import Spare
from aegisflux.services.ingest import posted
from aegisflux.services.ingest.api import application
from aegisflux.services.ingest.app import Ingest, Parts
from aegisflux.wire import subjects
from aegisflux.wire.events import decode_taken, encode_batch

PAST = 1_700_000_000 * SECOND
TOKENS = {"src": ("source", "app-1"), "op": ("operator", None), "view": ("viewer", None)}


class Store:
    """Tokens, and the audit lines that were written."""

    def __init__(self) -> None:
        self.lines, self.away = [], False
        self.tokens = {hashed(text): (text, *known) for text, known in TOKENS.items()}

    async def row(self, query, *values):
        assert query == "token"
        found = self.tokens.get(values[0])
        if found is None:
            return None
        name, role, host = found
        return {
            "id": name,
            "name": name,
            "role": role,
            "host_id": host,
            "expires_at": None,
            "revoked_at": None,
        }

    async def run(self, query, *values):
        assert query == "touch_token"

    async def check(self):
        return "here"

    @asynccontextmanager
    async def change(self):
        if self.away:
            raise Unavailable("the store: away")
        yield self

    async def audit(self, entry):
        self.lines.append(entry)


class Now:
    """A clock that stands."""

    def now(self):
        return NOON / 1e9


class Lab:
    """A running ingest with its surroundings."""

    def __init__(self, broker, ingest, client, store):
        self.broker, self.ingest, self.client, self.store = broker, ingest, client, store
        self.bus = ingest.bus

    async def send(self, *events, host="web-1", subject=None, msg_id=None, data=None):
        """As an agent does."""
        made = EventBatch(host_id=host, boot_id="b", sent_ns=NOON, events=events) if events else None
        payload = data if data is not None else encode_batch(made)
        where = subject or subjects.telemetry("web-1")
        await self.bus.publish(where, payload, msg_id=msg_id or f"{host}{payload[:40].hex()}{len(payload)}")

    async def raw(self):
        return [taken.batch for taken in await self.taken()]

    async def taken(self):
        found = await self.bus.read("EVENTS_RAW", 0, 10_000)
        return [taken for message in found for taken in decode_taken(message.payload)]

    async def post(self, body, token="src", **more):
        headers = {"Authorization": f"Bearer {token}"} | more.pop("headers", {})
        return await self.client.post("/api/v1/events", content=body, headers=headers, params=more)

    async def get(self, path, token="op", **query):
        return await self.client.get(path, params=query, headers={"Authorization": f"Bearer {token}"})

    async def replay(self, number, token="op", **query):
        headers = {"Authorization": f"Bearer {token}"}
        return await self.client.post(f"/api/v1/dead/{number}/replay", params=query, headers=headers)

    async def handled(self):
        async def nothing_left():
            return await self.bus.lag("TELEMETRY", "ingest") == 0

        await eventually(nothing_left)

    async def letters(self, **query):
        return (await self.get("/api/v1/dead", **query)).json()["items"]


@pytest_asyncio.fixture
async def lab():
    broker, store = Broker(), Store()
    bus = MemoryBus(broker)
    ingest = Ingest(Parts(bus=bus, store=store, clock=Now(), believer=Trusting()))
    await ingest.start()
    transport = httpx.ASGITransport(application(ingest))
    async with httpx.AsyncClient(transport=transport, base_url="http://ingest") as client:
        yield Lab(broker, ingest, client, store)
    await ingest.close()
    await bus.close()


def lines(*events):
    return b"\n".join(msgspec.json.encode(event) for event in events)


async def test_a_good_batch_goes_on_as_it_is_and_says_when_it_came(lab):
    past = execed(1, PAST), flow(2, PAST)
    data = encode_batch(EventBatch(host_id="web-1", boot_id="b", sent_ns=PAST, events=past))
    await lab.send(data=data)
    await lab.handled()
    (message,) = await lab.bus.read("EVENTS_RAW", 0, 10)
    (came,) = await lab.bus.read("TELEMETRY", 0, 10)
    assert message.payload.endswith(data)
    (taken,) = await lab.taken()
    assert (taken.received_ns, taken.offset_ns) == (came.stored_ns, came.stored_ns - PAST)
    assert (await lab.get("/api/v1/clocks")).json() == {"web-1": came.stored_ns - PAST}


async def test_the_same_batch_twice_is_one(lab):
    for n in range(2):
        await lab.send(execed(1), execed(2), msg_id=f"m{n}")
    await lab.handled()
    assert len(await lab.raw()) == 1, "what comes together; the store knows what came before"


async def test_what_is_refused_lies_with_its_reason_and_its_bytes(lab):
    await lab.send(execed(1), host="db-9")
    await lab.handled()
    (letter,) = await lab.letters()
    assert (letter["stream"], letter["subject"], letter["host_id"]) == (
        "telemetry",
        "telemetry.web-1",
        "web-1",
    )
    assert "db-9" in letter["reason"]
    whole = (await lab.get(f"/api/v1/dead/{letter['id']}")).json()
    assert base64.b64decode(whole["payload"]) == (await lab.bus.read("TELEMETRY", 0, 1))[0].payload
    assert whole["decoded"]["host_id"] == "db-9"
    assert await lab.raw() == []


async def test_a_message_of_the_longest_kind_becomes_a_letter(lab):
    with pytest.raises(OverLimit, match="message"):
        await lab.send(data=bytes(subjects.MAX_TELEMETRY + 1), msg_id="longer")
    await lab.send(data=bytes(subjects.MAX_TELEMETRY), msg_id="long")
    await lab.handled()
    (letter,) = await lab.letters()
    assert letter["size"] == subjects.MAX_TELEMETRY
    assert "batch_bytes" in letter["reason"]


async def test_nothing_is_lost_while_the_bus_will_not_take_it(lab):
    lab.broker.full.add("EVENTS_RAW")
    for n in range(1, 6):
        await lab.send(execed(n), msg_id=str(n))
    await eventually(lambda: lab.ingest.waiting)
    ready = await lab.client.get("/readyz")
    assert ready.status_code == 503
    assert "maximum bytes" not in ready.text, "its detail is for viewers"
    assert "maximum bytes" in (await lab.get("/readyz", "view")).text
    assert await lab.bus.lag("TELEMETRY", "ingest") == 5
    lab.broker.full.clear()
    await lab.handled()
    assert sorted(batch.events[0].seq for batch in await lab.raw()) == [1, 2, 3, 4, 5]
    assert (await lab.client.get("/readyz")).status_code == 200


async def test_letters_come_in_pages(lab):
    for n in range(5):
        await lab.send(data=b"\xc1" + bytes([n]), msg_id=str(n))
    await lab.handled()
    first = (await lab.get("/api/v1/dead", limit=3)).json()
    second = (await lab.get("/api/v1/dead", limit=3, cursor=first["next_cursor"])).json()
    assert [len(first["items"]), len(second["items"])] == [3, 2]
    assert second["next_cursor"] is None
    assert await lab.letters(stream="acks") == []
    assert len(await lab.letters(stream="telemetry")) == 5
    for unknown in ("a.b", "nosuch", "TELEMETRY", "dead"):
        answer = await lab.get("/api/v1/dead", stream=unknown)
        assert answer.status_code == 422
        assert "stream: expected maps or " in answer.json()["detail"]


async def test_a_letter_that_is_still_wrong_comes_back_and_a_dry_run_says_so(lab):
    raw = msgspec.to_builtins(EventBatch(host_id="web-1", boot_id="b", sent_ns=NOON, events=(execed(7),)))
    raw["events"][0]["pid"] = -1
    await lab.send(data=msgspec.msgpack.encode(raw))
    await lab.handled()
    (letter,) = await lab.letters()
    tried = (await lab.replay(letter["id"], dry_run="true")).json()
    assert (tried["dry_run"], tried["accepted"], len(tried["refused"])) == (True, 0, 1)
    assert lab.store.lines == []
    done = await lab.replay(letter["id"])
    assert done.status_code == 200
    await lab.handled()
    assert await lab.raw() == []
    assert [line.action for line in lab.store.lines] == ["dead.replay"]
    assert lab.store.lines[0].object == f"dead/{letter['id']}"


async def test_a_letter_that_is_well_by_now_goes_on(lab):
    data = encode_batch(EventBatch(host_id="web-1", boot_id="b", sent_ns=NOON, events=(execed(7),)))
    headers = {"Aegisflux-Reason": "an older version", "Aegisflux-Subject": "telemetry.web-1"}
    await lab.bus.publish(subjects.dead("telemetry"), data, msg_id="old", headers=headers)
    (letter,) = await lab.letters()
    lab.store.away = True
    assert (await lab.replay(letter["id"])).json()["accepted"] == 1
    await lab.handled()
    assert [event.seq for batch in await lab.raw() for event in batch.events] == [7]


async def test_what_came_on_other_subjects_is_not_replayed(lab):
    headers = {"Aegisflux-Reason": "bad", "Aegisflux-Subject": subjects.acks("web-1")}
    await lab.bus.publish(subjects.dead("acks"), b"x", msg_id="a", headers=headers)
    (letter,) = await lab.letters()
    refused = await lab.replay(letter["id"])
    assert (refused.status_code, "never replayed" in refused.text) == (422, True)
    assert (await lab.replay(99)).status_code == 404


async def test_events_are_posted_as_the_host_of_the_token(lab):
    answer = await lab.post(lines(execed(5), flow(9)))
    assert answer.status_code == 202
    found = answer.json()
    assert (found["accepted"], found["refused"]) == (2, [])
    (batch,) = await lab.raw()
    assert (batch.host_id, batch.boot_id) == ("app-1", found["id"])
    assert found["id"].startswith("http:")
    assert [event.seq for event in batch.events] == [1, 2]


async def test_the_same_request_again_adds_nothing(lab):
    body = lines(execed(1))
    first, second = [(await lab.post(body)).json() for _ in range(2)]
    assert first == second
    keyed = [await lab.post(lines(execed(2)), headers={"Idempotency-Key": "k1"}) for _ in range(2)]
    assert keyed[0].json()["id"] == keyed[1].json()["id"]
    assert len(await lab.raw()) == 2


async def test_a_key_that_is_used_again_with_another_body_loses_nothing(lab):
    posted = [await lab.post(lines(execed(n)), headers={"Idempotency-Key": "k1"}) for n in (2, 3)]
    assert posted[0].json()["id"] != posted[1].json()["id"]
    assert len(await lab.raw()) == 2


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (lines(execed(1), flow(2)), {}),
        (b"[" + lines(execed(1)) + b" ,\n" + lines(flow(2)) + b"]", {"Content-Type": "application/json"}),
        (
            msgspec.msgpack.encode([execed(1), flow(2)]),
            {"Content-Type": "application/msgpack"},
        ),
        (
            gzip.compress(lines(execed(1))) + gzip.compress(b"\n" + lines(flow(2))),
            {"Content-Encoding": "gzip"},
        ),
        (zstandard.compress(lines(execed(1), flow(2))), {"Content-Encoding": "zstd"}),
    ],
    ids=["ndjson", "array", "msgpack", "gzip", "zstd"],
)
async def test_each_form_of_a_body(lab, body, headers):
    answer = await lab.post(body, headers=headers)
    assert (answer.status_code, answer.json().get("accepted")) == (202, 2), answer.text
    assert [event.seq for batch in await lab.raw() for event in batch.events] == [1, 2]


async def test_bad_records_are_named_and_kept_and_the_others_go_on(lab):
    body = b"\n".join([lines(execed(1)), b'{"type":"exec"}', b"no json", lines(flow(2, NOON + 60 * SECOND))])
    found = (await lab.post(body)).json()
    assert (found["accepted"], [place["index"] for place in found["refused"]]) == (2, [1, 2])
    (batch,) = await lab.raw()
    assert [(event.seq, event.clamped) for event in batch.events] == [(1, False), (4, True)]
    letters = await lab.letters(stream="http")
    assert [letter["host_id"] for letter in letters] == ["app-1", "app-1"]
    whole = (await lab.get(f"/api/v1/dead/{letters[1]['id']}")).json()
    assert base64.b64decode(whole["payload"]) == b"no json"
    assert whole["headers"]["Aegisflux-Index"] == "2"
    assert (await lab.replay(letters[1]["id"])).status_code == 422


async def test_a_posted_letter_keeps_its_place_when_it_is_replayed(lab, monkeypatch):
    line = b"Dec 10 06:55:46 LabSZ sshd[24200]: Invalid user webmaster from 173.234.31.186"
    kept = posted.FORMATS["sshd"]
    monkeypatch.setitem(posted.FORMATS, "sshd", posted.FORMATS["falco"])
    found = (await lab.post(b"\n\n" + line, format="sshd")).json()
    assert found["refused_count"] == 1
    monkeypatch.setitem(posted.FORMATS, "sshd", kept)
    (letter,) = await lab.letters()
    assert (await lab.replay(letter["id"])).json()["accepted"] == 1
    (batch,) = await lab.raw()
    assert (batch.boot_id, batch.events[0].seq, batch.events[0].user) == (found["id"], 1, "webmaster")


@pytest.mark.parametrize("token", ["op", "view", "nobody", ""])
async def test_only_a_source_may_post(lab, token):
    assert (await lab.post(lines(execed(1)), token)).status_code in (401, 403)
    assert await lab.raw() == []


async def test_a_source_may_do_nothing_else_and_viewers_see_no_letters(lab):
    for path in ("/api/v1/dead", "/api/v1/dead/1", "/metrics", "/api/v1/clocks"):
        assert (await lab.get(path, "src")).status_code == 403
    assert (await lab.get("/api/v1/dead", "view")).status_code == 403
    assert (await lab.replay(1, "view")).status_code == 403


@pytest.mark.parametrize(
    ("body", "headers", "query", "status"),
    [
        (gzip.compress(bytes(65 << 20)), {"Content-Encoding": "gzip"}, {}, 413),
        (zstandard.compress(bytes(65 << 20)), {"Content-Encoding": "zstd"}, {}, 413),
        (bytes(17 << 20), {}, {}, 413),
        (b"x\n" * 50_001, {}, {}, 413),
        (b"[" + b"1," * 60_000 + b"1]", {}, {}, 413),
        (b"\xdd\xff\xff\xff\xff", {"Content-Type": "application/msgpack"}, {}, 422),
        (b"no gzip", {"Content-Encoding": "gzip"}, {}, 422),
        (gzip.compress(b"{}")[:-12], {"Content-Encoding": "gzip"}, {}, 422),
        (b"no zstd", {"Content-Encoding": "zstd"}, {}, 422),
        (b"{}", {"Content-Encoding": "br"}, {}, 415),
        (b"{}", {}, {"format": "csv"}, 422),
        (b"[{}, {}", {"Content-Type": "application/json"}, {}, 422),
    ],
    ids=[
        "gzip bomb",
        "zstd bomb",
        "long",
        "many",
        "array",
        "msgpack",
        "gzip",
        "cut",
        "zstd",
        "br",
        "csv",
        "json",
    ],
)
async def test_a_body_that_cannot_be_taken_is_refused_whole(lab, body, headers, query, status):
    answer = await lab.post(body, headers=headers, **query)
    assert answer.status_code == status, answer.text
    assert await lab.raw() == []


async def test_deep_nesting_is_one_refused_record(lab):
    body = lines(execed(1)) + b"\n" + b'{"a":' * 20_000
    found = (await lab.post(body)).json()
    assert (found["accepted"], found["refused"][0]["index"]) == (1, 1)


async def test_a_request_is_not_accepted_while_the_bus_does_not_take_it(lab):
    lab.broker.full.add("EVENTS_RAW")
    body = lines(execed(1))
    assert (await lab.post(body)).status_code == 503
    lab.broker.full.clear()
    assert (await lab.post(body)).status_code == 202
    assert len(await lab.raw()) == 1


async def test_large_requests_become_batches_of_bounded_size(lab):
    events = [execed(n, args=("x" * 4000,) * 20) for n in range(1, 31)]
    assert (await lab.post(lines(*events))).json()["accepted"] == 30
    batches = await lab.raw()
    assert all(len(encode_batch(batch)) <= 360 << 10 for batch in batches)
    assert [event.seq for batch in batches for event in batch.events] == list(range(1, 31))


async def test_an_event_that_fits_in_no_batch_is_refused(lab):
    found = (await lab.post(lines(execed(1, args=("x" * 4000,) * 200), execed(2)))).json()
    assert (found["accepted"], "batch_bytes" in found["refused"][0]["reason"]) == (1, True)


async def test_the_common_pages(lab):
    assert (await lab.client.get("/healthz")).json() == {"status": "ok"}
    ready = (await lab.client.get("/readyz")).json()
    assert [line["name"] for line in ready["dependencies"]] == ["store", "bus", "ingest", "tokens"]
    assert (await lab.client.get("/version")).json()["name"] == "aegisflux-ingest"
    assert "aegisflux_events_taken_total" in (await lab.get("/metrics", "view")).text
    document = json.loads((await lab.client.get("/schema/openapi.json")).text)
    assert "/api/v1/events" in document["paths"]


async def test_many_posts_at_once_are_all_taken(lab):
    answers = await asyncio.gather(*(lab.post(lines(execed(n), flow(n))) for n in range(1, 31)))
    assert {answer.status_code for answer in answers} == {202}
    assert len(await lab.raw()) == 30


DISKS = {  # total and free, in GiB: whether telemetry goes on
    "a large disk": ((1000, 900), True),
    "a large disk with little left": ((1000, 5), True),
    "a large disk that is almost full": ((1000, 3), False),
    "a small disk": ((20, 3), True),
    "a small disk that is almost full": ((20, 1), False),
    "a full disk": ((20, 0), False),
}


@pytest.mark.parametrize("what", DISKS)
async def test_telemetry_leaves_room_on_the_disk_for_the_store(lab, what):
    """Else one host fills it within its share, and then nobody can panic."""
    (total, free), goes_on = DISKS[what]
    now = [free << 30]
    lab.ingest._spare = Spare(Path("/data"), lambda _: (total << 30, 0, now[0]))
    answer = await lab.post(lines(execed(7)))
    await lab.send(execed(1))
    if goes_on:
        assert answer.status_code == 202, answer.text
        await lab.handled()
    else:
        assert answer.status_code == 503
        assert "give it room" in answer.json()["detail"]
        await eventually(lambda: "/data: " in lab.ingest.waiting)
        assert await lab.raw() == []
        now[0] = total << 30
        await lab.handled()
    assert [event.seq for batch in await lab.raw() for event in batch.events if batch.boot_id == "b"] == [1]


async def test_a_flood_does_not_take_from_others_what_is_left_of_the_disk(lab):
    """Between what telemetry leaves and twice as much each host has its part."""
    free = [6 << 30]
    lab.ingest._spare = Spare(Path("/data"), lambda _: (1000 << 30, 0, free[0]))
    many = lines(*(execed(n) for n in range(1, 500)))
    posted = [(await lab.post(many)).status_code for _ in range(16)]
    assert 1 <= posted.count(202) < 16
    refused = await lab.post(many)
    assert (refused.status_code, "share of events" in refused.text) == (429, True)
    free[0] = 9 << 30
    assert (await lab.post(many)).status_code == 202


async def test_a_disk_that_cannot_be_asked_stops_nothing(lab):
    def gone(_):
        raise FileNotFoundError

    spare = Spare(Path("/gone"), gone)
    spare.check()
    assert not spare.is_scarce()
