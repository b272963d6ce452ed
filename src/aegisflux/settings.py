"""Settings of the control plane: a TOML file, then the environment, then what the command line says."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from aegisflux.domain.errors import Invalid
from aegisflux.domain.guardrails import OPEN, Limits, Share, parse_window
from aegisflux.domain.names import close
from aegisflux.domain.net import parse_address
from aegisflux.runtime import configured
from aegisflux.runtime.admission import Limits as HttpLimits
from aegisflux.runtime.configured import Wrong, refuse

CONFIG: Final = Path("/etc/aegisflux/aegisflux.toml")
PREFIX: Final = "AEGISFLUX_"
SYSTEM_DATA: Final = Path("/var/lib/aegisflux/control")
USER_DATA: Final = Path("~/.local/state/aegisflux/control")
API_PORT, ENRICH_PORT, INGEST_PORT, SEGMENTER_PORT, NATS_PORT = 8081, 8082, 8085, 8086, 4222
AGENT: Final = "AEGISFLUX_AGENT_"
# What commands read.
CLIENTS: Final = frozenset(
    PREFIX + name
    for name in (
        "URL", "ENRICH_URL", "INGEST_URL", "SEGMENTER_URL", "TOKEN", "ADMIN_TOKEN_FILE", "ENROLL_TOKEN"
    )
)  # fmt: skip
# What this project's own tests and tools read; they run agents and control planes.
TOOLS: Final = frozenset(
    PREFIX + name
    for name in (
        "ENTRIES", "KILLS", "KILL_SEED", "NIGHTLY", "PIPELINE_KILLS", "PYTHON", "SEED", "SNAPSHOTS",
        "SOAK_SECONDS", "SWAPS", "SWAP_KILLS"
    )
)  # fmt: skip
# Nothing ever read it, but environments of agents were written with it.
RETIRED: Final = frozenset({AGENT + "CGROUP_ROOT"})
PROBED: Final = PREFIX + "CAN_"  # what script/setup found
KUBERNETES: Final = re.compile(
    r"(AEGISFLUX(?:_[A-Z0-9_]+)?)_(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)"
    r"(?:_PROTO|_PORT|_ADDR)?)?)"
)
YEARS: Final = 10 * 366 * 86_400
Days = Annotated[int, Meta(ge=1, le=36_600)]
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
PLAIN: Final = "127.0.0.1"  # where programs of this machine reach us without TLS, whatever `listen` says
EVERY_IPV4: Final = "0.0.0.0"  # noqa: S104 - the name of it
EVERY: Final = "::"
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z)(?!.*\.[0-9]+\.?\Z|[0-9]+\Z){_LABEL}(?:\.{_LABEL})*\.?")


class Leases(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long a snapshot holds; times in seconds.

    max_seconds:   no lease is longer, whatever its snapshot says; 0 is no bound
    renew_every:   between looks at leases that are to be renewed; with max_seconds at most a tenth of it
    """

    max_seconds: Annotated[int, Meta(ge=0, le=YEARS)] = 0
    renew_every: Annotated[float, Meta(ge=0.1, le=3600)] = 5.0


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
    ttl_seconds: Annotated[int, Meta(ge=0, le=YEARS)] = 0
    changes_an_hour: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
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

    flows_days: Days = 14
    events_days: Days = 30
    rollups_days: Days = 400

    def seconds(self) -> dict[str, int]:
        """By table."""
        days = {"flows": self.flows_days, "events": self.events_days, "flow_minutes": self.rollups_days}
        longest = max(days.values())
        return {name: count * 86_400 for name, count in days.items()} | {"sources": longest * 86_400}


