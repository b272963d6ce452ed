"""Pairs of namespaces joined by a veth of their own: nothing in between, the datapath, or nft."""

import random
import subprocess
import tempfile
from typing import Final

from bench.lib.entries import CLUSTERED, entries
from bench.lib.talkers import Peer, Place
from msgspec import Struct
from tests.support.netns import Lab

from aegisflux.domain.net import cidr_text
from aegisflux.domain.snapshot import Entry, Ruleset

CLIENT, SERVER = "192.0.2.1", "192.0.2.2"
RULES: Final = """
add table inet bench
add set inet bench peers {{ type ipv4_addr; flags interval; }}
add element inet bench peers {{ {elements} }}
add chain inet bench out {{ type filter hook output priority filter; policy drop; }}
add chain inet bench in {{ type filter hook input priority filter; policy drop; }}
add rule inet bench out ct state vmap {{ established : accept, related : accept, invalid : drop }}
add rule inet bench out oifname "lo" accept
add rule inet bench out ip daddr @peers accept
add rule inet bench in ct state vmap {{ established : accept, related : accept, invalid : drop }}
add rule inet bench in iifname "lo" accept
"""


class Policy(Struct, frozen=True):
    """Entries, and some peers that they allow."""

    entries: tuple[Entry, ...]
    tcp: tuple[Peer, ...]
    udp: tuple[Peer, ...]

    def ruleset(self) -> Ruleset:
        return Ruleset(1, 1, self.entries, (), None, (), "enforce", "open", "keep")

    def nft(self) -> str:
        """The same addresses as an interval set behind connection tracking, as an administrator writes it."""
        return RULES.format(elements=",\n".join(sorted({cidr_text(*e.cidr) for e in self.entries})))


def policy(count: int, peers: int, seed: int) -> Policy:
    """`count` entries inside 10.0.0.0/8, TCP and UDP in turns, nine hosts for each prefix."""
    made = entries(count, CLUSTERED, seed)
    rng = random.Random(seed)
    every = [e._replace(proto=("tcp", "udp")[i % 2]) for i, e in enumerate(made.every())]

    def some(proto: str) -> tuple[Peer, ...]:
        among = [entry for entry in every if entry.proto == proto]
        chosen = rng.sample(among, peers)
        return tuple(Peer(rng.randint(e.cidr.value, e.cidr.last), e.port) for e in chosen)

    return Policy(tuple(every), some("tcp"), some("udp"))


def pair(lab: Lab, name: str) -> tuple[str, str]:
    """Two namespaces of the lab's hosts: every address of 10.0.0.0/8 is at the server's."""
    client, server = lab.host(f"{name}-client").netns, lab.host(f"{name}-server").netns
    for netns in (client, server):
        _ip(f"-n {netns} link del eth0")
    _ip(f"link add eth0 netns {client} type veth peer name eth0 netns {server}")
    for netns, address in ((client, CLIENT), (server, SERVER)):
        _ip(f"-n {netns} addr add {address}/24 dev eth0")
        _ip(f"-n {netns} link set eth0 up")
    _ip(f"-n {client} route add 10.0.0.0/8 via {SERVER}")
    _ip(f"-n {server} route add local 10.0.0.0/8 dev lo")
    return client, server


def load_nft(netns: str, rules: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
        file.write(rules)
        file.flush()
        _run(["ip", "netns", "exec", netns, "nft", "-f", file.name])


def place(lab: Lab, netns: str, name: str) -> Place:
    """A cgroup of that name below the lab's."""
    cgroup = lab.cgroup / name
    cgroup.mkdir(exist_ok=True)
    return Place(netns, cgroup)


def _ip(words: str) -> None:
    _run(["ip", *words.split()])


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()[:300]}")
