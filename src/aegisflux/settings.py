"""Settings of the control plane: a TOML file, then the environment, then what the command line says."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from aegisflux.domain.digits import plain_numbers
from aegisflux.domain.errors import Invalid
from aegisflux.domain.guardrails import OPEN, Limits, Share, parse_window
from aegisflux.domain.net import parse_address

CONFIG: Final = Path("/etc/aegisflux/aegisflux.toml")
PREFIX: Final = "AEGISFLUX_"
SYSTEM_DATA: Final = Path("/var/lib/aegisflux/control")
USER_DATA: Final = Path("~/.local/state/aegisflux/control")
API_PORT, ENRICH_PORT, INGEST_PORT, SEGMENTER_PORT, NATS_PORT = 8081, 8082, 8085, 8086, 4222
LISTS: Final = frozenset({"listen", "nats_urls", "never_block", "windows"})
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


class Leases(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long a snapshot holds; times in seconds.

    max_seconds:   no lease is longer, whatever its snapshot says; 0 is no bound
    renew_every:   between looks at leases that are to be renewed; with max_seconds at most a tenth of it
    """

    max_seconds: int = 0
    renew_every: float = 5.0


class Guardrails(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What no plan and no operator can loosen.

    never_block:     labels (name=value) of hosts on which nothing is ever enforced
    most_of_fleet:   share of all hosts that one wave may touch
    most_of_service: share of the hosts of a service that one wave may touch
    ttl_seconds:     no snapshot's lease is longer; 0 is no bound
    changes_an_hour: rollouts that may begin in an hour; 0 is no bound
    windows:         when waves may begin, UTC, such as "mon-fri 08:00-17:00"; empty is always
    """

    never_block: tuple[str, ...] = ()
    most_of_fleet: Share = 1.0
    most_of_service: Share = 1.0
    ttl_seconds: Annotated[int, Meta(ge=0)] = 0
    changes_an_hour: Annotated[int, Meta(ge=0)] = 0
    windows: tuple[str, ...] = ()

    def limits(self) -> Limits:
        """As guardrails want them; raises Invalid by the name of the setting."""
        labels: dict[str, tuple[str, ...]] = {}
        for name, value in map(_label, self.never_block):
            labels[name] = (*labels.get(name, ()), value)
        return Limits(
            never_block=labels,
            most_of_fleet=self.most_of_fleet,
            most_of_service=self.most_of_service,
            ttl_seconds=self.ttl_seconds or OPEN.ttl_seconds,
            changes_an_hour=self.changes_an_hour or OPEN.changes_an_hour,
            windows=tuple(map(parse_window, self.windows)),
        )


def _label(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name.strip():
        raise Invalid("limits.never_block", "a label such as role=bastion", text)
    return name.strip(), value.strip()


class Retention(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many days facts are kept.

    flows_days:   flow reports, each a row
    events_days:  every other event
    rollups_days: flows added up by minute, and what was seen of each source
    """

    flows_days: int = 14
    events_days: int = 30
    rollups_days: int = 400

    def seconds(self) -> dict[str, int]:
        """By table."""
        days = {"flows": self.flows_days, "events": self.events_days, "flow_minutes": self.rollups_days}
        longest = max(days.values())
        return {name: count * 86_400 for name, count in days.items()} | {"sources": longest * 86_400}


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings: /etc/aegisflux/aegisflux.toml, then AEGISFLUX_<NAME>; a list is comma-separated there.

    data_dir:         where keys, tokens and the engines' data lie; mode 0700
    port_base:        the API's port; NATS is on the next one, enrich on the second, ingest on the fifth, the
                      segmenter on the sixth after it; 0 is 8081, 4222, 8082, 8085 and 8086
    listen:           addresses beside 127.0.0.1; HTTP has TLS there
    advertise:        the name or address that hosts reach us by; empty is the first of listen
    database_url:     an existing PostgreSQL; empty starts one of our own
    nats_urls:        existing NATS servers; empty starts one of our own
    nats_ca:          file of the CA of existing NATS servers; empty is our own CA
    confirm_seconds:  how long an agent waits for its confirmation before it goes back; 0 asks for none
    compare_seconds:  between comparisons of the bus with the store
    workers:          processes that compile snapshots
    log_level:        debug, info, warning or error
    log_format:       json, or text for people
    leases:           see below
    retention:        see below
    limits:           see below
    timescale:        TimescaleDB where the database has it, or it must, or it is not used
    """

    data_dir: str = ""
    port_base: int = 0
    listen: tuple[str, ...] = ()
    advertise: str = ""
    database_url: str = ""
    nats_urls: tuple[str, ...] = ()
    nats_ca: str = ""
    confirm_seconds: int = 30
    compare_seconds: float = 300.0
    workers: int = 2
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    leases: Leases = Leases()
    retention: Retention = Retention()
    limits: Guardrails = Guardrails()
    timescale: Literal["auto", "require", "off"] = "auto"

    @property
    def data(self) -> Path:
        """The data folder: for root a system's, else the user's."""
        if self.data_dir:
            return Path(self.data_dir).absolute()
        return SYSTEM_DATA if os.geteuid() == 0 else USER_DATA.expanduser()

    @property
    def api_port(self) -> int:
        """Where HTTP is."""
        return self.port_base or API_PORT

    @property
    def nats_port(self) -> int:
        """Where NATS is."""
        return self.port_base + 1 if self.port_base else NATS_PORT

    @property
    def enrich_port(self) -> int:
        """Where enrich answers."""
        return self.port_base + 2 if self.port_base else ENRICH_PORT

    @property
    def ingest_url(self) -> str:
        """Where programs on this machine post events."""
        return f"http://127.0.0.1:{self.ingest_port}"

    @property
    def ingest_port(self) -> int:
        """Where ingest takes events by HTTP."""
        return self.port_base + 5 if self.port_base else INGEST_PORT

    @property
    def segmenter_port(self) -> int:
        """Where the segmenter answers."""
        return self.port_base + 6 if self.port_base else SEGMENTER_PORT

    @property
    def segmenter_url(self) -> str:
        """Where programs on this machine ask for proposals."""
        return f"http://127.0.0.1:{self.segmenter_port}"

    @property
    def outside(self) -> tuple[str, ...]:
        """The addresses that are not this machine's loopback."""
        return tuple(address for address in self.listen if address not in LOOPBACK)

    @property
    def public_name(self) -> str:
        """The name or address that hosts reach us by."""
        return self.advertise or (self.outside[0] if self.outside else "127.0.0.1")

    @property
    def url(self) -> str:
        """Where programs on this machine reach the API."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def enrich_url(self) -> str:
        """Where programs on this machine ask for facts."""
        return f"http://127.0.0.1:{self.enrich_port}"

    @property
    def enroll_url(self) -> str:
        """Where hosts reach the API."""
        if self.public_name in LOOPBACK:
            return self.url
        return f"https://{bracketed(self.public_name)}:{self.api_port}"

    def environment(self) -> dict[str, str]:
        """These settings for a child process."""
        found = {}
        for name, value in msgspec.to_builtins(self).items():
            for key, item in value.items() if isinstance(value, dict) else [("", value)]:
                text = ",".join(item) if isinstance(item, (list, tuple)) else str(item)
                found[PREFIX + "_".join(filter(None, (name, key))).upper()] = text
        return found


def bracketed(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def load(config: Path | None, environ: Mapping[str, str], **given: Any) -> Settings:
    """The settings; what `given` says (and is not None) wins. Raises Invalid by the name of the setting."""
    raw: dict[str, Any] = {}
    path = config or CONFIG
    if config is not None or path.exists():
        try:
            raw = tomllib.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise Invalid(str(path), "a readable TOML file", str(error)) from None
    _environment(raw, environ)
    raw |= {name: value for name, value in given.items() if value is not None}
    plain_numbers(raw)
    try:
        settings = msgspec.convert(raw, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid("settings", "the documented settings", str(error)) from None
    settings.limits.limits()
    for address in settings.listen:
        parse_address(address, "listen")
    if not 0 <= settings.port_base <= 65_000:
        raise Invalid("port_base", "0 to 65000", settings.port_base)
    return settings


def _environment(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    for field in msgspec.structs.fields(Settings):
        if field.type in (Leases, Retention, Guardrails):
            inner: dict[str, Any] = raw.setdefault(field.name, {})
            for part in msgspec.structs.fields(field.type):
                value = environ.get(f"{PREFIX}{field.name}_{part.name}".upper())
                if value:
                    many = part.name in LISTS
                    inner[part.name] = [p.strip() for p in value.split(",")] if many else value
            continue
        value = environ.get(PREFIX + field.name.upper())
        if value:
            many = field.name in LISTS
            raw[field.name] = [part.strip() for part in value.split(",")] if many else value