class Http(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much callers of a service's HTTP may hold at once. Where there is no room for a connection, the one
    ends that has waited longest for its client, of the address or token that has most.

    connections:         on which no valid token was shown; as many again on which one was
    peer_connections:    of these, from one address (IPv6: a network of 64 bits)
    token_connections:   on which one valid token was shown
    header_seconds:      from a connection's begin to the head of a request; and for a body without a token
    body_seconds:        for a body with a token
    idle_seconds:        between two requests
    """

    connections: Annotated[int, Meta(ge=64, le=100_000)] = 1024
    peer_connections: Annotated[int, Meta(ge=16, le=100_000)] = 512
    token_connections: Annotated[int, Meta(ge=16, le=100_000)] = 256
    header_seconds: Annotated[float, Meta(ge=1, le=300)] = 10.0
    body_seconds: Annotated[float, Meta(ge=1, le=3600)] = 60.0
    idle_seconds: Annotated[float, Meta(ge=1, le=3600)] = 30.0

    def limits(self) -> HttpLimits:
        """As a listener wants them."""
        return HttpLimits(
            anonymous=self.connections,
            of_peer=min(self.peer_connections, self.connections),
            authenticated=self.connections,
            of_token=min(self.token_connections, self.connections),
            header_seconds=self.header_seconds,
            body_seconds=self.body_seconds,
            idle_seconds=self.idle_seconds,
        )


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings: /etc/aegisflux/aegisflux.toml, then AEGISFLUX_<NAME>; a list is comma-separated there.

    data_dir:         where keys, tokens and the engines' data lie; mode 0700
    port_base:        the API's port; NATS is on the next one, enrich on the second, ingest on the fifth, the
                      segmenter on the sixth after it; 0 is 8081, 4222, 8082, 8085 and 8086
    listen:           addresses beside 127.0.0.1; HTTP has TLS there. Our own NATS takes one address: it is on
                      the first of these instead of 127.0.0.1, or on all with 0.0.0.0 (IPv4) or :: (both)
    advertise:        the name or address that hosts reach us by, without a port; empty is the first of
                      listen. Required where listen is only 0.0.0.0 or ::, since no host can connect to these
    database_url:     an existing PostgreSQL, or file:<path> with its URL inside; empty starts one of our own
    database_passwords: a folder: the file of a service's name there has the password of the database's user
                      aegisflux_<service>; empty: all services use the user of database_url
    nats_urls:        existing NATS servers; empty starts one of our own
    nats_ca:          file of the CA of existing NATS servers; empty is our own CA
    confirm_seconds:  how long an agent waits for its confirmation before it goes back; 0 asks for none
    compare_seconds:  between comparisons of the bus with the store
    workers:          processes that compile snapshots; what undoes and panic have one more each
    log_level:        debug, info, warning or error
    log_format:       json, or text for people
    leases:           see below
    retention:        see below
    limits:           see below
    http:             see below
    timescale:        TimescaleDB where the database has it, or it must, or it is not used
    """

    data_dir: str = ""
    port_base: Annotated[int, Meta(ge=0, le=65_000)] = 0
    listen: tuple[str, ...] = ()
    advertise: str = ""
    database_url: str = ""
    database_passwords: str = ""
    nats_urls: tuple[str, ...] = ()
    nats_ca: str = ""
    confirm_seconds: Annotated[int, Meta(ge=0, le=86_400)] = 30
    compare_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 300.0
    workers: Annotated[int, Meta(ge=1, le=256)] = 2
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    leases: Leases = Leases()
    retention: Retention = Retention()
    limits: Guardrails = Guardrails()
    http: Http = Http()
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
        """The addresses beside 127.0.0.1, each once."""
        return tuple(dict.fromkeys(address for address in self.listen if address != PLAIN))

    @property
    def nats_host(self) -> str:
        """The one address on which our own NATS listens: the server takes no list."""
        for every in (EVERY, EVERY_IPV4):
            if every in self.outside:
                return every
        return self.outside[0] if self.outside else PLAIN

    @property
    def nats_near(self) -> str:
        """The address by which programs of this machine reach our own NATS."""
        return PLAIN if self.nats_host in (EVERY, EVERY_IPV4) else self.nats_host

    @property
    def public_name(self) -> str:
        """The name or address that hosts reach us by; one of every address (0.0.0.0) where none is known."""
        named = [address for address in self.outside if not _is_every(address)]
        return self.advertise or next(iter((*named, *self.outside)), PLAIN)

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


def load(config: Path | None, environ: Mapping[str, str], wrong: Wrong = refuse, **given: Any) -> Settings:
    """Return the settings; what `given` says (and is not None) wins. `wrong` hears of each setting that is
    left out, or raises it: then raises Invalid by the name of the setting."""
    raw = configured.in_file(config, CONFIG, wrong)
    for unknown in unknown_variables(environ):
        wrong(unknown)
    values = configured.values(
        Settings, raw, configured.Places(str(config or CONFIG), PREFIX, environ), wrong
    )
    for name, kind in Settings.__annotations__.items():
        if given.get(name) is not None:
            values[name] = configured.value(name, given[name], kind)
    for name, check in CHECKS.items():
        try:
            check(Settings(**values))
        except Invalid as error:
            wrong(error)
            values.pop(name, None)
    return Settings(**values)


def _listen(settings: Settings) -> None:
    for address in settings.listen:
        parse_address(address, "listen")
    if settings.nats_urls or EVERY in settings.outside:
        return
    ipv6 = [address for address in settings.outside if ":" in address]
    if len(settings.outside) > 1 and (ipv6 or EVERY_IPV4 not in settings.outside):
        raise Invalid(
            "listen",
            "one address, or 0.0.0.0 (every IPv4 address) or :: (every address), since our own NATS takes"
            " no list; or NATS servers of yours in nats_urls",
            ", ".join(settings.listen),
        )


def _advertise(settings: Settings) -> None:
    """Raise Invalid for a name that no host can connect to, or that no certificate and no URL can have."""
    name = settings.public_name
    if _is_every(name):
        words = "the name or address that hosts reach us by: no host can connect to 0.0.0.0 or ::"
        raise Invalid("advertise", words, settings.advertise)
    if _NAME.fullmatch(name):
        return
    try:
        parse_address(name)
    except Invalid:
        words = "a DNS name such as control.example.net, or an address, without a scheme and a port"
        raise Invalid("advertise", words, name) from None


def _is_every(text: str) -> bool:
    """Whether it is the unspecified address, in any spelling: a server listens on it, no client connects."""
    try:
        return parse_address(text).value == 0
    except Invalid:
        return False


CHECKS: Final[Mapping[str, Callable[[Settings], object]]] = {
    "limits": lambda settings: settings.limits.limits(),
    "listen": _listen,
    "advertise": _advertise,
}


def unknown_variables(environ: Mapping[str, str]) -> list[Invalid]:
    """Return what is wrong with variables that begin like ours and that nothing of AegisFlux reads: a setting
    whose name is mistyped would be as if it were not given. One environment may be that of a control plane,
    of an agent and of commands."""
    names = {*configured.variables(Settings, PREFIX), *CLIENTS, *TOOLS, *RETIRED}
    odd = [
        name
        for name in sorted(environ)
        if name.upper().startswith(PREFIX) and name not in names and not name.startswith(PROBED)
    ]
    if not odd:
        return []
    from aegisflux.agent import config as agent

    agents = {*configured.variables(agent.AgentConfig, agent.PREFIX), agent.PREFIX + "CONFIG"}
    told = names - TOOLS - RETIRED
    return [
        Invalid(name, f"a variable that AegisFlux reads{_meant(name, told, agents)}", environ[name])
        for name in odd
        if name not in agents and not _of_kubernetes(name, environ)
    ]


def _meant(name: str, names: set[str], agents: set[str]) -> str:
    """The nearest name: without the prefixes, since these make all names alike."""
    of_agent = name.upper().startswith(AGENT)
    near, far = (agents, names) if of_agent else (names, agents)
    for known in (near, near | far):
        short = {_short(one): one for one in (*(known - near), *(known & near))}
        if hint := close(_short(name), short):
            meant = hint.removeprefix("; did you mean ").removesuffix("?")
            return f"; did you mean {short[meant]}?"
    return "; docs/reference/settings.md names them all"


def _short(name: str) -> str:
    return name.upper().removeprefix(AGENT).removeprefix(PREFIX)


def _of_kubernetes(name: str, environ: Mapping[str, str]) -> bool:
    """Whether Kubernetes gives the variable to each pod beside a service that is called like us."""
    found = KUBERNETES.fullmatch(name)
    return found is not None and f"{found[1]}_SERVICE_HOST" in environ
