"""`aegisflux agent`: enrol a host, run its agent, ask it, and get out of a lock-out without the network.

Exit status: 0 fine, 1 findings, 2 error, 3 refused, 4 unavailable. Data goes to stdout, talk to stderr.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, Parameter

from aegisflux.domain.errors import Invalid, Refused, Unavailable
from aegisflux.domain.text import encodable_all, paragraph, printable

if TYPE_CHECKING:
    from aegisflux.agent.config import AgentConfig
    from aegisflux.agent.rescue import Kernel, Meant
    from aegisflux.domain.panic import Attached, Owner

app = App(name="agent", help="The agent of this host: enrol it, run it, ask it, stop its enforcement.")

Json = dict[str, Any]
Output = Annotated[Literal["table", "json", "jsonl"], Parameter(name=["--output", "-o"])]
ConfigFile = Annotated[Path | None, Parameter(name="--config", help="settings, instead of agent.toml")]
Instance = Annotated[str | None, Parameter(help="which agent, where several are on this host")]
FINDINGS, ERROR, REFUSED, UNAVAILABLE = 1, 2, 3, 4
FINE = ("in_force", "observing", "withdrawn", "no snapshot")  # the last two: nothing is wanted of it
RESUME = "aegisflux agent resume ends it"
TOKEN_VARIABLE = "AEGISFLUX_ENROLL_TOKEN"  # noqa: S105 - the name of a variable


@app.command
def enroll(
    *,
    host_id: Annotated[str | None, Parameter(help="default: the first label of the host's name")] = None,
    token_file: Annotated[Path | None, Parameter(help="a file with the token; - is stdin")] = None,
    force: Annotated[bool, Parameter(negative="", help="enrol again, with the same key")] = False,
    config: ConfigFile = None,
) -> None:
    """Enrol this host with a token from --token-file, AEGISFLUX_ENROLL_TOKEN or stdin.

    Example: aegisflux hosts token --label role=web | aegisflux agent enroll --host-id web1
    """
    from aegisflux.agent.enroll import enroll as enrol
    from aegisflux.agent.enroll import host_id_of
    from aegisflux.agent.identity import IDENTITY
    from aegisflux.agent.state import FileStore

    with _exits():
        settings = _config(config)
        name = host_id or host_id_of(os.uname().nodename)
        store = FileStore(settings.state)
        if store.read(IDENTITY) is not None and not force:
            raise Refused(f"this host is enrolled already (state in {settings.state}); --force enrols again")
        identity = enrol(_token(token_file), name, store)
        _say(f"enrolled as {identity.host_id}; run: aegisflux agent run")


@app.command
def run(*, config: ConfigFile = None) -> None:
    """Run the agent in the foreground. When it ends, what is in force stays in force until its lease ends."""
    import asyncio

    from aegisflux.agent_bootstrap import run_agent

    with _exits():
        asyncio.run(run_agent(_config(config), _log))


@app.command
def status(*, output: Output = "table", instance: Instance = None, config: ConfigFile = None) -> None:
    """What is in force on this host, by service; exit 1 when something is not as it should be."""
    with _exits():
        (found,) = _asked(_found(config, instance), {"do": "status"})
        _print(output, found, _status_table)
        bad = [s for s in found["services"] if s["state"] not in FINE]
        trouble = found.get("troubles") or found.get("failsafe_refused")
        if bad or trouble or found["panicked"] or not found["connected"]:
            sys.exit(FINDINGS)


@app.command
def why(
    service: str,
    proto: str,
    peer: str,
    port: int | None = None,
    *,
    ingress: Annotated[
        bool, Parameter(negative="", help="the peer initiates; port is the local one")
    ] = False,
    candidate: Annotated[bool, Parameter(negative="", help="by the candidate instead")] = False,
    output: Output = "table",
    instance: Instance = None,
    config: ConfigFile = None,
) -> None:
    """The verdict of a flow from what the kernel holds now; exit 1 when it is blocked.

    Example: aegisflux agent why web tcp 10.0.0.5 5432

    Parameters
    ----------
    service: its number, its name, or the path of a cgroup
    peer: the remote address
    port: the port that the initiator addresses
    """
    question = {
        "do": "why",
        "service": service,
        "proto": proto,
        "peer": peer,
        "port": port,
        "direction": "ingress" if ingress else "egress",
        "role": "candidate" if candidate else "active",
    }
    with _exits():
        (found,) = _asked(_found(config, instance), question)
        _print(output, found, _why_lines)
        if found["verdict"] != "allowed":
            sys.exit(FINDINGS)


@app.command
def denied(
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="")] = False,
    limit: int = 100,
    output: Output = "table",
    instance: Instance = None,
    config: ConfigFile = None,
) -> None:
    """Denied (or would-be denied) flows of this host, newest last; -f goes on."""
    with _exits():
        question = {"do": "denied", "follow": follow, "last": limit}
        for found in _asked(_found(config, instance), question, timeout=None if follow else 10.0):
            _print("table" if output == "table" else "jsonl", found, _denied_lines)


@app.command
def doctor(*, output: Output = "table", instance: Instance = None, config: ConfigFile = None) -> None:
    """What this host can and cannot enforce, and how its agent is.

    Exit 1 when this host cannot run an agent, or its agent is not as it should be; 0 on a host that is
    able and not enrolled yet. What to do next is said.
    """
    from aegisflux.agent.doctor import Finding, examine, next_step
    from aegisflux.agent_bootstrap import make_datapath

    with _exits():
        wrong: list[str] = []
        settings = _found(config, instance, new=True, wrong=wrong)
        checks = [
            *(Finding("settings", False, text, True) for text in wrong),
            *examine(settings.state, lambda: make_datapath(settings), settings.settings()),
        ]
        found: Json = {"checks": [check._asdict() for check in checks], "next": next_step(checks)}
        _print(output, found, _doctor_table)
        if any(not check.ok and check.required for check in checks):
            sys.exit(FINDINGS)


@app.command
def panic(*, why: str = "by hand", instance: Instance = None, config: ConfigFile = None) -> None:
    """Remove all enforcement on this host at once, and keep it so until `aegisflux agent resume`.

    Needs no network, no running agent and no room on a disk. Ends every instance that the kernel has
    attached, unless one is named: by --instance, or by --config or the environment where they agree with an
    agent of this host. Exit 0: the kernel was asked, and nothing of these enforces any more; what could not
    be written is said on stderr. Exit 4: something still enforces, and it is named.
    """
    from aegisflux.agent import rescue
    from aegisflux.agent_bootstrap import make_kernel

    with _exits():
        kernel = make_kernel()
        ended: list[Attached] = []
        about = _meant(
            config, instance, kernel, lambda meant: ended.extend(rescue.end_at_once(meant, kernel))
        )
        done = rescue.panic(about, why, kernel, time.time, ended)
        names = {note.instance: str(note) for note in about.agents}
        for name in () if done.left else done.found:
            known = names.get(name, f"{name or 'no name'} (of no known agent)")
            _say(f"panic: all enforcement of {known} is removed")
        for name in done.idle:
            _say(f"panic: {names.get(name, name)} does not run and enforces nothing; it stays so")
        for name, text in done.unwritten:
            _say(f"panic: {name and name + ': '}could not be written to {text}")
        for name in done.fleeting:
            _say(f"panic: {name}: kept by its running agent alone; it ends with that agent")
        for text in done.cut:
            _say(f"panic: {text}")
        for name in about.others:
            _say(f"still enforced: instance {name}; aegisflux agent panic --instance {name}")
        if done.left:
            raise Unavailable("still enforced: " + "; ".join(done.left))
        there = done.found or done.idle
        if not there and instance is not None:
            raise _unknown(config, instance, about.others, kernel)
        _say(RESUME if there else "panic: nothing of AegisFlux is on this host")


@app.command
def resume(*, instance: Instance = None, config: ConfigFile = None) -> None:
    """End a panic, of all instances unless one is named: the last accepted manifest is applied again.

    Exit 0 also where the panic cannot be deleted from a read-only medium: then another medium says that it
    ended, and what comes back after a reboot is said.
    """
    from aegisflux.agent import rescue
    from aegisflux.agent_bootstrap import make_kernel, marked_pins

    with _exits():
        kernel = make_kernel()
        about = _meant(config, instance, kernel)
        marked = marked_pins(_folders(config))
        if instance is not None and not about.agents:
            there = {name for _, name in (*about.pins, *marked)}
            if instance not in there:
                raise _unknown(config, instance, there | set(about.others), kernel)
        done = rescue.resume(about, kernel, marked)
        for note in done.running:
            _say(f"resumed: {note}")
        for note in done.idle:
            _say(f"resumed: {note}; enforcement returns when its agent runs")
        for name in done.nameless:
            _say(f"resumed: {name} (of no known agent)")
        for name, text in done.stuck:
            _say(
                f"resume: {name}: the panic could not be deleted from {text}; it is "
                "overruled until the next boot, and stands again then unless it was deleted"
            )
        if not (done.running or done.idle or done.nameless):
            _say("nothing to resume: no agent of this host is in panic")


@app.command
def reset_clock(*, instance: Instance = None, config: ConfigFile = None) -> None:
    """Believe the wall clock again, after it was far ahead for a while.

    The agent never believes an earlier time than it once did, so that nobody lengthens a lease by setting
    the clock back. Set the clock right first. What this costs stands in SECURITY.md.
    """
    from aegisflux.agent import remember
    from aegisflux.agent.state import FileStore, Locked

    with _exits():
        settings = _found(config, instance)
        try:
            (told,) = _asked(settings, {"do": "reset-clock"}, timeout=30.0)
        except Unavailable:
            locks, store = Locked(), FileStore(settings.state)
            locks.take(settings.state, "state folder")
            told = remember.reset_clock(store, time.time())
        then, now = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(told[k])) for k in ("believed", "now"))
        if told["believed"] > told["now"]:
            _say(f"it was believed to be at least {then}; it is {now} now")
        else:
            _say(f"nothing to reset: no later time than {now} was believed")


@contextmanager
def _exits() -> Iterator[None]:
    """Errors as exit statuses, one line on stderr."""
    try:
        yield
    except Refused as error:
        _fail(REFUSED, error)
    except Unavailable as error:
        _fail(UNAVAILABLE, error)
    except BrokenPipeError:  # whoever read has seen enough: `main` ends quietly
        raise
    except (OSError, ValueError) as error:
        _fail(ERROR, error)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(status: int, error: Exception) -> NoReturn:
    with suppress(OSError):
        print(paragraph(f"aegisflux agent: {error}"), file=sys.stderr, flush=True)  # noqa: T201
    sys.exit(status)


def _config(path: Path | None) -> "AgentConfig":
    from aegisflux.agent_bootstrap import load_config

    return load_config(path)


def _known(path: Path | None, wrong: list[str] | None = None) -> "AgentConfig":
    """The settings of an agent for a command: what is wrong in them is said and left out. Only an agent that
    is to begin is refused for it; nobody is kept from ending enforcement or from looking. Where `wrong` is
    given it is told there."""
    from aegisflux.agent_bootstrap import load_config

    def told(error: Invalid) -> None:
        if wrong is None:
            _warn(str(error))
        else:
            wrong.append(str(error))

    return load_config(path, told)


@cache
def _warn(text: str) -> None:
    """Say what is wrong once, however often a command reads its settings."""
    _say(f"warning: {text}; no agent starts with this")


def _said(path: Path | None) -> bool:
    """Whether who typed the command named an agent, by a file of settings or in the environment."""
    return path is not None or any(
        f"AEGISFLUX_AGENT_{name}" in os.environ for name in ("STATE_DIR", "INSTANCE")
    )


def _found(
    path: Path | None, instance: str | None, *, new: bool = False, wrong: list[str] | None = None
) -> "AgentConfig":
    """The settings of the agent that is meant, as it really runs or ran; where it may be `new`, what somebody
    said is believed although no agent was enrolled there. `wrong`: see `_known`."""
    from msgspec.structs import replace

    from aegisflux.agent import notes

    settings = _known(path, wrong)
    if new and instance is None and _said(path) and not notes.is_enrolled(settings.state):
        return settings
    known = notes.read()
    note = notes.choose(known, settings.state, instance, said=_said(path))
    if note is not None:
        return replace(
            settings,
            state_dir=note.state_dir,
            instance=note.instance,
            attach_cgroup=note.attach_cgroup,
            bpffs=note.bpffs,
            datapath=note.datapath,
        )
    own = (settings.instance,) if notes.is_enrolled(settings.state) else ()
    if instance is not None and instance not in own:
        raise notes.unknown(instance, (*own, *(one.instance for one in known)))
    return settings


def _meant(
    path: Path | None,
    instance: str | None,
    kernel: "Kernel",
    first: "Callable[[Meant], object]" = lambda _: None,
) -> "Meant":
    """Whom a command is about. `first` is called as soon as that is known, before the kernel's maps are
    looked through for markers: there are as many as others like."""
    from aegisflux.agent import notes, rescue
    from aegisflux.agent_bootstrap import note_of

    known, settings = notes.read(), note_of(_known(path))
    there: list[Attached] = []
    with suppress(Unavailable):  # the panic itself says what the kernel refuses
        there = kernel.linked()
    visible, pinned = kernel.visible({one.place for one in there}), notes.pinned(_folders(path))

    def who(marked: "Iterable[Owner]") -> "Meant":
        found = rescue.with_kernel(known, there, visible, marked)
        return rescue.meant(settings, found, pinned, instance, said=_said(path))

    about = who(())
    if about.instances is None and _said(path):  # a marker may tell of the agent that was named
        about = who(kernel.marked())
    first(about)
    return who(kernel.marked())


def _unknown(path: Path | None, instance: str, there: Iterable[str], kernel: "Kernel") -> Refused:
    """What is said of an instance that nothing on this host has; `there` are those that are pinned."""
    from aegisflux.agent import notes

    agents = _meant(path, None, kernel).agents
    there = {*there, *(note.instance for note in agents if notes.is_enrolled(note.state))}
    return notes.unknown(instance, there)


def _folders(path: Path | None) -> list[Path]:
    """BPF file systems that an agent may have pinned in."""
    from aegisflux.agent import notes
    from aegisflux.runtime import procfs

    folders = notes.bpf_file_systems(procfs.kernel_text(procfs.PROC / "self/mountinfo"))
    return [*folders, Path(_known(path).bpffs), *(Path(note.bpffs) for note in notes.read())]


def _token(path: Path | None) -> str:
    if path is not None and str(path) != "-":
        return path.read_text()
    if path is None and (text := os.environ.get(TOKEN_VARIABLE)):
        return text
    if sys.stdin.isatty():
        _say("token: ")
    if text := sys.stdin.readline().strip():
        return text
    raise Invalid(
        "token",
        f"one on stdin (aegisflux hosts token | aegisflux agent enroll), by --token-file or {TOKEN_VARIABLE}",
        "nothing on stdin",
    )


def _asked(settings: "AgentConfig", question: Json, timeout: float | None = 10.0) -> Iterable[Json]:
    from aegisflux.agent.control import SOCKET, ask

    return ask(settings.state / SOCKET, question, timeout)


def _log(text: str) -> None:
    line = {"ts": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "logger": "agent", "msg": text}
    print(json.dumps(encodable_all(line)), file=sys.stderr, flush=True)  # noqa: T201


def _say(text: str) -> None:
    """Talk on stderr; what nobody reads or has room for stops no command, least of all a panic."""
    with suppress(OSError):
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


def _print(output: str, found: Json, table: Callable[[Json], list[str]]) -> None:
    """Print an answer. Whoever gave a name that is in it, its lines are made printable here."""
    if output == "table":
        text = "\n".join(map(printable, table(found)))
    else:
        text = json.dumps(encodable_all(found), indent=2 if output == "json" else None)
    print(text, flush=True)  # noqa: T201


def _columns(rows: list[list[str]]) -> list[str]:
    shown = [list(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    ]


def _status_table(found: Json) -> list[str]:
    link = "connected" if found["connected"] else "NOT CONNECTED"
    head = [f"host {found['host_id']}  serial {found['serial']}  {link}  datapath {found['datapath']}"]
    if found["panicked"]:
        head.append("PANIC: nothing is enforced; aegisflux agent resume ends it")
    rows = [["SERVICE", "NAME", "STATE", "VERSION", "DIGEST", "LEASE ENDS IN", "CGROUPS"]]
    for service in found["services"]:
        left = "-" if service["deadline"] is None else f"{max(0, service['deadline'] - int(time.time()))} s"
        digest = (service["digest"] or "-").removeprefix("sha256:")[:12]
        cgroups = ",".join(service["cgroups"]) or "-"
        version = str(service["version"] or "-")
        cells = [
            str(service["service_id"]),
            service["name"],
            service["state"],
            version,
            digest,
            left,
            cgroups,
        ]
        rows.append(cells)
    failures = [f"trouble: {text}" for text in found.get("troubles", ())]
    failures += [f"service {i}: {text}" for i, text in found["failures"].items()]
    failures += [f"not in force: {text}" for text in found.get("failsafe_refused", ())]
    failures += found.get("failsafe_absent", ())
    skipped = _skipped_lines(found)
    return [*head, *_columns(rows), *failures, *skipped, *_telemetry_lines(found.get("telemetry"))]


def _skipped_lines(found: Json) -> list[str]:
    """What services wanted and did not get, and cgroups that no selector can name."""
    loss = found.get("loss", {})
    lines = [
        f"service {s['service_id']}: {text}" for s in found["services"] for text in s.get("conflicts", ())
    ]
    lines += [
        f"{more} more {what} are not listed: there are too many for one message"
        for what in ("cgroups", "conflicts")
        if (more := loss.get(f"{what}.cut"))
    ]
    if paths := found.get("skipped_cgroups"):
        count = loss.get("skipped_cgroups", len(paths))
        lines.append(
            f"{count} cgroups have names that are no text and belong to no service: {', '.join(paths)}"
        )
    return lines


def _telemetry_lines(found: Json | None) -> list[str]:
    from aegisflux.agent.doctor import telemetry_text

    return [] if found is None else [f"telemetry: {telemetry_text(found)}"]


def _why_lines(found: Json) -> list[str]:
    rule = f" by {found['rule']}" if found.get("rule") else ""
    digest = f"  ({found['digest'][:19]})" if found.get("digest") else ""
    lines = [f"{found['flow']}: {found['verdict']} ({found['reason']}{rule}){digest}"]
    others = found.get("otherwise", ())
    if others:
        lines.append(f"this holds for the cgroups {', '.join(found['cgroups'])}")
    for one in others:
        rule = f" by {one['rule']}" if one["rule"] else ""
        lines.append(f"cgroup {one['cgroup']}: {one['verdict']} ({one['reason']}{rule})")
    return [*lines, *found.get("void", ())]


def _denied_lines(found: Json) -> list[str]:
    glyph = "x" if found["verdict"] == "blocked" else "o"
    arrow = "->" if found["direction"] == "egress" else "<-"
    port = "" if found["peer_port"] is None else f":{found['peer_port']}"
    rule = f" {found['rule']}" if found["rule"] else ""
    flow = f"{found['proto']} {arrow} {found['peer']}{port}"
    at, service = f"{found['boot_seconds']:.3f}", f"service {found['service_id']}"
    return [f"{at} {glyph} {found['verdict']:<11} {service} {flow}  {found['reason']}{rule}"]


def _doctor_table(found: Json) -> list[str]:
    rows = [["ABOUT", "CHECK", "RESULT", "DETAIL"]]
    for check in found["checks"]:
        word = "ok" if check["ok"] else "FAILED" if check["required"] else "missing"
        rows.append([check["about"], check["name"], word, check["detail"]])
    return [*_columns(rows), *([f"next: {found['next']}"] if found["next"] else [])]
