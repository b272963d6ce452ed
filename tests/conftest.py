"""What every test shares: places, what this machine lets us do, how much to make, the account of skips.

Scale: `scale("snapshots", 500)` is the number for each change; AEGISFLUX_SNAPSHOTS overrides it (nightly).
Skips: where bpf(), a cgroup and a network namespace work, any skip fails.
Lanes (pytest -n 3): files with tests of the kernel go one after the other on one worker, since they see each
other's cgroups; each other file stays together, so that it starts its servers once.
"""

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
TIMESCALE = REPOSITORY / "tests" / "support" / "timescale" / "node_modules" / ".package-lock.json"
NEEDED_FOR_ALL = ("BPF", "CGROUP", "NETNS")

hypothesis.settings.register_profile("change", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("nightly" if os.environ.get("AEGISFLUX_NIGHTLY") else "change")


def _abilities() -> dict[str, str]:
    """For each ability the reason of its refusal, "" where it works; from script/setup, or tried here."""
    names = ("BPF", "CGROUP", "NETNS", "USERNS")
    if "AEGISFLUX_CAN_BPF" in os.environ:
        return {name: os.environ.get(f"AEGISFLUX_CAN_{name}_REASON", "not tried") for name in names}
    sys.path.insert(0, str(REPOSITORY / "script" / "lib"))
    try:
        import probe
    finally:
        sys.path.pop(0)
    return probe.probe()


ABILITIES = pytest.StashKey[dict[str, str]]()
_SKIPS: list[tuple[str, str]] = []


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ABILITIES] = _abilities()
    _keep_no_logger()


def _keep_no_logger() -> None:
    """Loggers of modules outlive a test: one that keeps what it was configured with would write to the
    captured stderr of the first test that used it, which is closed.
    """
    configure = structlog.configure

    def uncached(*args: Any, **given: Any) -> None:
        configure(*args, **given | {"cache_logger_on_first_use": False})

    structlog.configure = uncached


def pytest_report_header(config: pytest.Config) -> list[str]:
    refused = {name: why for name, why in config.stash[ABILITIES].items() if why}
    words = "; ".join(f"{name.lower()} refused: {why}" for name, why in refused.items())
    return [f"this machine: {words or 'bpf, cgroup, netns and userns work'}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is nightly by day, and TimescaleDB's tests where it is not installed; skip what the
    machine refuses, with its reason.
    """
    abilities = config.stash[ABILITIES]
    left_out = set() if os.environ.get("AEGISFLUX_NIGHTLY") else {"nightly"}
    left_out |= set() if TIMESCALE.exists() else {"timescale"}
    kept = [item for item in items if not left_out & {mark.name for mark in item.iter_markers()}]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept
    for item in items:
        needed = [("bpf", "BPF"), ("bpf", "CGROUP"), ("netns", "NETNS")]
        for marker, ability in needed:
            if item.get_closest_marker(marker) and abilities[ability]:
                item.add_marker(pytest.mark.skip(reason=f"{ability.lower()}: {abilities[ability]}"))


@cache
def _is_of_kernel(file: Path) -> bool:
    return any(f"pytest.mark.{marker}" in file.read_text() for marker in ("bpf", "netns"))


class Lanes(LoadScopeScheduling):
    """Units of work: all files with tests of the kernel are one, each other file is one. The controller knows
    only the names of tests, so the files are read.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "kernel" if _is_of_kernel(self.config.rootpath / file) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    return Lanes(config, log)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _SKIPS.append((report.nodeid, _reason(report)))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A module that skips itself while it is imported counts too."""
    if report.skipped:
        _SKIPS.append((report.nodeid, _reason(report)))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def _skips_fail(config: pytest.Config) -> bool:
    return not any(config.stash[ABILITIES][name] for name in NEEDED_FOR_ALL)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == 0 and _SKIPS and _skips_fail(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("skips")
    terminalreporter.write_line(f"number of skips: {len(_SKIPS)}")
    for name, reason in _SKIPS:
        terminalreporter.write_line(f"  {name}: {reason}")
    if _SKIPS and _skips_fail(config):
        terminalreporter.write_line(
            "FAILED: this machine can run every test, so a skip is a failure", red=True
        )


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Logging is of the process: what follows must not write to a test's captured stderr, which is closed."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Agents that a module's tests started leave no note, no panic and no marker on this host."""
    from tests.support import leftovers

    yield
    found = [*leftovers.below(tmp_path_factory.getbasetemp()), *leftovers.of_this_process()]
    leftovers.remove(found)
    assert not found, f"tests of this module left behind {', '.join(map(str, found))}"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the repository; skips with the reason where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def scale() -> Callable[[str, int], int]:
    """How many of something to make: the day's number, or that of AEGISFLUX_<NAME>."""
    return lambda name, by_day: int(os.environ.get(f"AEGISFLUX_{name.upper()}", by_day))
