"""What a program sees when it talks: one word for each attempt, over real sockets.

connected / answered: it works; EPERM: refused at the call; silent: nothing came back in time.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable

WAIT = 0.25
ECHO = """
import selectors, socket, sys
s = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    t = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    u.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    u.bind(("::", port))
    s.register(t, 1, "accept"), s.register(u, 1, "datagram")
print("ready", flush=True)
while True:
    for key, _ in s.select():
        sock = key.fileobj
        try:
            if key.data == "accept":
                s.register(sock.accept()[0], 1, "stream")
            elif key.data == "datagram":
                data, peer = sock.recvfrom(2048)
                sock.sendto(data, peer)
            else:
                data = sock.recv(2048)
                if data:
                    sock.send(data)
                else:
                    s.unregister(sock), sock.close()
        except OSError:
            if key.data == "stream":
                s.unregister(sock), sock.close()
"""


def echo_argv(*ports: int) -> list[str]:
    """A TCP and UDP echo server on every address; prints `ready`."""
    return [sys.executable, "-S", "-c", ECHO, *map(str, ports)]


def word(attempt: Callable[[], str]) -> str:
    try:
        return attempt()
    except TimeoutError:
        return "silent"
    except OSError as err:
        return errno.errorcode.get(err.errno or 0, repr(err))


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tcp(address: str, port: int, wait: float = WAIT) -> str:
    def attempt() -> str:
        with socket.socket(family_of(address), socket.SOCK_STREAM) as s:
            s.settimeout(wait)
            s.connect((address, port))
            s.send(b"x")
            return "connected" if s.recv(1) == b"x" else "closed"

    return word(attempt)


def udp_sendto(address: str, port: int, wait: float = WAIT) -> str:
    def attempt() -> str:
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as s:
            s.settimeout(wait)
            s.sendto(b"x", (address, port))
            return "answered" if s.recv(9) == b"x" else "garbled"

    return word(attempt)


def udp_connected(address: str, port: int, wait: float = WAIT) -> str:
    def attempt() -> str:
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as s:
            s.settimeout(wait)
            s.connect((address, port))
            s.send(b"x")
            return "answered" if s.recv(9) == b"x" else "garbled"

    return word(attempt)


def ping(address: str, wait: float = WAIT) -> str:
    """An echo request by a raw socket."""
    v6 = ":" in address

    def attempt() -> str:
        proto = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
        with socket.socket(family_of(address), socket.SOCK_RAW, proto) as s:
            s.settimeout(wait)
            body = struct.pack("!HH", os.getpid() & 0xFFFF, 1) + b"aegisflux"
            head = struct.pack("!BBH", 128 if v6 else 8, 0, 0)
            if not v6:
                head = struct.pack("!BBH", 8, 0, checksum(head + body))
            s.sendto(head + body, (address, 0))
            while True:
                data = s.recv(2048)
                if not v6:
                    data = data[20:]
                if data[0] in (0, 129) and data.endswith(b"aegisflux"):
                    return "answered"

    return word(attempt)


def raw(address: str, proto: int, wait: float = WAIT) -> str:
    """One packet of any protocol by a raw socket: `sent`, or the refusal."""

    def attempt() -> str:
        with socket.socket(family_of(address), socket.SOCK_RAW, proto) as s:
            s.settimeout(wait)
            s.sendto(struct.pack("!HHII", 40000, 5432, 0, 0), (address, 0))
            return "sent"

    return word(attempt)


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
