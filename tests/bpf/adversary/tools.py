"""What an attacker needs: forged packets, and a watch that counts what got out."""

import os
import socket
import struct
import sys
import time

from tests.support import probes
from tests.support.kernel import Kernel
from tests.support.netns import Host

SLOT = 11
ALL = "0.0.0.0/0 any 0; ::/0 any 0"
MARK = b"AEGIS-LEAK"
IPPROTO_MPTCP, MSG_FASTOPEN, TCP_FASTOPEN, UDP_SEGMENT = 262, 0x20000000, 23, 103
IPV6_HDRINCL = 36
WATCH = """
import select, socket, sys
mark = sys.argv[1].encode()
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.setblocking(False)
seen = 0
print("ready", flush=True)
stop = False
while not stop:
    ready, _, _ = select.select([s, sys.stdin], [], [])
    stop = sys.stdin in ready
    try:
        while True:
            data, address = s.recvfrom(65535)
            seen += mark in data and address[2] != 4
    except BlockingIOError:
        pass
print(seen, flush=True)
"""


class Watch:
    """How many packets with the mark reach a host's own device."""

    def __init__(self, kernel: Kernel, host: Host) -> None:
        self._process = kernel.served(host, "watch", [sys.executable, "-S", "-c", WATCH, MARK.decode()])

    def seen(self) -> int:
        time.sleep(0.05)
        out, _ = self._process.communicate(b"\n", timeout=10)
        return int(out)


def ipv4(source: str, dest: str, proto: int, body: bytes, first: int = 0x45) -> bytes:
    head = struct.pack("!BBHHHBBH", first, 0, 20 + len(body), 7, 0, 64, proto, 0)
    head += socket.inet_aton(source) + socket.inet_aton(dest)
    return head[:10] + struct.pack("!H", probes.checksum(head)) + head[12:] + body


def udp_body(source: int, dest: int, data: bytes = MARK) -> bytes:
    return struct.pack("!HHHH", source, dest, 8 + len(data), 0) + data


def udp6(source: str, dest: str, sport: int, dport: int, first: int = 0x60) -> bytes:
    saddr, daddr = socket.inet_pton(socket.AF_INET6, source), socket.inet_pton(socket.AF_INET6, dest)
    body = udp_body(sport, dport)
    total = probes.checksum(saddr + daddr + struct.pack("!II", len(body), 17) + body)
    body = body[:6] + struct.pack("!H", total) + body[8:]
    return struct.pack("!IHBB", first << 24, len(body), 17, 64) + saddr + daddr + body


def frame(device: str, dest_mac: bytes, kind: int, packet: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        s.bind((device, 0))
        s.send(dest_mac + s.getsockname()[4] + struct.pack("!H", kind) + packet)


def mac_of(host: Host) -> bytes:
    text = host.run(["cat", "/sys/class/net/eth0/address"]).stdout
    shown = host.run(["ip", "-br", "link", "show", "eth0"]).stdout.split()
    return bytes.fromhex((shown[2] if len(shown) > 2 else text).strip().replace(":", ""))


def send_bound(device: str, address: str) -> str:
    with socket.socket(probes.family_of(address), socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        return probes.word(lambda: str(s.sendto(MARK, (address, 9))))


def raw_to(via: str, packet: bytes) -> str:
    v6 = ":" in via
    with socket.socket(probes.family_of(via), socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        if v6:
            s.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
        return probes.word(lambda: str(s.sendto(packet, (via, 0))))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
