"""Lines of the setting `failsafe`: which are well, and what is said of the others."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal

from msgspec import Struct

from aegisflux.agent.parts import AgentSettings
from aegisflux.domain.decoding import converted
from aegisflux.domain.errors import Invalid
from aegisflux.domain.failsafe_paths import absent, failsafe_path
from aegisflux.domain.flow import DEFAULT_FAILSAFE, FailsafeRule
from aegisflux.domain.net import parse_cidr
from aegisflux.domain.snapshot import Proto
from aegisflux.domain.text import printable
from aegisflux.runtime.cgroupfs import v2_mounts
from aegisflux.wire.layout import MAX_FAILSAFE

MAX_PORT: Final = 65_535
MAX_WORDS: Final = 400
EXAMPLE: Final = '{direction = "ingress", proto = "tcp", port = 22}'


class FailsafeSetting(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of what no snapshot can deny on this host; `cgroup` narrows it to the sockets of the
    cgroup of that path below the v2 root, and of those inside."""

    direction: Literal["egress", "ingress"]
    proto: Proto
    port: int
    cidr: str | None = None
    cgroup: str | None = None

    def rule(self) -> FailsafeRule:
        """The rule; raises Invalid."""
        if not 0 <= self.port <= MAX_PORT:
            raise Invalid("failsafe.port", f"0 to {MAX_PORT}", self.port)
        cidr = None if self.cidr is None else parse_cidr(self.cidr, "failsafe.cidr")
        if self.cgroup is not None:
            failsafe_path(self.cgroup, cgroup_mounts())
        return FailsafeRule(self.direction, self.proto, self.port, cidr, self.cgroup)


def failsafe_of(given: list[Any]) -> tuple[list[Any], tuple[str, ...], tuple[int, ...]]:
    """The lines that are well, what is wrong with the others, and which line each is that is well (0: it is
    the default rule).

    Where a line is wrong the default rule is in force beside those that are well: the wrong one may have been
    the administrator's way in, and a host whose agent does not start at all is governed by nothing new.
    """
    good: list[tuple[int, Any]] = []
    refused: list[str] = []
    for number, line in enumerate(given, 1):
        try:
            converted(line, FailsafeSetting, strict=False).rule()
            if len(good) >= MAX_FAILSAFE:
                raise Invalid("failsafe", f"at most {MAX_FAILSAFE} lines", len(given))
            good.append((number, line))
        except Invalid as error:
            refused.append(f"failsafe {number}: {printable(_told(error))[:MAX_WORDS]}")
    if refused:
        default = [
            {"direction": one.direction, "proto": one.proto, "port": one.port} for one in DEFAULT_FAILSAFE
        ]
        good = [*((0, line) for line in default), *(one for one in good if one[1] not in default)]
        left_out = (line for _, line in good[MAX_FAILSAFE:])
        refused += [f"failsafe: no room beside the default rule for {line}" for line in left_out]
    good = good[:MAX_FAILSAFE]
    return [line for _, line in good], tuple(refused), tuple(number for number, _ in good)


def _told(error: Invalid) -> str:
    """What is wrong with a line; where its form is, a line that is well beside it."""
    return str(error) if error.path.startswith("failsafe") else f"{error}; a line is such as {EXAMPLE}"


def cgroup_mounts() -> tuple[str, ...]:
    """Where cgroup v2 trees are mounted; none where that cannot be read."""
    with suppress(OSError):
        return tuple(mount.point for mount in v2_mounts())
    return ()


def absent_failsafes(settings: AgentSettings, exists: Callable[[str], bool]) -> tuple[str, ...]:
    """Rules whose cgroup is not there now, in words, by the number of their line."""
    return absent([(n, rule.cgroup) for n, rule in numbered(settings)], exists)


def numbered(settings: AgentSettings) -> list[tuple[int, FailsafeRule]]:
    """The rules, each with the number of its line."""
    return list(zip(settings.failsafe_numbers, settings.failsafe, strict=False))
