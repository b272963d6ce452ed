"""A rollout in stages: what an event does to it, and what is to be done then. No I/O, no clock.

    draft -> observe -> canary -> waves -> promoted -> superseded
                \\-> aborted    \\-------\\-------> rolled_back | expired

Rules, in the order in which they are asked:

1. What has ended does not begin again: only `promoted` can still be superseded, rolled back or expire.
2. Looking comes first: no evidence is a failure, not a pass. A silent host, a Nack, a host that says what
   cannot be, a sick service, and denied flows over the budget fail a stage, paused or not. After the
   promotion only denied flows and a sick service do, and for `watch_seconds`: a host in trouble is then its
   own, not the fleet's, and nobody shall take enforcement off a fleet a year later by one refused call.
3. A stage that fails takes itself back and says why. Where nothing was enforced yet there is nothing to take
   back: it is aborted.
4. A stage passes on exposure and a sequential test, never on time alone; a paused one does not pass. Each
   turn is tested on its own flows, against everything that was denied: what was fine on the canary proves
   nothing of a wave. It fails on the flows of the whole rollout, so that a budget above one means something.
5. A verb that cannot be used is refused with what could be.

`TABLE` has a row for each stage and kind of event.
"""

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from aegisflux.domain.errors import Conflict
from aegisflux.domain.text import first_of

Stage = Literal[
    "draft", "observe", "canary", "waves", "promoted", "superseded", "rolled_back", "expired", "aborted"
]  # fmt: skip
Verb = Literal["promote", "pause", "resume", "abort", "roll_back"]
MOST_NAMED: Final = 3
ENDED: Final = frozenset({"superseded", "rolled_back", "expired", "aborted"})
ENFORCES: Final = frozenset({"canary", "waves", "promoted"})
Hosts = tuple[str, ...]
Rate = Annotated[float, Meta(gt=0, lt=1)]
Seconds = Annotated[float, Meta(ge=0, le=90 * 86_400)]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]


