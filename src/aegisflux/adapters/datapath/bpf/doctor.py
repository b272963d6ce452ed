"""What this host can and cannot enforce, one line each."""

import os
from pathlib import Path
from typing import Final

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.namespaces import inside
from aegisflux.adapters.datapath.bpf.pins import ORDER, Pinned, object_path
from aegisflux.adapters.datapath.bpf.watch import Watch
from aegisflux.domain.errors import Unavailable
from aegisflux.ports.datapath import Check
from aegisflux.runtime.cgroupfs import v2_root

KERNEL: Final = (5, 17)
SEES_BUFFERS: Final = (6, 2)
NOT_GOVERNED: Final = (
    "packet sockets, AF_XDP, vsock, and whoever has CAP_NET_RAW, CAP_BPF or CAP_NET_ADMIN; "
    "two services of one host over local addresses"
)


def examine(pins: Pinned) -> list[Check]:
    """See `Datapath.doctor`."""
    return [
        _kernel(),
        _libbpf(),
        _object(),
        _cgroups(),
        _bpffs(pins),
        _attached(pins),
        _cut(),
        _translation(),
        _namespaces(),
        _hidden(),
    ]


def own_addresses() -> Check:
    """Whether the kernel tells at once of an address that is added."""
    name = "own addresses told by the kernel"
    try:
        watch = Watch()
    except OSError as err:
        return Check(name, False, f"{err}: they are read every addresses_seconds", required=False)
    watch.close()
    if not watch.all_namespaces:
        detail = "only of the agent's own network namespace: CAP_NET_BROADCAST is missing"
        return Check(name, False, detail, required=False)
    return Check(name, True, "of every network namespace", required=False)


def _release() -> tuple[int, ...]:
    return tuple(int(p) for p in os.uname().release.split("-")[0].split(".")[:2] if p.isdigit())


def _kernel() -> Check:
    release, parts = os.uname().release, _release()
    btf = Path("/sys/kernel/btf/vmlinux").exists()
    detail = f"{release}; BTF {'present' if btf else 'missing: CONFIG_DEBUG_INFO_BTF=y is needed'}"
    return Check("kernel 5.17 or newer, with BTF", parts >= KERNEL and btf, detail)


def _libbpf() -> Check:
    try:
        found = libbpf.lib()
    except Unavailable as err:
        return Check("libbpf 1", False, str(err))
    return Check("libbpf 1", True, f"{found.libbpf_major_version()}.{found.libbpf_minor_version()}")


def _object() -> Check:
    try:
        return Check("compiled programs", True, str(object_path()))
    except Unavailable as err:
        return Check("compiled programs", False, str(err))


def _cgroups() -> Check:
    try:
        return Check("cgroup v2", True, str(v2_root()))
    except Unavailable as err:
        return Check("cgroup v2", False, str(err))


def _bpffs(pins: Pinned) -> Check:
    return Check("BPF file system", pins.bpffs.is_dir(), f"pins below {pins.home}")


def _attached(pins: Pinned) -> Check:
    try:
        attached = pins.attached()
    except PermissionError as err:
        return Check("programs attached", False, f"only root may look: {err.filename}: {err.strerror}")
    missing = [name for name in ORDER if name not in attached]
    return Check(
        "programs attached", not missing, f"missing: {', '.join(missing)}" if missing else str(pins.attach)
    )


def _translation() -> Check:
    """Whether the programs see what a program asked for behind NAT (ADR 0026)."""
    sees = _release() >= SEES_BUFFERS
    detail = "rules name what programs ask for" if sees else "rules name backends: this needs kernel 6.2"
    return Check("addresses behind NAT", sees, detail, required=False)


def _cut() -> Check:
    try:
        found = libbpf.kernel_has_function("bpf_sock_destroy")
    except Unavailable:
        found = False
    detail = "bpf_sock_destroy" if found else "through sock_diag: bpf_sock_destroy needs kernel 6.5"
    return Check("cut sockets by BPF", found, detail, required=False)


def _namespaces() -> Check:
    """Entering them takes CAP_SYS_ADMIN: without, live sockets there are judged at their next packet only."""
    try:
        with Path("/proc/self/ns/net").open("rb") as own:
            inside(own.fileno(), lambda: None)
    except OSError as err:
        detail = f"{err.strerror}: cut, and refusing at connect, do not reach into services' namespaces"
        return Check("enter network namespaces", False, detail, required=False)
    return Check("enter network namespaces", True, "yes", required=False)


def _hidden() -> Check:
    return Check("not governed", True, NOT_GOVERNED, required=False)
