"""Settings of an agent: a TOML file, then the environment."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from aegisflux.agent.failsafes import EXAMPLE, FailsafeSetting, failsafe_of
from aegisflux.agent.parts import AgentSettings, Seconds, TelemetrySettings
from aegisflux.domain import json_text
from aegisflux.domain.errors import Invalid
from aegisflux.domain.flow import DEFAULT_FAILSAFE
from aegisflux.domain.selectors import slice_of
from aegisflux.runtime import configured
from aegisflux.runtime.configured import Wrong, refuse

CONFIG: Final = Path("/etc/aegisflux/agent.toml")
PREFIX: Final = "AEGISFLUX_AGENT_"
SYSTEM_STATE: Final = Path("/var/lib/aegisflux/agent")
USER_STATE: Final = Path("~/.local/state/aegisflux/agent")
FAILSAFE: Final = PREFIX + "FAILSAFE"
MAX_LEASE_SECONDS: Final = 10 * 366 * 86_400


class AgentConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The agent's settings: /etc/aegisflux/agent.toml, then AEGISFLUX_AGENT_<NAME>; times in seconds.

    state_dir:         keys, last accepted state and contents; mode 0700, one agent at a time
    datapath:          bpf, or simulated: nothing is enforced
    attach_cgroup:     where programs are attached; empty is the root of the v2 tree
    instance, bpffs:   where pins lie: <bpffs>/aegisflux/<instance>
    nats_urls:         instead of those that enrolment gave
    control_url:       where to renew credentials that have ended, instead of the URL of the enrolment token
    failsafe:          what no snapshot can deny here, instead of TCP 22 inbound
    observe_only:      nothing is ever enforced here, whatever a manifest says
    max_lease_seconds: a snapshot that may hold for longer is refused; 0 is no bound
    unit_slices:       slices in which `unit:` looks for units, beside system.slice and machine.slice
    simulated_cgroups: the cgroups of this host where `datapath` is simulated, instead of its own
    telemetry:         what is told of the host, see below
    """

    state_dir: str = ""
    datapath: Literal["bpf", "simulated"] = "bpf"
    attach_cgroup: str = ""
    instance: str = "default"
    bpffs: str = "/sys/fs/bpf"
    nats_urls: tuple[str, ...] = ()
    control_url: str = ""
    failsafe: tuple[FailsafeSetting, ...] | None = None
    heartbeat_seconds: Seconds = 5.0
    refresh_seconds: Seconds = 60.0
    tick_seconds: Seconds = 1.0
    drift_seconds: Seconds = 30.0
    scan_seconds: Seconds = 30.0
    addresses_seconds: Seconds = 10.0
    observe_only: bool = False
    max_lease_seconds: Annotated[float, Meta(ge=0, le=MAX_LEASE_SECONDS)] = 0.0
    unit_slices: tuple[str, ...] = ()
    simulated_cgroups: tuple[str, ...] = ()
    telemetry: TelemetrySettings = TelemetrySettings()

    @property
    def state(self) -> Path:
        """The state folder: for root a system's, else the user's."""
        if self.state_dir:
            return Path(self.state_dir)
        return SYSTEM_STATE if os.geteuid() == 0 else USER_STATE.expanduser()

    @property
    def failsafe_refused(self) -> tuple[str, ...]:
        """Which lines of `failsafe` are not in force, and why."""
        return ()

    @property
    def failsafe_numbers(self) -> tuple[int, ...]:
        """Which line of the setting each rule of `failsafe` is; 0 is the default rule."""
        return tuple(range(1, len(self.failsafe) + 1)) if self.failsafe is not None else (0,)

    def settings(self) -> AgentSettings:
        """What the runner reads; raises Invalid."""
        rules = DEFAULT_FAILSAFE if self.failsafe is None else tuple(line.rule() for line in self.failsafe)
        times = {
            name: getattr(self, name) for name in AgentSettings.__struct_fields__ if name.endswith("_seconds")
        }
        return AgentSettings(
            failsafe=rules,
            failsafe_refused=self.failsafe_refused,
            failsafe_numbers=self.failsafe_numbers,
            observe_only=self.observe_only,
            unit_slices=tuple(slice_of(text) for text in self.unit_slices),
            telemetry=self.telemetry,
            **times,
        )


class PartlyRefused(AgentConfig, frozen=True, kw_only=True):
    """Settings of which some lines of `failsafe` are refused; `refused` says which, and why;
    `numbers`, which lines the others are."""

    refused: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()

    @property
    def failsafe_refused(self) -> tuple[str, ...]:
        """Which lines of `failsafe` are not in force, and why."""
        return self.refused

    @property
    def failsafe_numbers(self) -> tuple[int, ...]:
        """Which line of the setting each rule of `failsafe` is; 0 is the default rule."""
        return self.numbers


def read_config(path: Path | None, environ: Mapping[str, str], wrong: Wrong = refuse) -> AgentConfig:
    """Read file and environment. `wrong` hears of each setting that is left out, or raises it.

    A line of `failsafe` that is wrong takes no other one with it: see `failsafe_of`.
    """
    default = Path(environ.get(PREFIX + "CONFIG") or CONFIG)
    source, found = path or default, configured.in_file(path, default, wrong)
    refused, numbers = _failsafe_lines(found, f"{source}: failsafe", environ, wrong)
    others = {name: text for name, text in environ.items() if name != FAILSAFE}
    values = configured.values(AgentConfig, found, configured.Places(str(source), PREFIX, others), wrong)
    try:
        _ = [slice_of(text) for text in values.get("unit_slices", ())]
    except Invalid as error:
        wrong(error)
        del values["unit_slices"]
    if refused:
        return PartlyRefused(**values, refused=refused, numbers=numbers)
    return AgentConfig(**values)


def _failsafe_lines(
    found: dict[str, Any], label: str, environ: Mapping[str, str], wrong: Wrong
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Put the lines of `failsafe` that are well into `found`; return what is wrong with the others, and which
    lines those are that are well."""
    try:
        if text := environ.get(FAILSAFE):
            label = FAILSAFE
            found["failsafe"] = json_text.parse(text.encode(errors="surrogateescape"), FAILSAFE, "JSON")
        given = found.get("failsafe")
        if given is None:
            return (), ()
        if not isinstance(given, list):
            raise Invalid(label, "an array of lines such as " + EXAMPLE, given)
    except Invalid as error:
        wrong(error)
        found.pop("failsafe", None)
        return (), ()
    found["failsafe"], refused, numbers = failsafe_of(given)
    return refused, numbers
