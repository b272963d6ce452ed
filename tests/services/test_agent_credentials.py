"""An agent's credentials on the bus are renewed before they end, by the way that is open, and by no other."""

import asyncio

import msgspec
import pytest
from nacl.signing import SigningKey

from aegisflux.agent import enroll
from aegisflux.agent.credentials import Credentials
from aegisflux.agent.identity import IDENTITY, Identity
from aegisflux.agent.parts import inline
from aegisflux.agent.state import MemoryStore
from aegisflux.domain.errors import Refused, Unavailable
from aegisflux.wire import natsjwt, subjects
from aegisflux.wire.token import Renewed
from support.http_answers import answering, problem

DAY = 86_400
KEY = SigningKey(bytes(32))
USER = natsjwt.public_nkey("user", bytes(KEY.verify_key))
REFUSED = "cannot connect: nats: 'authorization violation'"


def jwt(issued=0, ends=14 * DAY, name="web1", sub=USER) -> str:
    made = natsjwt.user_jwt(
        sub, name=name, account="A", issuer="A", now=issued, until=ends, sign=lambda _: b"s"
    )
    assert natsjwt.claims(made).get("exp", 0) == ends
    return made


class Bus:
    """A connection that answers with `answer`, or raises it."""

    def __init__(self, answer=None) -> None:
        self.connected, self.last_error, self.answer = True, "", answer
        self.asked, self.shown = [], []

    def use(self, user_jwt: str) -> None:
        self.shown.append(user_jwt)

    async def request(self, subject, payload, timeout=5.0):
        self.asked.append(subject)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Lab:
    def __init__(self, monkeypatch, given=None, url="https://control:8081", setting="") -> None:
        self.bus, self.store, self.logs, self.posts = Bus(), MemoryStore(), [], []
        self.answer = renewed()
        identity = Identity("web1", given or jwt(), ("nats://a",), "ca", b"r", b"k", url)

        def post(identity, where, seed):
            self.posts.append(where)
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        monkeypatch.setattr(enroll, "renew", post)
        self.credentials = Credentials(
            identity, bytes(KEY), setting, self.bus, self.store, inline, self.logs.append
        )

    def look(self, now: float) -> bool:
        return asyncio.run(self.credentials.look(now))

    def kept(self) -> Identity | None:
        raw = self.store.read(IDENTITY)
        return None if raw is None else msgspec.msgpack.decode(raw, type=Identity)


def renewed(**changes) -> bytes:
    return msgspec.json.encode(Renewed(jwt(7 * DAY, 21 * DAY, **changes), ("nats://b",)))


@pytest.fixture
def lab(monkeypatch):
    return Lab(monkeypatch)


@pytest.mark.parametrize(
    ("now", "due"), [(0, False), (7 * DAY - 1, False), (7 * DAY, True), (20 * DAY, True)]
)
def test_they_are_renewed_over_the_bus_when_half_of_their_time_is_over(lab, now, due):
    lab.bus.answer = renewed()
    assert lab.look(now)
    assert lab.bus.asked == ([subjects.credentials("web1")] if due else [])
    assert lab.bus.shown == ([jwt(7 * DAY, 21 * DAY)] if due else [])
    assert (lab.kept() is not None) == due
    assert not lab.posts


def test_credentials_without_an_end_are_renewed_at_once(monkeypatch):
    lab = Lab(monkeypatch, given=jwt(ends=0))
    lab.bus.answer = renewed()
    assert lab.look(1)
    assert lab.bus.asked


@pytest.mark.parametrize("error", [REFUSED, "connection ended: nats: 'user authentication expired'"])
def test_refused_by_the_bus_it_asks_over_https_with_its_key(lab, error):
    lab.bus.connected, lab.bus.last_error = False, error
    assert lab.look(30 * DAY)
    assert lab.posts == ["https://control:8081"]
    assert lab.bus.shown == [jwt(7 * DAY, 21 * DAY)]
    assert (lab.kept().user_jwt, lab.kept().nats_urls) == (lab.bus.shown[0], ("nats://b",))


@pytest.mark.parametrize(
    ("connected", "error", "url"),
    [
        (False, "cannot connect: connection refused", "https://control:8081"),
        (False, "cannot connect: certificate verify failed", "https://control:8081"),
        (False, REFUSED, ""),
        (True, REFUSED, "https://control:8081"),
    ],
)
def test_for_any_other_reason_it_does_not(monkeypatch, connected, error, url):
    lab = Lab(monkeypatch, url=url)
    lab.bus.connected, lab.bus.last_error = connected, error
    assert lab.look(1)
    assert not lab.posts


