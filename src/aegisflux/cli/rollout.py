"""`aegisflux rollout`: carry out a plan in stages, watch it, and step in."""

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from aegisflux.cli.client import LONG_SECONDS, call, trying
from aegisflux.cli.output import PEOPLES, UNCHANGED, Output, columnar, line, say, show
from aegisflux.cli.output import screen as output_screen
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.text import first_of

Number = Annotated[int, Parameter(help="of a rollout, as `rollout list` shows it")]
Why = Annotated[str, Parameter(help="for the history and the audit log")]
DryRun = Annotated[
    bool, Parameter(name="--dry-run", help="say what would be done, and do nothing", negative="")
]
LIST: Final = ("id", "plan", "stage", "turn", "reason", "flows", "denied", "created_at", "created_by")
OBSERVING: Final = ("service_id", "service", "version", "hosts")
STEPS: Final = ("at", "stage", "turn", "who", "reason", "did")
ORDER: Final = ("observe", "canary", "waves", "promoted")
OVER: Final = {"promoted": 0, "superseded": 0, "rolled_back": 1, "expired": 1, "aborted": 1}
SECONDS: Final = 0.5
FINDINGS: Final = 1
MOST_STEPS, MOST_WAYS, MOST_HOSTS = 8, 5, 4
CLEAR: Final = "\033[H\033[J"

app = App(name="rollout", help="Plans on their way to the hosts: begin, watch, promote, pause, roll back.")


@app.command
def begin(
    plan: Annotated[int, Parameter(help="number of a plan, as `segment plans` shows it")],
    *,
    dry_run: DryRun = False,
    watch: Annotated[bool, Parameter(name=("-w", "--watch"), negative="", help="then watch it")] = False,
    output: Output = "table",
) -> None:
    """Carry out a plan: judged beside what is in force, then on canary hosts, then in waves on all.

    Example: aegisflux rollout begin 3 -w
    """
    moved = call("POST", "/api/v1/rollouts", {"plan": plan}, trying(dry_run))
    if watch and not dry_run:
        watched(moved["rollout"]["id"], output)
    _moved(moved, output)


@app.command(name="list")
def list_(*, limit: int = 20, output: Output = "table") -> None:
    """Rollouts, newest first."""
    items = call("GET", "/api/v1/rollouts", query={"limit": limit})["items"]
    show([_row(one) for one in items] if columnar(output) else items, output, LIST)


@app.command
def get(
    number: Number,
    *,
    watch: Annotated[
        bool, Parameter(name=("-w", "--watch"), negative="", help="until it is promoted or has ended")
    ] = False,
    output: Output = "table",
) -> None:
    """Where a rollout stands, why, and what can be done. Watching ends with exit status 0 when it was
    promoted, 1 when it was taken back.

    Example: aegisflux rollout get 3 -w
    """
    if watch:
        watched(number, output)
    told = call("GET", f"/api/v1/rollouts/{number}")
    if output in PEOPLES:
        output_screen(screen(told, time.time()))
        return
    show(told["steps"] if columnar(output) else told, output, STEPS)


@app.command
def promote(number: Number, *, why: Why = "", dry_run: DryRun = False, output: Output = "table") -> None:
    """On to the next turn or stage at once, without waiting for evidence."""
    _move(number, "promote", why, dry_run, output)


@app.command
def pause(number: Number, *, why: Why = "", dry_run: DryRun = False, output: Output = "table") -> None:
    """Nothing passes until `resume`; what fails is taken back nevertheless."""
    _move(number, "pause", why, dry_run, output)


@app.command
def resume(number: Number, *, why: Why = "", dry_run: DryRun = False, output: Output = "table") -> None:
    """Go on by itself."""
    _move(number, "resume", why, dry_run, output)


@app.command
def abort(number: Number, *, why: Why = "", dry_run: DryRun = False, output: Output = "table") -> None:
    """End it; where something was enforced it is taken back."""
    _move(number, "abort", why, dry_run, output)


@app.command
def rollback(number: Number, *, why: Why = "", dry_run: DryRun = False, output: Output = "table") -> None:
    """Give all its hosts what they had before, also after the promotion."""
    _move(number, "rollback", why, dry_run, output)


def panic(
    *,
    fleet: Annotated[bool, Parameter(negative="", help="all hosts and services")] = False,
    service: Annotated[int | None, Parameter(help="number of a service, on all its hosts")] = None,
    host: Annotated[str | None, Parameter(help="a host, all its services")] = None,
    why: Why = "",
    dry_run: DryRun = False,
    output: Output = "table",
) -> None:
    """Return the fleet, a service or a host to observing, at once: its rules are judged on and block nothing.
    Rollouts of it are aborted. `snapshot rollback` undoes it. Without the control plane: `agent panic`.

    Example: aegisflux panic --service 101 --why "checkout is down"
    """
    given = ["--fleet"] * fleet + ["--service"] * (service is not None) + ["--host"] * (host is not None)
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        say(f"panic: expected exactly one of --fleet, --service NUMBER and --host NAME, got {got}")
        sys.exit(2)
    asked = {"fleet": fleet, "service_id": service, "host_id": host, "why": why}
    found = call("POST", "/api/v1/panic", asked, trying(dry_run), seconds=LONG_SECONDS)
    show(found["services"] if columnar(output) else found, output, OBSERVING)
    if output in PEOPLES:
        for number in found["aborted"]:
            say(f"rollout {number} {'would be' if dry_run else 'was'} aborted")
        if not found["services"] and not found.get("failed"):
            say("nothing of it blocks")
    if dry_run:
        say(UNCHANGED)
    for one in found.get("failed", ()):
        say(f"service {one['service_id']} may block as before: {one['reason']}")
    if found.get("failed"):
        sys.exit(FINDINGS)


