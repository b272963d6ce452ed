"""`aegisflux up`, `orchestrator`, `env`: the control plane of this machine."""

import asyncio
import faulthandler
import os
import shlex
from functools import cache
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from aegisflux import settings as settings_of
from aegisflux.cli.output import document, say
from aegisflux.domain.errors import Invalid
from aegisflux.settings import Settings, bracketed

Config = Annotated[
    Path | None, Parameter(name="--config", help="settings, instead of /etc/aegisflux/aegisflux.toml")
]
DataDir = Annotated[str | None, Parameter(name="--data-dir", help="where all data lies")]
PortBase = Annotated[
    int | None, Parameter(name="--port-base", help="the API's port; NATS and the other services follow")
]


def loaded(config: Path | None = None, data_dir: str | None = None, port_base: int | None = None) -> Settings:
    """The settings of what is to begin, with what the command line says; raises Invalid."""
    return settings_of.load(config, os.environ, data_dir=data_dir, port_base=port_base)


def known(config: Path | None = None, data_dir: str | None = None, port_base: int | None = None) -> Settings:
    """The settings for a command that asks: what is wrong in them is said and left out."""
    return settings_of.load(config, os.environ, _warn, data_dir=data_dir, port_base=port_base)


def _warn(error: Invalid) -> None:
    _say_once(f"warning: {error}; no control plane starts with this")


@cache
def _say_once(text: str) -> None:
    say(text)


def up(*, config: Config = None, data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Start the control plane of this machine: NATS, PostgreSQL and our services, supervised, until SIGTERM.

    Example: aegisflux up --data-dir /srv/aegisflux --port-base 9000
    """
    from aegisflux import bootstrap
    from aegisflux.runtime.supervise import Event, run_until_signal

    given = loaded(config, data_dir, port_base)
    _begin(given)
    seen: set[str] = set()

    def told(event: Event) -> None:
        detail = f": {event.detail}" if event.detail else ""
        _say(f"{event.child}: {event.what} (process {event.pid}){detail}")
        if event.what == "ready":
            seen.add(event.child)
        if "told" not in seen and seen >= {"enrich", "segmenter"}:
            seen.add("told")
            _say(_screen(given, seen))

    _say(f"data in {given.data}")
    asyncio.run(run_until_signal(bootstrap.supervisor(given, told)))
    _say("stopped")


def orchestrator(*, config: Config = None, data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Run the orchestrator alone, against the engines that the settings name; `up` does this by itself."""
    import uvloop

    from aegisflux import bootstrap

    given = loaded(config, data_dir, port_base)
    _begin(given)
    uvloop.run(bootstrap.run_orchestrator(given))


def enrich(*, config: Config = None, data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Run enrich alone, against the engines that the settings name; `up` does this by itself."""
    import uvloop

    from aegisflux import bootstrap

    given = loaded(config, data_dir, port_base)
    _begin(given)
    uvloop.run(bootstrap.run_enrich(given))


def ingest(*, config: Config = None, data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Run ingest alone, against the engines that the settings name; `up` does this by itself."""
    import uvloop

    from aegisflux import bootstrap

    given = loaded(config, data_dir, port_base)
    _begin(given)
    uvloop.run(bootstrap.run_ingest(given))


def segmenter(*, config: Config = None, data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Run the segmenter alone, against the engines that the settings name; `up` does this by itself."""
    import uvloop

    from aegisflux import bootstrap

    given = loaded(config, data_dir, port_base)
    _begin(given)
    uvloop.run(bootstrap.run_segmenter(given))


def env(*, config: Config = None, data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Print exports for a shell: a viewer's token, NATS credentials and CA.

    Example: eval "$(aegisflux env)"
    """
    from aegisflux import bootstrap, maintenance

    given = known(config, data_dir, port_base)
    for name, value in bootstrap.environment(given).items():
        document(f"export {name}={shlex.quote(value)}\n")
    if asyncio.run(maintenance.viewer_ended(given)):
        say("warning: this viewer's token was revoked: make a new one by `aegisflux token replace viewer`")


def _begin(given: Settings) -> None:
    """What each process of the control plane does first: nobody else reads what it writes, and a process that
    is ended because it hangs says where."""
    from aegisflux.runtime import logs

    os.umask(0o077)
    faulthandler.enable()
    logs.configure(given.log_level, given.log_format)


def _screen(given: Settings, seen: set[str]) -> str:
    ours = f"nats://{bracketed(given.nats_near)}:{given.nats_port}  (TLS, JetStream, JWT)"
    nats = ", ".join(given.nats_urls) or ours
    store = "PostgreSQL, our own" if "postgres" in seen else "PostgreSQL of the settings"
    where = f" --data-dir {shlex.quote(str(given.data))}" if given.data_dir else ""
    where += f" --port-base {given.port_base}" if given.port_base else ""
    return "\n".join(
        (
            "",
            "AegisFlux is up",
            f"  API           {given.url}   (its pages: {given.url}/schema)",
            f"  facts         {given.enrich_url}   (flows, events, packages, graph)",
            f"  segmenter     {given.segmenter_url}   (proposals from recorded flows)",
            f"  events in     {given.ingest_url}   (POST /api/v1/events)",
            *([f"  for hosts     {given.enroll_url}"] if given.enroll_url != given.url else []),
            f"  NATS          {nats}",
            f"  store         {store}",
            f"  data          {given.data}",
            f"  admin token   in {given.data / 'secrets' / 'admin-token'}",
            f'  a shell       eval "$(aegisflux env{where})"',
            f"  enrol a host  aegisflux hosts token{where}",
            "                then, on the host: aegisflux agent enroll --host-id NAME",
            "  stop          Ctrl-C or SIGTERM",
            "",
        )
    )


def _say(text: str) -> None:
    for part in text.split("\n"):
        say(part)
