"""What people see of a plan, and how the text of a policy file gets to be one."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from aegisflux.cli.output import PEOPLES, columnar, say, show
from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import BROKEN, Forbidden, Invalid, OverLimit, Refused

MOST_SHOWN = 5
PLANNED = ("service", "version", "replaces", "mode", "changes", "canary", "hosts")
REPLAY = ("rule", "at", "direction", "since", "records", "connections", "programs", "hosts", "reason")


@contextmanager
def wrong(file: Path) -> Iterator[None]:
    """A file, or a name in it, that is wrong ends with 2, as compilers do."""
    try:
        yield
    except Forbidden:
        raise
    except (Refused, *BROKEN) as error:
        say(f"{file}: {in_words(error) if isinstance(error, BROKEN) else error}")
        sys.exit(2)


def text_of(file: Path) -> str:
    """The text of a policy file; raises Invalid for what is no text, or OverLimit."""
    from aegisflux.wire.policyfile import MAX_BYTES

    if file.is_dir():
        raise Refused(
            f"expected the path of a policy file, got the directory {str(file)!r}"
            + (" (which an empty path is too)" if file == Path() else "")
        )
    with file.open("rb") as opened:
        body = opened.read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise OverLimit("policy_bytes", MAX_BYTES, max(len(body), file.stat().st_size), "a policy")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        got = f"the byte {body[error.start]:#04x} at {error.start}"
        raise Invalid("", "a policy as UTF-8 text", got) from None


def plan_told(kept: dict[str, Any], output: str) -> None:
    """A kept plan: a line for each service, and for people what it comes to and what to type next."""
    if not columnar(output):
        show(kept, output)
        return
    plan = kept["plan"]
    rows = [
        {
            "service": one["service"],
            "version": one["snapshot"]["version"],
            "replaces": one["replaces"],
            "mode": one["snapshot"]["mode"],
            "changes": len(one["changes"]) + one["more_changes"],
            "canary": one["canary"],
            "hosts": len(one["hosts"]),
        }
        for one in plan["services"]
    ]
    show(rows, output, PLANNED)
    if output in PEOPLES:
        for line in _summary(kept, plan):
            say(line)


def settings_of(plan: dict[str, Any]) -> list[str]:
    """What changes beside verdicts."""
    return [f"{one['service']}: {said}" for one in plan["services"] for said in one.get("settings", ())]


def replay_told(kept: dict[str, Any], output: str) -> None:
    """What a kept plan would have cut; for people and tables with the time since when."""
    replay = kept["plan"]["replay"]
    if not columnar(output):
        show(replay, output)
        return
    show([line | {"since": since(kept, line)} for line in replay["lines"]], output, REPLAY)
    say(_replayed(replay))


def since(kept: dict[str, Any], line: dict[str, Any]) -> str | None:
    """When the period began in which a flow was first seen; None: the window is not said."""
    asked = kept["asked"]
    if not asked.get("since"):
        return None
    after = timedelta(seconds=asked["period_seconds"] * line["since"])
    return (datetime.fromisoformat(asked["since"]) + after).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _summary(kept: dict[str, Any], plan: dict[str, Any]) -> Sequence[str]:
    from aegisflux.domain.policy_lint import Lint
    from aegisflux.domain.policy_tests import Broken

    lines = ["", f"plan {kept['id']}, digest {kept['digest']}"]
    if plan["unchanged"]:
        lines.append(f"  nothing changes for {', '.join(plan['unchanged'])}")
    lines += [f"  {text}" for text in settings_of(plan)]
    lines.append("  " + _replayed(plan["replay"]))
    lines += [f"    {_cut(kept, one)}" for one in plan["replay"]["lines"][:MOST_SHOWN]]
    lines += [f"  test fails: {msgspec.convert(one, Broken)}" for one in plan["broken_tests"]]
    lines += [f"  lint: {msgspec.convert(one, Lint)}" for one in plan["lint"]]
    lines += [f"  held by a guardrail: {text}" for text in plan["held"]]
    lines += [f"  needs a second person: {text}" for text in plan["approval"]]
    if kept["approved_by"]:
        lines.append(f"  approved by {kept['approved_by']}")
    lines += [f"  stale: {text}" for text in kept["stale"]]
    first = ", ".join(" ".join(hosts) for hosts in plan["canary"])
    if first:
        lines.append(f"  first on {first}, then on the others in {len(plan['waves'])} waves")
    lines.append(f"more: aegisflux segment diff {kept['id']}; aegisflux segment simulate {kept['id']}")
    return [*lines, *_next(kept)]


def _cut(kept: dict[str, Any], line: dict[str, Any]) -> str:
    began = since(kept, line)
    words = f"{line['records']}x {line['rule']} ({line['direction']} of {line['at']})"
    return f"{words} since {began}" if began else words


def _next(kept: dict[str, Any]) -> list[str]:
    """What to type next; nothing while something has to be changed first."""
    plan, number = kept["plan"], kept["id"]
    if plan["held"] or plan["broken_tests"] or kept["stale"] or not plan["services"]:
        return []
    begin = f"next: aegisflux rollout begin {number} -w"
    if not plan["approval"] or kept["approved_by"]:
        return [begin]
    return [f"next, by somebody else: aegisflux segment approve {number} --digest {kept['digest']}", begin]


def _replayed(replay: dict[str, Any]) -> str:
    judged, blocked = replay["judged"], replay["blocked"]
    words = f"{blocked} of {judged} recorded flows would have been blocked"
    if blocked:
        words += (
            " (but for what a host's own [[failsafe]] lines let through, which are known to its agent alone)"
        )
    return words + (f"; {replay['unplaced']} could not be judged" if replay["unplaced"] else "")
