"""`aegisflux policy`: who may call whom, as a file that is read, tried and compared before it does anything.

Exit status: 0 all is well or the same, 1 it differs (or a test fails, or there is something to remark),
2 an error: the file, or a name in it, is wrong, or what was asked is refused; 3 the token may not do it;
4 unavailable.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter

from aegisflux.cli import rollout
from aegisflux.cli.client import segmenter
from aegisflux.cli.output import Output, columnar, say, show
from aegisflux.cli.plans import plan_told, text_of, wrong
from aegisflux.cli.segment import Gates, gates, planned
from aegisflux.domain import json_text
from aegisflux.domain.decoding import converted
from aegisflux.domain.policy import Policy
from aegisflux.domain.policy_compile import Inventory, compile_policy

File = Annotated[Path, Parameter(help="a policy file")]
From = Annotated[
    Path | None,
    Parameter(help="the inventory as JSON (`policy inventory -o json`), instead of asking the segmenter"),
]
LINT = ("kind", "about", "detail", "advice")
BROKEN = ("number", "client", "server", "proto", "port", "expected", "got", "why")
CHANGES = ("service", "direction", "what", "before", "after", "witness")

app = App(name="policy", help="Policy as code: validate, test, compare, apply.")


@app.command
def validate(file: File, *, inventory: From = None, output: Output = "table") -> None:
    """Read a policy, look up its names, compile it, and say what is odd about it.

    Example: aegisflux policy validate policy.yaml
    """
    from aegisflux.domain.policy_lint import lint
    from aegisflux.wire import policyfile

    with wrong(file):
        text, policy = read(file)
        places = _inventory(inventory)
        with policyfile.lines_of(text):
            snapshots = compile_policy(policy, places)
            found = lint(policy, places)
    show(list(msgspec.to_builtins(found)), output, LINT)
    entries = sum(snapshot.entries() for snapshot in snapshots.values())
    say(f"{file}: {len(policy.rules)} rules, {len(snapshots)} services, {entries} entries")
    sys.exit(1 if found else 0)


@app.command(name="test")
def run_tests(file: File, *, inventory: From = None, output: Output = "table") -> None:
    """Run the tests of a policy against what it compiles to. They are of its rules: also a policy that only
    observes is tested as if it blocked.
    """
    from aegisflux.domain.policy_tests import outcome
    from aegisflux.wire import policyfile

    with wrong(file):
        text, policy = read(file)
        places = _inventory(inventory)
        with policyfile.lines_of(text):
            found = outcome(policy, places, compile_policy(policy, places))
    show(list(msgspec.to_builtins(found.broken)), output, BROKEN)
    say(f"{file}: {found.tests - len(found.broken)} of {found.tests} tests hold")
    if policy.mode == "observe":
        say(f"{file}: its mode is observe: what its rules block is told of, and let through")
    sys.exit(1 if found.broken else 0)


@app.command
def diff(file: File, *, output: Output = "table") -> None:
    """Compare a policy with what is in force: initiations that get another verdict, each with one."""
    from aegisflux.domain import diff as diffs
    from aegisflux.domain.plan import change_line, settings_changed
    from aegisflux.domain.snapshot import from_builtins, ruleset
    from aegisflux.wire import policyfile

    rows, settings = list[dict[str, object]](), list[str]()
    with wrong(file):
        text, policy = read(file)
        places, in_force = _inventory(None), segmenter("GET", "/segment/in-force")
        with policyfile.lines_of(text):
            snapshots = compile_policy(policy, places)
        for name, snapshot in snapshots.items():
            before = from_builtins(in_force[name]) if name in in_force else None
            changes = diffs.diff(ruleset(before) if before else None, ruleset(snapshot))
            settings += [f"{name}: {said}" for said in settings_changed(before, snapshot)]
            rows += [{"service": name} | msgspec.to_builtins(change_line(change)) for change in changes]
    show(rows, output, CHANGES)
    for line in settings:
        say(line)
    differs = len(rows) + len(settings)
    say(f"{file}: {differs} changes" if differs else f"{file}: the same as what is in force")
    sys.exit(1 if differs else 0)


@app.command
def apply(
    file: File,
    *,
    canary: Annotated[tuple[str, ...], Parameter(help="these hosts first", negative="")] = (),
    canary_share: Annotated[float, Parameter(help="of the hosts of each service, at least one")] = 0.1,
    gate: Gates = (),
    dry_run: Annotated[bool, Parameter(negative="", help="plan it, and begin nothing")] = False,
    watch: Annotated[bool, Parameter(name=("-w", "--watch"), negative="", help="then watch it")] = False,
    output: Output = "table",
) -> None:
    """Plan a policy and begin its rollout. Exit status 0: nothing changes, or it has begun; 1: it is planned,
    and somebody has to approve it, or something has to be changed first; 2: the file, or a name in it, is
    wrong, or the rollout is refused.

    Example: aegisflux policy apply policy.yaml -w
    """
    from aegisflux.wire import policyfile

    with wrong(file):
        policyfile.read(text := text_of(file))
        strategy = {"canary_share": canary_share, "canary_hosts": canary, "gate": gates(gate)}
        kept = planned({"policy": text, "strategy": strategy})
    plan_told(kept, output)
    if not kept["plan"]["services"]:
        say(f"{file}: the same as what is in force")
        return
    if why := _waits(kept, dry_run):
        say(f"nothing was begun: {why}")
        sys.exit(1)
    with wrong(file):
        rollout.begin(kept["id"], watch=watch, output=output)


@app.command
def inventory(*, output: Output = "json") -> None:
    """What names mean now: hosts and services, for `--inventory`."""
    found = segmenter("GET", "/segment/inventory")
    rows = [{"service": name} | place for name, place in found["services"].items()]
    show(rows if columnar(output) else found, output, ("service", "id", "hosts", "version"))


def read(file: Path) -> tuple[str, Policy]:
    """Return the text of a file and its policy; raises a refusal with its line."""
    from aegisflux.wire import policyfile

    return (text := text_of(file)), policyfile.read(text)


def _waits(kept: dict[str, Any], dry_run: bool) -> str:
    """Why a plan is not begun at once; empty: it is."""
    plan, number = kept["plan"], kept["id"]
    begin = f"aegisflux rollout begin {number}"
    if dry_run:
        return begin
    if plan["held"] or plan["broken_tests"]:
        return "see above what holds it"
    if plan["approval"]:
        return (
            f"somebody else has to look, aegisflux segment show --plan {number}, then "
            f"aegisflux segment approve {number} --digest {kept['digest']}; then {begin}"
        )
    return ""


def _inventory(file: Path | None) -> Inventory:
    if file is None:
        return msgspec.convert(segmenter("GET", "/segment/inventory"), Inventory)
    found: Inventory = converted(json_text.parse(file.read_bytes(), what="an inventory as JSON"), Inventory)
    return found
