"""What the demo tells: steps, facts that were observed, and times; as text or as one JSON object."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Literal

from rich.console import Console
from rich.text import Text

Form = Literal["text", "json"]


class Failed(Exception):
    """An expectation without which the story cannot go on."""


@dataclass(frozen=True, slots=True)
class Fact:
    """`claim` is what was expected, `seen` what was seen; `ms` how long it took, where measured."""

    claim: str
    ok: bool
    seen: str
    ms: float | None = None


@dataclass(slots=True)
class Step:
    title: str
    facts: list[Fact] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Account:
    """Prints as it goes (text), or once at the end (json). rich respects NO_COLOR and pipes."""

    def __init__(self, form: Form = "text", limit: float = 90.0) -> None:
        self.form, self.limit, self.began = form, limit, time.monotonic()
        self.console = Console(highlight=False, soft_wrap=True, quiet=form == "json")
        self.steps: list[Step] = []
        self.world = ""
        self.ended = ""

    def opening(self, world: str, text: str) -> None:
        """Which datapath, and what that means."""
        self.world = world
        self.console.print(Text("AegisFlux demo", style="bold"))
        self.console.print(Text(text))

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """One chapter; its time is printed at its end."""
        step = Step(title)
        self.steps.append(step)
        self.console.print()
        self.console.print(Text(f"{len(self.steps):2d}. {title}", style="bold"))
        began = time.monotonic()
        try:
            yield step
        finally:
            step.seconds = round(time.monotonic() - began, 3)
            self.console.print(Text(f"    {step.seconds:.1f} s", style="dim"))

    def note(self, text: str) -> None:
        """Something worth knowing that is no expectation."""
        self.steps[-1].notes.append(text)
        for line in text.splitlines():
            self.console.print(Text(f"      {line}", style="dim"))

    def expect(self, claim: str, ok: bool, seen: object, ms: float | None = None) -> bool:
        """State a fact that was observed; one that is not as expected fails the demo, which goes on."""
        fact = Fact(claim, ok, str(seen), None if ms is None else round(ms, 2))
        self.steps[-1].facts.append(fact)
        line = Text("    ")
        line.append("ok   " if ok else "FAIL ", style="green" if ok else "bold red")
        line.append(claim)
        line.append(f": {fact.seen}" if fact.seen else "", style="" if ok else "red")
        if ms is not None:
            line.append(f"  [{ms:.1f} ms]", style="cyan")
        self.console.print(line)
        return ok

    def require(self, claim: str, ok: bool, seen: object, ms: float | None = None) -> None:
        """An expectation that all of the rest stands on; raises Failed."""
        if not self.expect(claim, ok, seen, ms):
            raise Failed(claim)

    @property
    def failures(self) -> list[Fact]:
        return [fact for step in self.steps for fact in step.facts if not fact.ok]

    def close(self) -> int:
        """The last words; gives the exit code: 0, or 1 when anything was not as expected."""
        seconds = time.monotonic() - self.began
        good = not self.failures and not self.ended
        if self.form == "json":
            print(json.dumps(self._json(good, seconds)))
            return 0 if good else 1
        count = sum(len(step.facts) for step in self.steps)
        self.console.print()
        if self.ended:
            self.console.print(Text(f"The story ended early: {self.ended}", style="bold red"))
        for fact in self.failures:
            self.console.print(Text(f"not as expected: {fact.claim}: {fact.seen}", style="red"))
        verdict = "all as expected" if good else "FAILED"
        self.console.print(
            Text(
                f"{count} expectations, {len(self.failures)} failed; {seconds:.0f} s; {verdict}", style="bold"
            )
        )
        return 0 if good else 1

    def _json(self, good: bool, seconds: float) -> dict[str, object]:
        return {
            "ok": good,
            "datapath": self.world,
            "seconds": round(seconds, 1),
            "ended": self.ended or None,
            "steps": [asdict(step) for step in self.steps],
        }
