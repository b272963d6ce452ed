"""One datapath without hosts, for test runs: programs loaded, attached at an empty cgroup of ours."""

import itertools
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from aegisflux.adapters.datapath.bpf.datapath import BpfDatapath
from aegisflux.domain.flow import Flow
from aegisflux.domain.snapshot import Ruleset
from aegisflux.domain.verdict import Verdict
from aegisflux.wire import layout
from tests.bpf.frames import cb_of, frame
from tests.support.kernel import HOUR_NS, generation_of
from tests.support.netns import cgroup_root, kill_cgroup, sweep

SLOT = 5
_numbers = itertools.count(1)


class Bench:
    """`judge` is one verdict by the programs' judging core."""

    def __init__(self, programs: Path | None = None) -> None:
        number = next(_numbers)
        sweep()
        self.cgroup: Path = cgroup_root() / f"aegisflux-af{os.getpid()}-{number}b"
        self.datapath = BpfDatapath(
            attach=self.cgroup, instance=f"test-bench-{os.getpid()}-{number}", object_path=programs
        )

    def __enter__(self) -> Self:
        self.cgroup.mkdir()
        try:
            self.datapath.open()
            assert self.datapath._control
            self.datapath._control.words.events_per_tick = 1000  # every denial is looked at
        except BaseException:
            self.cgroup.rmdir()
            raise
        return self

    def __exit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None
    ) -> None:
        try:
            self.datapath.panic()
        finally:
            kill_cgroup(self.cgroup)

    def use(self, rules: Ruleset, lease_ns: int = HOUR_NS) -> None:
        """Load, compare the read-back digest, flip."""
        generation = generation_of(rules, self.datapath.boot_ns() + lease_ns)
        loaded = self.datapath.load(SLOT, "active", generation)
        assert loaded.tables_digest == generation.tables_digest
        self.datapath.flip(loaded)
        self.datapath.forget(SLOT)

    def judge(
        self, flow: Flow, inward: bool | None = None, extra: int = 0
    ) -> tuple[bool, str | None, str | None]:
        """(passed, reason, rule) of a packet; the rule only of a denial."""
        inward = flow.direction == "ingress" if inward is None else inward
        slot = layout.SLOT_AGENT if flow.from_agent else SLOT
        before = self.rows(slot)
        answer, _ = self.datapath.test_run(
            "aegis_test_ingress" if inward else "aegis_test_egress",
            frame(flow, inward),
            cb_of(slot, flow, extra),
        )
        after = self.rows(slot)
        grown = [layout.REASONS[i] for i in layout.REASONS if after[i] > before[i]]
        denied = self.datapath.drain_denied(16)
        reason = denied[-1].reason if denied else grown[0] if len(grown) == 1 else str(grown)
        return bool(answer), reason, denied[-1].rule if denied else None

    def rows(self, slot: int = SLOT) -> list[int]:
        return [self.datapath._counter(slot, i) for i in range(11)]


def same(verdict: Verdict, seen: tuple[bool, str | None, str | None]) -> bool:
    """Whether the kernel did what the oracle says, and named the same rule for a denial."""
    passed, reason, rule = seen
    if passed == verdict.blocks or reason != verdict.reason:
        return False
    return verdict.action == "allow" or rule == verdict.rule
