"""Tricks to be somebody else: other cgroups, threads, namespaces, other ways to come by a socket."""

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.bpf.adversary.initiators import be_root_of_nothing
from tests.bpf.adversary.test_calls import io_uring_connect
from tests.bpf.adversary.trick import DB4, Trick, udp
from tests.support.netns import cgroup_root
from tests.support.unprivileged import FREE, GOVERNED, MARK, Arena, Steps

CLONE_NEWCGROUP, CLONE_NEWNS, CLONE_INTO_CGROUP = 0x02000000, 0x00020000, 0x200000000
ODD_NAMES = (b"\xff", b"\x1b[2J\x1b[31m", b"\xc3\xa9\xe2\x80\xae", b"x" * 255, b"postgresql.service")
_libc = ctypes.CDLL(None, use_errno=True)


def send() -> str:
    with udp() as s:
        return str(s.sendto(MARK, (DB4, 9)))


def home() -> Path:
    """The cgroup we are in."""
    return cgroup_root() / Path("/proc/self/cgroup").read_text().splitlines()[-1][3:].lstrip("/")


def move(path: Path) -> None:
    (path / "cgroup.procs").write_text("0")


def odd_names() -> str:
    """Names that are no text, or someone else's."""
    start = os.fsencode(home())
    words = []
    for name in ODD_NAMES:
        path = Path(os.fsdecode(start + b"/" + name))
        path.mkdir(exist_ok=True)
        move(path)
        with suppress(PermissionError):
            words.append(send())
    return " ".join(words)


def anothers_path() -> str:
    """The whole path of a service of the host, below our own tree."""
    path = home() / "system.slice/postgresql.service"
    path.mkdir(parents=True, exist_ok=True)
    move(path)
    return send()


def deep() -> str:
    path = home()
    for _ in range(60):
        path = path / "d"
        path.mkdir(exist_ok=True)
    move(path)
    return send()


def born_elsewhere() -> str:
    """Sockets from before and from after each move, and of a cgroup that is gone."""
    start = home()
    words = []
    with udp() as first:
        for name in ("one", "two"):
            path = start / name
            path.mkdir(exist_ok=True)
            move(path)
            with udp() as s:
                move(start)
                path.rmdir()
                for sock in (first, s):
                    with suppress(PermissionError):
                        words.append(str(sock.sendto(MARK, (DB4, 9))))
    return " ".join(words)


def churn() -> str:
    """Three hundred cgroups, each removed at once, a socket of each."""
    start = home()
    words = set()
    for n in range(300):
        path = start / f"c{n}"
        path.mkdir()
        move(path)
        with udp() as s:
            move(start)
            path.rmdir()
            with suppress(PermissionError):
                words.add(str(s.sendto(MARK, (DB4, 9))))
    return " ".join(words)


def by_a_thread() -> str:
    """A thread in a cgroup other than its process's."""
    path = home() / "threaded"
    path.mkdir(exist_ok=True)
    (path / "cgroup.type").write_text("threaded")
    words = []

    def run() -> None:
        (path / "cgroup.threads").write_text(str(threading.get_native_id()))
        with suppress(PermissionError):
            words.append(send())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return " ".join(words)


def cloned_into(path: Path, action: Callable[[], object]) -> int:
    """clone3 with CLONE_INTO_CGROUP; the child's exit status."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    arguments = struct.pack("@11Q", CLONE_INTO_CGROUP, 0, 0, 0, 17, 0, 0, 0, 0, 0, fd)
    pid = _libc.syscall(435, arguments, len(arguments))
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    if not pid:
        try:
            action()
        finally:
            os._exit(0)
    os.close(fd)
    return os.waitpid(pid, 0)[1]


def clone_into_own() -> str:
    path = home() / "born"
    path.mkdir(exist_ok=True)
    return str(cloned_into(path, send))


def move_out() -> str:
    """Into the user's other subtree, which no service maps; then away without having moved."""
    other = Path(str(home()).partition(f"/{GOVERNED}")[0], FREE)
    words = []
    for way in (lambda: move(other), lambda: cloned_into(other, send)):
        try:
            way()
        except OSError as error:
            words.append(str(error.errno))
    return " ".join([*words, send()])


def user_namespace() -> str:
    """uid 0 of a user namespace of our own, in the host's network namespace."""
    be_root_of_nothing(0)
    with udp() as s:
        with suppress(PermissionError):
            s.setsockopt(socket.IPPROTO_IP, 19, 1)
        with suppress(PermissionError):
            socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()
        return str(s.sendto(MARK, (DB4, 9)))


def cgroup_namespace() -> str:
    """A cgroup namespace whose root is our own cgroup, and a mount of it."""
    be_root_of_nothing(CLONE_NEWCGROUP | CLONE_NEWNS)
    target = Path("/tmp")
    if _libc.mount(b"none", str(target).encode(), b"cgroup2", 0, None):
        raise OSError(ctypes.get_errno(), "mount cgroup2")
    (target / "inner").mkdir()
    move(target / "inner")
    return send()


def packet_socket() -> str:
    with suppress(PermissionError):
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x300).close()
        return "opened"
    return send()


def ring() -> str:
    return io_uring_connect(DB4, 5432)


def given() -> Steps:
    """A socket that a process of no service made and passed on."""
    name = f"\0aegisflux-{os.getppid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(name)
        yield
        _, descriptors, _, _ = socket.recv_fds(ear, 9, 1)
    with socket.socket(fileno=descriptors[0]) as got:
        return str(got.sendto(MARK, (DB4, 9)))


def give(arena: Arena) -> None:
    name = f"\0aegisflux-{os.getpid()}"

    def run() -> str:
        with udp() as s, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
            mouth.connect(name)
            return str(socket.send_fds(mouth, [b"x"], [s.fileno()]))

    arena.other(run)


TRICKS = {
    "cgroups of odd names": Trick(odd_names),
    "a cgroup with another service's path": Trick(anothers_path),
    "60 levels of cgroups": Trick(deep),
    "sockets of cgroups left and removed": Trick(born_elsewhere),
    "300 cgroups made and removed": Trick(churn),
    "a thread in another cgroup": Trick(by_a_thread),
    "clone3 into an own cgroup": Trick(clone_into_own),
    "a move to a cgroup of no service": Trick(move_out),
    "root of a user namespace": Trick(user_namespace),
    "a cgroup namespace": Trick(cgroup_namespace),
    "a packet socket": Trick(packet_socket),
    "io_uring": Trick(ring),
    "a socket that a process of no service gave": Trick(
        given, between=(give,), listed="The acts of proxies and of passed descriptors."
    ),
}
