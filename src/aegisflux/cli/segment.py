"""`aegisflux segment`: from what services did to what they may do."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from aegisflux.cli.client import segmenter
from aegisflux.cli.facts import UNITS, Since, Until, moment
from aegisflux.cli.files import replaced
from aegisflux.cli.output import PEOPLES, Output, columnar, document, say, show
from aegisflux.cli.plans import plan_told, replay_told, settings_of, text_of, wrong
from aegisflux.domain.digits import decimal, whole
from aegisflux.domain.errors import Misused, Refused
from aegisflux.domain.net import PROTOCOL_NAMES

Number = Annotated[int, Parameter(help="of a proposal, as `segment list` shows it")]
PAUSE_SECONDS = 0.3
MAX_COUNT = 10**9
RULES = ("from", "to", "what", "state", "evidence")
RULES_WIDE = (*RULES, "confidence", "kind", "programs")
PlanNumber = Annotated[int, Parameter(help="of a plan, as `segment plans` shows it")]
Gates = Annotated[
    tuple[str, ...],
    Parameter(
        negative="",
        help="when a stage of the rollout passes, name=number: least_seconds, least_flows, silent_seconds, "
        "denied_budget, fine, bad, wrong, longest_seconds",
    ),
]
PLANS = ("id", "created_at", "created_by", "proposal", "services", "would_block", "held", "approved_by")
CHANGES = ("service", "direction", "what", "before", "after", "witness", "cidrs", "more_cidrs")
APPROVED = ("id", "digest", "approved_by", "approved_at", "accepted")
LIST = ("id", "created_at", "created_by", "rules", "groups", "coverage", "flows")
WAITING = {
    "few_days": "held: too few days",
    "one_client_few_days": "held: one client, too few days",
    "few_outside": "held: few addresses outside, none came back",
    "wide_host": "held: only a host that calls far more than others",
}

app = App(name="segment", help="Learn who must talk to whom.")


@app.command
def propose(
    *,
    since: Since = "7d",
    until: Until = None,
    scope: Annotated[tuple[str, ...], Parameter(help="only flows that touch these services")] = (),
    suspicious: Annotated[tuple[str, ...], Parameter(help="hosts whose flows do not teach")] = (),
    period: Annotated[
        str, Parameter(help="what counts as a day of habits; shorter than 1d only to try it out")
    ] = "1d",
    output: Output = "table",
) -> None:
    """Learn from recorded flows. Shows the proposal; Ctrl-C ends the work, and nothing of it is kept.

    Example: aegisflux segment propose --since 14d --suspicious web-7
    """
    asked = {"since": moment(since), "until": moment(until), "period_seconds": seconds(period)}
    given = {name: value for name, value in asked.items() if value is not None}
    operation = segmenter("POST", "/segment/propose", given | {"scope": scope, "suspicious": suspicious})
    _told(segmenter("GET", finished(operation)["result"]), output)


@app.command(name="list")
def list_(*, limit: int = 20, output: Output = "table") -> None:
    """Proposals, newest first."""
    found = segmenter("GET", "/segment/proposals", query={"limit": limit})["items"]
    if columnar(output):
        found = [row | {"coverage": f"{row['coverage']:.1%}"} for row in found]
    show(found, output, LIST)


@app.command(name="show")
def show_(
    number: Annotated[int | None, Parameter(help="of a proposal, as `segment list` shows it")] = None,
    *,
    plan: Annotated[int | None, Parameter(help="show this plan instead, as `segment plan` did")] = None,
    output: Output = "table",
) -> None:
    """A proposal: its rules, with what they rest on, and what is held back and why. Or a kept plan: what it
    changes, where first, what it would have cut, what holds it, who has to approve it, and its digest.

    Example: aegisflux segment show 3 -o wide; aegisflux segment show --plan 5
    """
    _one_of("show", number, plan)
    if plan is not None:
        plan_told(segmenter("GET", f"/segment/plans/{plan}"), output)
    else:
        _told(segmenter("GET", f"/segment/proposals/{number}"), output)


@app.command
def recompute(
    number: Annotated[int | None, Parameter(help="of a proposal, as `segment list` shows it")] = None,
    *,
    plan: Annotated[int | None, Parameter(help="compute this plan again instead")] = None,
    output: Output = "table",
) -> None:
    """Compute a proposal or a plan once more from what it was made of. Exit status 0 when it is the same, 3
    with the reason when it is not, or when what it rests on is gone.

    Example: aegisflux segment recompute --plan 5
    """
    _one_of("recompute", number, plan)
    path = f"/segment/plans/{plan}" if plan is not None else f"/segment/proposals/{number}"
    found = finished(segmenter("POST", f"{path}/recompute"))
    if output not in PEOPLES:
        show(found, output, ("id", "kind", "state", "result"))
    say("the same")


def _one_of(verb: str, number: int | None, plan: int | None) -> None:
    if (number is None) == (plan is None):
        got = "neither" if number is None else "both"
        say(f"segment {verb}: expected the number of a proposal, or --plan and that of a plan, got {got}")
        sys.exit(2)


@app.command
def export(
    number: Number,
    *,
    into: Annotated[Path | None, Parameter(help="add what is new to this file; all else of it stays")] = None,
    dry_run: Annotated[bool, Parameter(negative="", help="print the file, and write nothing")] = False,
) -> None:
    """A proposal as a policy file. With `--into`, what the file says stays as it is: exit status 1 where the
    proposal says a group or a rule in another way, each named.

    Example: aegisflux segment export 3 > policy.yaml
    """
    import msgspec

    from aegisflux.domain.segment.export import policy_of
    from aegisflux.domain.segment.propose import Proposal
    from aegisflux.wire import policyfile, policymerge

    kept = segmenter("GET", f"/segment/proposals/{number}")
    asked, proposal = kept["asked"], msgspec.convert(kept["proposal"], Proposal)
    policy = policy_of(proposal, f"proposal-{number}", asked["ttl_seconds"], asked["mode"])
    if into is None:
        document(policyfile.write(policy))
        return
    differs = list[str]()
    with wrong(into):
        text, new = policymerge.merged(text_of(into), policy, differs.append)
    if dry_run:
        document(text)
    else:
        replaced(into, text.encode())
    say(f"{into}: {len(new)} new rules" + (f": {', '.join(new)}" if new else ""))
    for words in differs:
        say(f"differs: {words}")
    if differs:
        sys.exit(1)


@app.command
def plan(
    *,
    proposal: Annotated[int | None, Parameter(help="number of a proposal")] = None,
    policy: Annotated[Path | None, Parameter(help="a policy file")] = None,
    since: Annotated[str | None, Parameter(help="replay flows from then on: a time, or 7d")] = None,
    until: Until = None,
    canary_share: Annotated[float, Parameter(help="of the hosts of each service, at least one")] = 0.1,
    canary: Annotated[tuple[str, ...], Parameter(help="these hosts first", negative="")] = (),
    gate: Gates = (),
    output: Output = "table",
) -> None:
    """What a proposal or a policy would change, and what it would have cut. Changes nothing; it is kept, and
    `segment show --plan` shows it again. Exit status 2 where the file, or a name in it, is wrong.

    Example: aegisflux segment plan --proposal 3
    """
    if (proposal is None) == (policy is None):
        got = "neither" if policy is None else "both"
        raise Misused("segment plan", "--proposal and its number, or --policy and a file", got)
    asked = {
        "proposal": proposal,
        "since": moment(since),
        "until": moment(until),
        "strategy": {"canary_share": canary_share, "canary_hosts": canary, "gate": gates(gate)},
    }
    if policy is None:
        kept = planned(asked)
    else:
        with wrong(policy):
            kept = planned(asked | {"policy": text_of(policy)})
    plan_told(kept, output)


def planned(asked: dict[str, Any]) -> dict[str, Any]:
    """Make a plan; what came of it."""
    given = {name: value for name, value in asked.items() if value is not None}
    operation = finished(segmenter("POST", "/segment/plan", given))
    found: dict[str, Any] = segmenter("GET", operation["result"])
    return found


def gates(given: Sequence[str]) -> dict[str, float]:
    """`name=number`, each; raises Refused."""
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        number = decimal(value)
        if number is None or name in found:
            raise Refused(f"--gate: expected name=number such as least_flows=100, each once, got {text!r}")
        found[name] = number if "." in value else int(value)
    return found


@app.command
def plans(*, limit: int = 20, output: Output = "table") -> None:
    """Plans, newest first."""
    show(segmenter("GET", "/segment/plans", query={"limit": limit})["items"], output, PLANS)


@app.command
def diff(number: PlanNumber, *, output: Output = "table") -> None:
    """What a plan changes: initiations that get another verdict, each with one that shows it. Exit status 1
    where there are some.
    """
    kept = segmenter("GET", f"/segment/plans/{number}")
    rows = [{"service": s["service"]} | line for s in kept["plan"]["services"] for line in s["changes"]]
    show(rows, output, CHANGES)
    more = sum(service["more_changes"] for service in kept["plan"]["services"])
    if more:
        say(f"{more} changes more")
    settings = settings_of(kept["plan"])
    for line in settings:
        say(line)
    sys.exit(1 if rows or settings else 0)


@app.command
def simulate(number: PlanNumber, *, output: Output = "table") -> None:
    """What a plan would have done to the recorded flows: which it would have blocked, how often, by which
    program, since when, and which rule is missing. Exit status 1 where there are some.
    """
    kept = segmenter("GET", f"/segment/plans/{number}")
    replay_told(kept, output)
    sys.exit(1 if kept["plan"]["replay"]["blocked"] else 0)


@app.command
def approve(
    number: PlanNumber,
    *,
    digest: Annotated[str, Parameter(help="of the plan that was looked at: see `segment show --plan`")],
    accept_blocked: Annotated[
        bool,
        Parameter(negative="", help="what `segment simulate` shows is meant to be cut: it fails no rollout"),
    ] = False,
    output: Output = "table",
) -> None:
    """Say yes to a plan that somebody else made, and that `segment show --plan` shows: its digest is there.

    Example: aegisflux segment approve 5 --digest sha256:...
    """
    asked = {"digest": digest, "accept_blocked": accept_blocked}
    found = segmenter("POST", f"/segment/plans/{number}/approve", asked)
    show({name: found[name] for name in APPROVED}, output, APPROVED)


def finished(operation: dict[str, Any]) -> dict[str, Any]:
    """Wait for an operation, showing how far it is; an interrupt cancels it. Raises Refused."""
    path, said = f"/segment/operations/{operation['id']}", ""
    try:
        while operation["state"] == "running":
            line = f"{operation['share']:4.0%}  {operation['step']}"
            if line != said and operation["step"]:
                said = line
                say(line)
            time.sleep(PAUSE_SECONDS)
            operation = segmenter("GET", path)
    except KeyboardInterrupt:
        segmenter("DELETE", path)
        say("cancelled; nothing was kept")
        raise
    if operation["state"] != "done":
        raise Refused(f"{operation['kind']}: {operation['state']}: {operation['error']}")
    return operation


def seconds(text: str) -> int:
    """How long `30s`, `15m`, `2h` or `1d` is; raises Refused."""
    count = whole(text[:-1], MAX_COUNT)
    if count is None or text[-1:] not in UNITS:
        raise Refused(f"--period: expected a time such as 30s, 2h or 1d, got {text!r}")
    return count * UNITS[text[-1]]


def _told(kept: dict[str, Any], output: str) -> None:
    if not columnar(output):
        show(kept, output)
        return
    proposal = kept["proposal"]
    show([_rule(rule) for rule in proposal["rules"]], output, RULES_WIDE if output == "wide" else RULES)
    if output in PEOPLES:
        for line in _summary(kept["id"], kept["flows"], proposal):
            say(line)


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    proto = PROTOCOL_NAMES.get(rule["proto"], str(rule["proto"]))
    counts = ", ".join(f"{rule[name]} {name}" for name in ("clients", "servers", "days", "connections"))
    state = WAITING.get(rule["held"], "proposed")
    return rule | {
        "from": rule["client"],
        "to": rule["server"],
        "what": f"{proto}/{rule['port']}",
        "state": state if rule["kind"] == "learned" or rule["held"] else f"{state}; review: {rule['kind']}",
        "evidence": counts,
    }


def _summary(number: int, flows: int, proposal: dict[str, Any]) -> Sequence[str]:
    held = sum(bool(rule["held"]) for rule in proposal["rules"])
    proposed, stability = len(proposal["rules"]) - held, proposal["stability"]
    lines = [
        "",
        f"proposal {number}, from {flows} flow records",
        f"  {proposed} rules proposed, {held} held back, {len(proposal['review'])} for a person to review",
        f"  {proposal['coverage']:.1%} of the recorded flows are allowed by it",
        f"  {proposal['unseen']:.1%} of what it allows was not seen (over-permission at most)",
        "  " + _forecast(proposal["forecast"]),
        f"  {len(proposal['groups'])} groups; segmentedness {proposal['segmentedness']:.2f}",
        f"  stability: halves {stability['halves']:.2f}, cuts {stability['cuts']:.2f} (1: the same groups)",
    ]
    if reach := list(proposal["blast_radius"].values()):
        mean, before = sum(reach) / len(reach), proposal["blast_radius_before"]
        lines.append(f"  from a group {mean:.0f} of {before} actors are in reach, {max(reach)} at most")
    lines += [f"  left out: {name}: {why}" for name, why in proposal["left_out"].items()]
    lines += [f"  first: {advice}" for advice in proposal["advice"]]
    return [*lines, f"next: aegisflux segment export {number} > policy.yaml"] if proposed else lines


def _forecast(found: dict[str, float] | None) -> str:
    if found is None:
        return "no forecast: the window is too short"
    return (
        f"forecast: of later legitimate flows {found['rate']:.2%} would be blocked, "
        f"{found['low']:.1%} to {found['high']:.2%} nine times of ten"
    )
