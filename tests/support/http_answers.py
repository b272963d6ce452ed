"""A server of HTTP that answers with the bytes it was given, whatever they are."""

import socket
import threading
from contextlib import contextmanager, suppress

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def problem(status: int, *headers: str, body: bytes = b"{}") -> bytes:
    """An answer of that status."""
    lines = (f"HTTP/1.1 {status} No", f"Content-Length: {len(body)}", "Connection: close", *headers, "", "")
    return "\r\n".join(lines).encode() + body


@contextmanager
def answering(*answers: bytes):
    """A server that gives each connection the next answer, yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            with suppress(OSError):  # fewer came than were expected, or they left
                for answer in answers:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        thread.join(10)
