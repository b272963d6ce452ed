"""Tricks against what is remembered of flows: none, a lost one, one that the kernel makes itself."""

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.wire import layout
from tests.bpf.adversary.initiators import MPTCP
from tests.bpf.adversary.paths import FREE_TO_DB
from tests.bpf.adversary.test_begin import MPTCP_SERVER
from tests.bpf.adversary.trick import APP4, DB4, OPEN, PAL4, Trick, marked_at_db, tcp, udp
from tests.support.unprivileged import MARK, SLICE, SLOT, Arena, Steps

Act = Callable[[Arena], object]


def from_before_the_agent() -> Steps:
    """A connection from a port on which we also listen, older than the agent: nothing says who began it."""
    with tcp() as listener, tcp() as caller:
        for s in (listener, caller):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            s.bind(("", 4013))
        caller.connect((DB4, 5432))
        listener.listen()
        caller.send(b"hello")
        caller.recv(99)
        yield
        return str(caller.send(MARK))


def from_before_the_agent_unbound() -> Steps:
    """The same, but the kernel chose the port, and the listener came later."""
    with tcp() as listener, tcp() as caller:
        caller.connect((DB4, 5432))
        listener.bind(("", caller.getsockname()[1]))
        listener.listen()
        caller.send(b"hello")
        caller.recv(99)
        yield
        return str(caller.send(MARK))


def anew(arena: Arena) -> None:
    """The agent's first start on this host, with a deny."""
    kernel = arena.kernel
    kernel.datapath.panic()
    kernel.datapath.open()
    kernel.bind(arena.app.below(SLICE), SLOT)
    kernel.enforce(SLOT, OPEN)


def accepted_before_the_agent(closing: bool) -> Steps:
    """The honest counterpart: a connection that the denied host began. It may be half closed already."""
    with tcp(wait=2) as listener:
        listener.bind(("", 4018))
        listener.listen()
        yield
        with listener.accept()[0] as accepted:
            accepted.settimeout(1)
            accepted.send(b"hello")
            if closing:
                accepted.recv(99)
            yield
            return str(accepted.send(MARK))


def late_answer() -> Steps:
    """Asked while it was allowed; the denied host answers late, when the flow may be forgotten."""
    with udp() as s:
        s.bind(("", 4014))
        s.sendto(b"hello", (DB4, 4015))
        yield
        with suppress(TimeoutError):
            s.recv(99)
        return str(s.sendto(MARK, (DB4, 4015)))


def answer(arena: Arena) -> None:
    def run() -> None:
        with udp() as s:
            s.bind(("", 4015))
            s.sendto(b"late", (APP4, 4014))

    arena.db.call(run)


def deny_and_answer(arena: Arena) -> None:
    arena.kernel.enforce(SLOT, OPEN)
    answer(arena)


def forget_and_answer(arena: Arena) -> None:
    """What three minutes of silence do to a record, or a flood of thirty thousand other datagrams."""
    arena.kernel.enforce(SLOT, OPEN)
    flows = libbpf.lookup(arena.kernel.datapath._pins.maps["udp_flows"], SLOT.to_bytes(4, "little"), 4)
    assert flows
    fd = libbpf.map_fd_by_id(int.from_bytes(flows, "little"))
    assert fd is not None
    for key in libbpf.keys(fd, layout.UDP_KEY.size):
        libbpf.delete(fd, key)
    os.close(fd)
    answer(arena)


def port_used_before() -> str:
    """The port of an allowed connection that is gone, at once for another."""
    for peer in (PAL4, DB4):
        with tcp() as s:
            s.bind(("", 4016))
            s.connect((peer, 5432))
            s.send(MARK)
    return "sent"


def many_sockets() -> str:
    """As many sockets as we may have, up to four thousand, then one that sends."""
    most = min(4_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 64)
    held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(most)]
    return str(held[-1].sendto(MARK, (DB4, 9)))


def announced_subflow() -> Steps:
    """An allowed host announces the denied one's address: the kernel itself connects to it."""
    yield
    with tcp(proto=MPTCP, wait=1) as s:
        s.connect((PAL4, 6200))
        for _ in range(10):
            s.send(b"hello")
            s.recv(99)
            time.sleep(0.03)
        return "talked"


def announce(arena: Arena) -> None:
    """The hosts accept further addresses, and the allowed one tells the denied one's."""
    for host, rest in ((arena.app, ()), (arena.pal, (DB4, "dev", "eth0", "signal"))):
        mptcp = ["ip", "-n", host.netns, "mptcp"]
        subprocess.run([*mptcp, "limits", "set", "subflow", "4", "add_addr_accepted", "4"], check=True)
        subprocess.run([*mptcp, "endpoint", "flush"], check=True)
        if rest:
            subprocess.run([*mptcp, "endpoint", "add", *rest], check=True)
    if not arena.__dict__.get("mptcp"):
        argv = [sys.executable, "-S", "-c", MPTCP_SERVER, "6200", "mptcp"]
        arena.__dict__["mptcp"] = arena.kernel.served(arena.pal, "server", argv)


TRICKS = {
    "a connection from before the agent, from a listening port": Trick(
        from_before_the_agent, (FREE_TO_DB,), marked_at_db, between=(anew,)
    ),
    "the same from a port that the kernel chose": Trick(
        from_before_the_agent_unbound, (FREE_TO_DB,), marked_at_db, between=(anew,)
    ),
    "a late answer of a denied flow": Trick(
        late_answer, (FREE_TO_DB,), marked_at_db, between=(deny_and_answer,)
    ),
    "a late answer of a denied flow that is forgotten": Trick(
        late_answer,
        (FREE_TO_DB,),
        marked_at_db,
        between=(forget_and_answer,),
        listed="what the peer sends then counts as begun by the peer",
    ),
    "a port used before": Trick(port_used_before),
    "very many sockets": Trick(many_sockets),
    "a subflow that an allowed host announces": Trick(announced_subflow, between=(announce,)),
}