def test_a_setting_says_where_to_ask_instead(monkeypatch):
    lab = Lab(monkeypatch, setting="https://elsewhere:1")
    lab.bus.connected, lab.bus.last_error = False, REFUSED
    assert lab.look(1)
    assert lab.posts == ["https://elsewhere:1"]


@pytest.mark.parametrize(
    "answer",
    [
        renewed(name="web2"), renewed(sub=natsjwt.public_nkey("user", bytes(32))), b"\x1b[31m", b"{}", b"",
        Refused("\x1b[31mFOREIGN"), Unavailable("no answer within 5 s"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_changes_nothing_and_is_said_once(lab, answer):
    lab.bus.answer = answer
    assert not lab.look(8 * DAY)
    assert not lab.look(8 * DAY)
    assert (lab.bus.shown, lab.kept()) == ([], None)
    assert len(lab.logs) == 1
    assert "FOREIGN" not in lab.logs[0]
    assert "\x1b" not in lab.logs[0]


def test_a_full_disk_stops_no_renewal(lab, monkeypatch):
    def full(_name, _data):
        raise Unavailable("no space")

    lab.bus.answer = renewed()
    with monkeypatch.context() as patched:
        patched.setattr(lab.store, "write", full)
        assert not lab.look(8 * DAY)
    assert lab.bus.shown
    lab.bus.answer = Unavailable("must not be asked")
    assert lab.look(8 * DAY)
    assert lab.kept().user_jwt == lab.bus.shown[0]
    assert len(lab.bus.asked) == 1


def crowded(seconds: float) -> Unavailable:
    error = Unavailable("503 later")
    error.retry_after = seconds
    return error


class Enough(BaseException):
    """The test has seen what it wants to."""


def waits(lab, answers, wall=lambda: 8 * DAY) -> list[float]:
    """How long it waits before each look when these are the answers over HTTPS, one by one."""
    lab.bus.connected, lab.bus.last_error = False, REFUSED
    left, found = iter(answers), []

    async def sleep(seconds: float) -> None:
        found.append(seconds)
        if (answer := next(left, None)) is None:
            raise Enough
        lab.answer = answer

    with pytest.raises(Enough):
        asyncio.run(lab.credentials.run(wall, sleep))
    return found


AWAY = Unavailable("away")


@pytest.mark.parametrize(
    ("answers", "last"),
    [
        ([AWAY], (15, 45)),
        ([AWAY, AWAY], (30, 90)),
        ([Refused("403")] * 3, (60, 180)),
        ([AWAY] * 7, (960, 2880)),
        ([AWAY] * 20, (1800, 5400)),
        ([crowded(0)], (15, 45)),
        ([crowded(1)], (16, 46)),
        ([crowded(120)], (135, 165)),
        ([crowded(120)] * 3, (180, 300)),
        ([AWAY, crowded(600)], (630, 690)),
        ([crowded(3600)] * 20, (5400, 9000)),
        ([crowded(600), AWAY], (30, 90)),
        ([ZeroDivisionError("a defect")], (15, 45)),
        ([renewed()], (30, 90)),
        ([AWAY] * 5 + [renewed()], (30, 90)),
        ([crowded(600), renewed(), AWAY], (15, 45)),
    ],
)  # fmt: skip
def test_it_comes_again_later_each_time_never_before_it_was_told_to_and_not_all_at_once(
    monkeypatch, answers, last
):
    found = {waits(Lab(monkeypatch), answers)[-1] for _ in range(40)}
    least, most = last
    assert all(least <= seconds <= most for seconds in found)
    assert max(found) - min(found) > (most - least) / 4


@pytest.mark.parametrize(
    "answer",
    [
        problem(429), problem(429, "Retry-After: 5"), problem(503), problem(503, "Retry-After: soon"),
        problem(500), problem(502, body=b"<html>"), problem(403), problem(404), problem(301),
        problem(302, "Location: file:///etc/passwd"), problem(429, body=b"\x1b[31m" * 100),
        b"HTTP/1.1 503 No\r\nContent-Length: 500\r\n\r\ncut",
        b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n5",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
        b"", b"\0", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    ],
)  # fmt: skip
def test_whatever_the_control_plane_answers_it_asks_once_and_goes_on(answer):
    good = problem(200, body=renewed())
    with answering(answer, good) as url:
        bus, logs = Bus(), []
        identity = Identity("web1", jwt(), ("nats://a",), "ca", b"r", b"k", url)
        credentials = Credentials(identity, bytes(KEY), "", bus, MemoryStore(), inline, logs.append)
        bus.connected, bus.last_error = False, REFUSED
        assert not asyncio.run(credentials.look(1))
        assert not bus.shown
        assert asyncio.run(credentials.look(1))
        assert bus.shown == [jwt(7 * DAY, 21 * DAY)]
    assert len(logs) == 2
    assert "\x1b" not in logs[0]