class Gate(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a stage passes. Times in seconds.

    least_seconds, least_flows: exposure before anything passes
    silent_seconds: without evidence for so long a stage has failed
    denied_budget: denied flows, of the whole rollout, that were legitimate before; one more fails it
    fine, bad: shares of denied flows that the sequential test tells apart
    wrong: how often it may be wrong, either way
    longest_seconds: a stage that has not passed until then has failed
    watch_seconds: after the promotion denied flows take it back for so long
    """

    least_seconds: Seconds = 300.0
    least_flows: Count = 100
    silent_seconds: Annotated[float, Meta(ge=1, le=3600)] = 30.0
    denied_budget: Count = 0
    fine: Rate = 0.001
    bad: Rate = 0.02
    wrong: Rate = 0.01
    longest_seconds: Seconds = 86_400.0
    watch_seconds: Seconds = 3600.0


class Evidence(Struct, frozen=True, kw_only=True):
    """What is known of the hosts of a stage; flows since its turn began, denied ones since the rollout did.

    heard: when each host last told, seconds since the epoch
    in_force: hosts on which what the stage wants is held and acknowledged; began: since when on all of them
    mute: hosts whose telemetry said nothing since then
    flows, denied: initiations that were judged, and those of them that were denied (or, when observing, would
                   have been) and are legitimate: seen and allowed before
    nacked, sick, lying: host (or service) and what was said; lying: it tells what others contradict
    changed: service, and what somebody else gave its hosts meanwhile
    flows_in_all: since the rollout began, as `denied`
    """

    heard: Mapping[str, float] = {}
    in_force: frozenset[str] = frozenset()
    began: float = 0.0
    mute: frozenset[str] = frozenset()
    flows: int = 0
    denied: int = 0
    flows_in_all: int = 0
    nacked: Mapping[str, str] = {}
    sick: Mapping[str, str] = {}
    lying: Mapping[str, str] = {}
    changed: Mapping[str, str] = {}

    @property
    def judged(self) -> int:
        """Flows that stand beside `denied` where the test may fail a stage."""
        return max(self.flows, self.flows_in_all, self.denied)


class Run(Struct, frozen=True, kw_only=True):
    """A rollout. `canary` and `waves` are hosts that change at once, in turn; `at` is the turn of the stage.

    since: when the turn began; flows, denied: of it; reason: why it is where it is
    """

    plan: int
    canary: tuple[Hosts, ...]
    waves: tuple[Hosts, ...]
    stage: Stage = "draft"
    at: int = 0
    since: float = 0.0
    paused: bool = False
    reason: str = ""
    gate: Gate = field(default_factory=Gate)

    @property
    def turn(self) -> Hosts:
        """The hosts of this turn; when observing all hosts."""
        if self.stage == "observe":
            return tuple(host for hosts in (*self.canary, *self.waves) for host in hosts)
        turns = {"canary": self.canary, "waves": self.waves}.get(self.stage, ())
        return turns[self.at] if turns else ()

    @property
    def enforced(self) -> Hosts:
        """The hosts that were given the snapshots to enforce so far."""
        if self.stage == "canary":
            turns = self.canary[: self.at + 1]
        elif self.stage in ENFORCES:
            turns = self.canary + (self.waves if self.stage == "promoted" else self.waves[: self.at + 1])
        else:
            turns = ()
        return tuple(host for hosts in turns for host in hosts)


class Begin(Struct, frozen=True, tag="begin"):
    """The plan is approved and passes its guardrails."""

    now: float


class Look(Struct, frozen=True, tag="look"):
    """Somebody looked."""

    now: float
    evidence: Evidence


class Ask(Struct, frozen=True, tag="ask"):
    """An operator wants something."""

    now: float
    verb: Verb
    who: str
    why: str = ""


class Supersede(Struct, frozen=True, tag="supersede"):
    """A later rollout of the same services was promoted, or (None) something by hand."""

    now: float
    by: int | None


class Expire(Struct, frozen=True, tag="expire"):
    """The leases ended without a renewal."""

    now: float


Event = Begin | Look | Ask | Supersede | Expire


class Offer(Struct, frozen=True, tag="offer"):
    """Have these hosts judge the snapshots beside what is in force."""

    hosts: Hosts


class Enforce(Struct, frozen=True, tag="enforce"):
    """Give these hosts the snapshots, to be confirmed."""

    hosts: Hosts


class Keep(Struct, frozen=True, tag="keep"):
    """All hosts have it: promote it, and renew its leases from now on."""


class TakeBack(Struct, frozen=True, tag="take_back"):
    """Give these hosts the last known good again, at once."""

    hosts: Hosts
    why: str


class Withdraw(Struct, frozen=True, tag="withdraw"):
    """End the judging beside, on all hosts."""


Command = Offer | Enforce | Keep | TakeBack | Withdraw
Step = tuple[Run, tuple[Command, ...]]


def step(run: Run, event: Event) -> Step:
    """What holds after an event, and what is to be done; raises Conflict for a verb that cannot be used."""
    return TABLE[run.stage, type(event)](run, event)


def verdict_of(flows: int, denied: int, gate: Gate) -> Literal["pass", "fail", "more"]:
    """Wald's sequential probability ratio test (1945) of the share of denied flows: `fine` against `bad`."""
    ratio = denied * log(gate.bad / gate.fine) + (flows - denied) * log((1 - gate.bad) / (1 - gate.fine))
    bound = log((1 - gate.wrong) / gate.wrong)
    if ratio >= bound:
        return "fail"
    return "pass" if ratio <= -bound else "more"


def failure(run: Run, look: Look) -> str:
    """Why the stage has failed; empty: it has not."""
    gate, evidence = run.gate, look.evidence
    if run.stage != "promoted" and (why := _trouble(run, look)):
        return why
    if evidence.sick:
        return f"{min(evidence.sick)} is sick: {evidence.sick[min(evidence.sick)]}"
    if evidence.denied > gate.denied_budget:
        return f"{evidence.denied} legitimate flows denied: expected at most {gate.denied_budget}"
    if verdict_of(evidence.judged, evidence.denied, gate) == "fail":
        return f"{evidence.denied} of {evidence.judged} flows denied: expected a share of {gate.fine:.2%}"
    late = look.now - run.since > gate.longest_seconds
    if run.stage != "promoted" and not run.paused and late and (waits := missing(run, look)):
        return f"{waits} after {gate.longest_seconds:.0f} s"
    return ""


def _trouble(run: Run, look: Look) -> str:
    """What is wrong with hosts or services."""
    gate, evidence = run.gate, look.evidence
    told = (
        ("was changed meanwhile", evidence.changed),
        ("refused", evidence.nacked),
        ("says what cannot be", evidence.lying),
    )
    for words, said in told:
        if said:
            return f"{min(said)} {words}: {said[min(said)]}"
    for host in run.enforced or run.turn:
        quiet = look.now - max(evidence.heard.get(host, run.since), run.since)
        if quiet > gate.silent_seconds:
            return f"{host} is silent for {quiet:.0f} s: expected word every {gate.silent_seconds:.0f} s"
    return ""


def missing(run: Run, look: Look) -> str:
    """What the stage still waits for; empty: it passes."""
    gate, evidence = run.gate, look.evidence
    absent = sorted(set(run.turn) - evidence.in_force)
    if absent:
        return f"not in force on {_named(absent)}"
    if mute := sorted(set(run.turn) & evidence.mute):
        return f"no telemetry yet of {_named(mute)}"
    if evidence.flows < gate.least_flows:
        return f"{evidence.flows} of {gate.least_flows} flows seen"
    seen = look.now - max(run.since, evidence.began)
    if seen < gate.least_seconds:
        return f"{max(seen, 0.0):.0f} of {gate.least_seconds:.0f} s seen"
    if verdict_of(max(evidence.flows, evidence.denied), evidence.denied, gate) != "pass":
        return f"{evidence.denied} denied beside {evidence.flows} flows says too little yet"
    return ""


def _named(hosts: Sequence[str]) -> str:
    return first_of(hosts, MOST_NAMED)


def _begin(run: Run, event: Begin) -> Step:
    after = replace(run, stage="observe", since=event.now, reason="approved")
    return after, (Offer(after.turn),)


def _look(run: Run, event: Look) -> Step:
    if why := failure(run, event):
        return _failed(run, event.now, why)
    waits = missing(run, event)
    if waits or run.paused:
        return replace(run, reason=waits or "passed; paused"), ()
    return _passed(run, event.now, "passed")


def _watch(run: Run, event: Look) -> Step:
    if event.now - run.since > run.gate.watch_seconds:
        return run, ()
    why = failure(run, event)
    return _failed(run, event.now, why) if why else (run, ())


def _passed(run: Run, now: float, why: str) -> Step:
    """The next turn, else the next stage; a stage without hosts is passed over."""
    turns = {"canary": run.canary, "waves": run.waves}.get(run.stage, ())
    if run.at + 1 < len(turns):
        after = replace(run, at=run.at + 1, since=now, reason=why)
        return after, (Enforce(after.turn),)
    order: tuple[tuple[Stage, tuple[Hosts, ...]], ...] = (("canary", run.canary), ("waves", run.waves))
    names = [name for name, _ in order]
    later = order[names.index(run.stage) + 1 :] if run.stage in names else order
    for name, hosts in later:
        if hosts:
            after = replace(run, stage=name, at=0, since=now, reason=why)
            return after, (Enforce(after.turn),)
    return replace(run, stage="promoted", at=0, since=now, reason=why), (Keep(), Withdraw())


def _failed(run: Run, now: float, why: str) -> Step:
    after = replace(run, stage="aborted", at=0, since=now, paused=False, reason=why)
    if run.enforced:
        return replace(after, stage="rolled_back"), (TakeBack(run.enforced, why), Withdraw())
    return after, (Withdraw(),) if run.stage == "observe" else ()


def _ask(run: Run, event: Ask) -> Step:
    said = f"{event.verb.replace('_', ' ')} by {event.who}" + (f": {event.why}" if event.why else "")
    if event.verb not in verbs(run):
        could = ", ".join(verb.replace("_", " ") for verb in verbs(run)) or "nothing"
        state = run.stage.replace("_", " ") + (" and paused" if run.paused else "")
        verb = event.verb.replace("_", " ")
        raise Conflict(f"cannot {verb} a rollout that is {state}; what can be done: {could}")
    if event.verb == "pause":
        return replace(run, paused=True, reason=said), ()
    if event.verb == "resume":
        return replace(run, paused=False, since=event.now, reason=said), ()
    if event.verb == "promote":
        return _passed(run, event.now, said)
    return _failed(run, event.now, said)


def verbs(run: Run) -> tuple[Verb, ...]:
    """What an operator can do with it now."""
    if run.stage in ENDED:
        return ()
    if run.stage == "draft":
        return ("abort",)
    if run.stage == "promoted":
        return ("roll_back",)
    turn: tuple[Verb, ...] = ("resume",) if run.paused else ("promote", "pause")
    return (*turn, "abort", "roll_back") if run.enforced else (*turn, "abort")


def _supersede(run: Run, event: Supersede) -> Step:
    by = f"rollout {event.by}" if event.by is not None else "a change by hand"
    return replace(run, stage="superseded", since=event.now, reason=f"superseded by {by}"), ()


def _overtaken(run: Run, event: Supersede) -> Step:
    """The later one has the hosts already: to take something back would take it from that one."""
    return _supersede(run, event)[0], (Withdraw(),)


def _expire(run: Run, event: Expire) -> Step:
    why = "the leases ended without a renewal"
    after = replace(run, stage="expired", at=0, since=event.now, paused=False, reason=why)
    return after, (TakeBack(run.enforced, why), Withdraw())


def _same(run: Run, _event: object) -> Step:
    """Nothing: it was done already, or it does not matter here."""
    return run, ()


TABLE: Final[Mapping[tuple[Stage, type], Callable[..., Step]]] = {
    ("draft", Begin): _begin,
    ("draft", Look): _same,
    ("draft", Ask): _ask,
    ("draft", Supersede): _supersede,
    ("draft", Expire): _same,
    **{
        (stage, kind): handler
        for stage in ("observe", "canary", "waves")
        for kind, handler in (
            (Begin, _same), (Look, _look), (Ask, _ask), (Supersede, _overtaken),
            (Expire, _same if stage == "observe" else _expire),
        )
    },
    ("promoted", Begin): _same,
    ("promoted", Look): _watch,
    ("promoted", Ask): _ask,
    ("promoted", Supersede): _supersede,
    ("promoted", Expire): _expire,
    **{
        (stage, kind): handler
        for stage in ("superseded", "rolled_back", "expired", "aborted")
        for kind, handler in (
            (Begin, _same), (Look, _same), (Ask, _ask), (Supersede, _same), (Expire, _same)
        )
    },
}  # fmt: skip
