"""Which world the story takes place in, its order, its limit of time, and that it always cleans up."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from demo import endings, learning, product, seeing, story
from demo.account import Account, Failed
from demo.inside import Api
from demo.scene import HOSTS, Scene

LIMIT_SECONDS = 120.0
CLEANUP_SECONDS = 8.0
CHAPTERS: tuple[Callable[[Scene], None], ...] = (
    story.build,
    story.control_plane,
    story.enrol,
    story.before,
    story.database,
    seeing.meanwhile,
    story.canary,
    endings.refusals,
    endings.forgeries,
    endings.roll_back,
    endings.without_control,
    endings.panic,
    lambda scene: story.control_plane(scene, again=True),
    endings.comes_back,
    learning.learned,
    endings.traffic,
)


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM, or the time is over."""


def main(arguments: list[str]) -> int:
    """Tell the story; gives the exit code."""
    options = _options(arguments)
    account = Account(options.output, LIMIT_SECONDS)
    _listen()
    reason = _refusal() if not options.simulated else "asked for by --simulated"
    fleet = _fleet(reason)
    account.opening(fleet.datapath, _opening(reason))
    scene = Scene(
        account,
        fleet,
        Api(None, product.api_port(fleet.port_base)),
        fleet.folder / "control",
        fleet.port_base,
    )
    try:
        for chapter in CHAPTERS:
            chapter(scene)
    except Failed as failed:
        account.ended = str(failed)
    except Interrupted as why:
        account.ended = str(why)
    except Exception as error:
        account.ended = f"{type(error).__name__}: {error}"
        if options.debug:
            raise
    finally:
        _quiet()
        fleet.close()
    return account.close()


def _options(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(prog="script/demo", description=__doc__)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument(
        "--simulated", action="store_true", help="the same story without a kernel that enforces"
    )
    parser.add_argument("--debug", action="store_true", help="show where an unexpected error came from")
    return parser.parse_args(arguments)


def _refusal() -> str:
    """What this machine does not let us do, as script/lib/probe.py found out; empty when nothing."""
    needed = ("BPF", "NETNS", "CGROUP")
    reasons = [os.environ.get(f"AEGISFLUX_CAN_{name}_REASON", "") for name in needed]
    if "AEGISFLUX_CAN_BPF" not in os.environ:
        sys.path.insert(0, str(product.ROOT / "script" / "lib"))
        import probe

        answers = probe.probe()
        reasons = [answers[name] for name in needed]
    return "; ".join(reason for reason in reasons if reason)


def _opening(reason: str) -> str:
    if not reason:
        return "Real hosts (namespaces, cgroups), real programs, and verdicts of this machine's kernel."
    return (
        f"No kernel enforces here: {reason}.\nWhat it needs is root (bpf(), network namespaces, cgroup v2). "
        "The same story follows on the simulated datapath:\nthe control plane and the agents are real, "
        "connections are verdicts that the agents give."
    )


def _fleet(reason: str) -> Any:
    if reason:
        from demo.simulated import SimulatedFleet

        return SimulatedFleet(HOSTS)
    from demo.fleet import RealFleet

    return RealFleet(HOSTS)


def _listen() -> None:
    def interrupted(number: int, _frame: FrameType | None) -> None:
        what = {signal.SIGALRM: f"it took longer than {LIMIT_SECONDS:g} s", signal.SIGINT: "interrupted"}
        raise Interrupted(what.get(signal.Signals(number), "terminated"))

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, interrupted)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS - CLEANUP_SECONDS)


def _quiet() -> None:
    """From here on nothing stops the clean-up."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
