"""A host that enrols while many do asks again; what is refused it does not ask twice."""

import socket
import threading
from contextlib import contextmanager

import pytest

from aegisflux.agent import enroll
from aegisflux.domain.errors import Refused, Unavailable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def problem(status: int) -> bytes:
    return f"HTTP/1.1 {status} No\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()


@contextmanager
def answering(*answers: bytes):
    """A server that gives each connection the next answer, yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        thread.join(10)


@pytest.fixture
def pauses(monkeypatch):
    found: list[float] = []
    monkeypatch.setattr(enroll.time, "sleep", found.append)
    return found


@pytest.mark.parametrize("crowded", [problem(429), problem(503)])
def test_it_asks_again_and_pauses_longer_each_time(pauses, crowded):
    with answering(crowded, crowded, OK) as url:
        assert enroll._call(url, None, b"{}") == b"ok"
    assert len(pauses) == 2
    assert 0.5 <= pauses[0] <= 1 <= pauses[1] <= 2


def test_it_gives_up_in_the_end(pauses):
    with answering(*[problem(429)] * enroll.TRIES) as url, pytest.raises(Unavailable, match="429"):
        enroll._call(url, None, b"{}")
    assert len(pauses) == enroll.TRIES - 1
    assert sum(pauses) < 60


@pytest.mark.parametrize(("status", "kind"), [(403, Refused), (409, Refused), (500, Unavailable)])
def test_what_would_be_the_same_again_is_asked_once(pauses, status, kind):
    with answering(problem(status)) as url, pytest.raises(kind):
        enroll._call(url, None, b"{}")
    assert not pauses
