"""What a new flow costs where every packet is another flow: lists of flows in random order, which bench-only
programs (rotation.bpf.c, over the product's own headers) walk in the kernel."""

import random
import struct
import subprocess
from pathlib import Path
from typing import Final

from bench.lib.entries import Entries, hit, miss
from tests.bpf.bench_kernel import Bench
from tests.bpf.frames import cb_of, frame

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.domain.flow import Flow
from aegisflux.ports.datapath import Generation
from aegisflux.wire import layout

FLOWS: Final = 65_536
KINDS: Final = ("mixed", "host", "prefix", "miss")
ROOT: Final = Path(__file__).resolve().parent.parent.parent
_FLOW: Final = struct.Struct("<16sHBx")
_NUMBERS: Final = {word: number for number, word in layout.REASONS.items()}


def programs(folder: Path) -> Path:
    """The compiled programs, by the product's own Makefile."""
    made = folder / "rotation.bpf.o"
    command = ["make", "--silent", "-C", str(ROOT / "bpf"), "-f", "Makefile", "-f", "-", str(made)]
    rule = f"{made}: {Path(__file__).with_suffix('.bpf.c')}\n\t$(CLANG) $(CFLAGS) -I. -c $< -o $@\n"
    subprocess.run(command, input=rule, text=True, check=True)
    return made


def flows(kind: str, made: Entries, generation: Generation, seed: int) -> list[Flow]:
    """Drawn at random, shuffled. `mixed`: hits (any entry, each as likely) and misses in equal parts."""
    rng = random.Random(seed)
    wanted = {"host": made.hosts, "prefix": made.prefixes, "mixed": made.every()}.get(kind, ())
    hits = FLOWS // 2 if kind == "mixed" else FLOWS if wanted else 0
    found = [hit(rng, wanted) for _ in range(hits)]
    found += [miss(rng, generation.tables, made.space) for _ in range(FLOWS - hits)]
    rng.shuffle(found)
    return found


def packed(chosen: list[Flow]) -> bytes:
    """As rotation.bpf.c reads them."""
    return b"".join(
        _FLOW.pack(
            f.peer.packed() if f.peer.family == 6 else bytes(10) + b"\xff\xff" + f.peer.packed(),
            f.port or 0, f.peer.family,
        )
        for f in chosen
    )  # fmt: skip


def fill(bench: Bench, listed: bytes) -> None:
    """The list that the next runs walk."""
    libbpf.fill(bench.datapath._pins.maps["rotations"], listed, _FLOW.size)


def cost(bench: Bench, slot: int, chosen: list[Flow], kind: str, passes: int) -> float:
    """ns a verdict over whole passes of the list, and RuntimeError unless each verdict was right."""
    hits = {"mixed": FLOWS // 2, "miss": 0}.get(kind, FLOWS)
    packet, cb, before = frame(chosen[0], False), cb_of(slot, chosen[0]), _counted(bench, slot)
    _, ns = bench.datapath.test_run("aegis_rotate", packet, cb, passes * FLOWS)
    allowed, denied = (after - b for after, b in zip(_counted(bench, slot), before, strict=True))
    if (allowed, denied) != (passes * hits, passes * (FLOWS - hits)):
        raise RuntimeError(f"slot {slot}: {allowed} allowed and {denied} denied, of {hits} hits in {FLOWS}")
    return ns


def fetching(bench: Bench, flow: Flow, passes: int) -> float:
    """ns that taking the next flow of the list costs beyond an empty program."""
    found = [
        bench.datapath.test_run(name, frame(flow, False), (), passes * FLOWS)[1]
        for name in ("aegis_rotate_empty", "aegis_empty")
    ]
    return found[0] - found[1]


def _counted(bench: Bench, slot: int) -> tuple[int, int]:
    return bench.datapath._counter(slot, _NUMBERS["allow"]), bench.datapath._counter(
        slot, _NUMBERS["no_match"]
    )