def watched(number: int, output: str) -> None:
    """Show a rollout until it is promoted or has ended, then exit: on a terminal as a picture that is drawn
    again, else one line, or one JSON object, for each change."""
    live = output in PEOPLES and sys.stdout.isatty()
    shown: Any = None
    for told in _looks(number, time.sleep):
        run = told["rollout"]["run"]
        if live:
            output_screen(screen(told, time.time()), CLEAR)
        elif (now := (run["stage"], run["at"], run["paused"], _settled(run["reason"]))) != shown:
            shown = now
            if output in PEOPLES:
                line(f"{_clock(time.time())}  {_where(told['rollout'])}: {run['reason']}")
            else:
                show([_row(told["rollout"])] if columnar(output) else told, output, LIST)
        if run["stage"] in OVER:
            sys.exit(OVER[run["stage"]])


def _looks(number: int, sleep: Callable[[float], None]) -> Any:
    quiet = False
    while True:
        try:
            yield call("GET", f"/api/v1/rollouts/{number}")
            quiet = False
        except Unavailable as error:
            if not quiet:
                say(f"{error}; goes on when it answers again")
            quiet = True
        sleep(SECONDS)


def screen(told: dict[str, Any], now: float) -> list[str]:
    """A rollout as lines for a terminal."""
    rollout, steps = told["rollout"], told["steps"]
    run, looked, gate = rollout["run"], rollout["looked"], rollout["run"]["gate"]
    head = f"rollout {rollout['id']} of plan {rollout['plan']}: {_where(rollout)}"
    lines = [
        f"{head}, for {_span(now - run['since'])}",
        "  " + _track(run),
        f"  {'paused: ' if run['paused'] else ''}{run['reason']}",
    ]
    lines += [
        f"  {part['service']}: version {part['version']} "
        f"{'replaces ' + str(part['replaces']) if part['replaces'] else 'is its first'}, "
        f"{len(part['hosts'])} hosts"
        for part in rollout["parts"]
    ]
    if run["stage"] not in OVER:
        seen, most = _span(now - run["since"]), _span(gate["least_seconds"])
        lines.append(
            f"  {looked['in_force']} of {looked['hosts']} hosts have it; {looked['flows']} of "
            f"{gate['least_flows']} flows in {seen} of {most}; "
            f"{looked['denied']} legitimate denied, {gate['denied_budget']} may be"
        )
        lines.append(f"  this turn: {_hosts(run)}")
    lines += [_way(way) for way in looked["ways"][:MOST_WAYS]]
    lines.append("")
    lines += [_step(step) for step in steps[-MOST_STEPS:]]
    if rollout["verbs"]:
        lines.append("  can: " + ", ".join(verb.replace("_", " ") for verb in rollout["verbs"]))
    return lines


def _where(rollout: dict[str, Any]) -> str:
    run = rollout["run"]
    turns = len(run.get(run["stage"]) or ()) if run["stage"] in ("canary", "waves") else 0
    of = f" {run['at'] + 1} of {turns}" if turns > 1 else ""
    return str(run["stage"]).replace("_", " ") + of


def _track(run: dict[str, Any]) -> str:
    names = [name if name != run["stage"] else f"[{name}]" for name in ORDER]
    ended = "" if run["stage"] in ORDER else f"   [{run['stage'].replace('_', ' ')}]"
    return " > ".join(names) + ended


def _hosts(run: dict[str, Any]) -> str:
    if run["stage"] == "observe":
        count = sum(len(hosts) for hosts in (*run["canary"], *run["waves"]))
        return f"judged beside what is in force on {count} hosts, blocking nothing"
    turn = run[run["stage"]][run["at"]]
    return first_of(turn, MOST_HOSTS)


def _way(way: dict[str, Any]) -> str:
    known = "seen before" if way["legitimate"] else "not seen before, or meant to be cut"
    who = f"{way['client']} -> {way['server']} {way['what']}"
    return f"  denied {way['denied']}x on {way['host']}: {who} ({known})"


def _step(step: dict[str, Any]) -> str:
    did = f"; {'; '.join(step['did'][:2])}" if step["did"] else ""
    turn = f" {step['turn'] + 1}" if step["stage"] in ("canary", "waves") else ""
    return f"  {_clock(step['at'])}  {step['stage'].replace('_', ' ')}{turn}: {step['reason']}{did}"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def _span(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"


def _settled(reason: str) -> str:
    """Without the numbers that only count up."""
    return "".join(character for character in reason if not character.isdigit())


def _row(rollout: dict[str, Any]) -> dict[str, Any]:
    run, looked = rollout["run"], rollout["looked"]
    return {**rollout, **run, **looked, "turn": run["at"] + 1}


def _move(number: int, verb: str, why: str, dry_run: bool, output: str) -> None:
    """A verb is said about what was seen: if somebody else was faster, it is refused."""
    run = call("GET", f"/api/v1/rollouts/{number}")["rollout"]["run"]
    seen = {"stage": run["stage"], "turn": run["at"], "why": why}
    _moved(call("POST", f"/api/v1/rollouts/{number}/{verb}", seen, trying(dry_run)), output)


def _moved(moved: dict[str, Any], output: str) -> None:
    if moved["dry_run"]:
        say(UNCHANGED)
    if output not in PEOPLES:
        show([_row(moved["rollout"])] if columnar(output) else moved, output, LIST)
        return
    rollout, would = moved["rollout"], "would be " if moved["dry_run"] else ""
    line(f"rollout {rollout['id'] or '(new)'} {would}{_where(rollout)}: {rollout['run']['reason']}")
    for did in moved["did"]:
        line(f"  {did}")
