"""The agent's ear on its own host: a Unix socket (0600) that answers one JSON line with JSON lines."""

import asyncio
import errno
import json
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from aegisflux.agent.failsafes import absent_failsafes, cgroup_mounts, numbered
from aegisflux.agent.runner import Runner
from aegisflux.domain import json_text
from aegisflux.domain.bounds import EpochTime, Small
from aegisflux.domain.cgroup_paths import within
from aegisflux.domain.decoding import converted, in_words
from aegisflux.domain.digits import whole
from aegisflux.domain.errors import BROKEN, AegisError, Invalid, NotFound, Refused, Unavailable
from aegisflux.domain.failsafe_paths import failsafe_path, void
from aegisflux.domain.flow import Direction, Flow
from aegisflux.domain.net import PROTOCOL_NAMES, PROTOCOLS, TCP, UDP, parse_address
from aegisflux.domain.panic import Panic
from aegisflux.domain.text import encodable_all, printable
from aegisflux.domain.trust import versions_seen
from aegisflux.domain.verdict import is_listed
from aegisflux.ports.datapath import DeniedFlow, Role

SOCKET: Final = "agent.sock"
MAX_LINE: Final = 65_536
CLIENT_SECONDS: Final = 10.0
FOLLOW_SECONDS: Final = 0.25
CONNECT_SECONDS, MIN_SECONDS = 0.25, 0.05
NO_ROOM: Final = (errno.EROFS, errno.ENOSPC, errno.EDQUOT)
RUN: Final = Path("/run/aegisflux/agents")
Json = dict[str, Any]


class Question(msgspec.Struct, frozen=True):
    """One line from the command line."""

    do: str
    service: str = ""
    direction: Direction = "egress"
    proto: str = "tcp"
    peer: str = ""
    port: Annotated[int, Meta(ge=0, le=65_535)] | None = None
    role: Role = "active"
    follow: bool = False
    last: Small = 100
    why: str = ""
    at: EpochTime = 0.0
    ended: Annotated[tuple[EpochTime, ...], Meta(max_length=64)] = ()


class Control:
    """Serves the socket while the agent runs."""

    def __init__(self, runner: Runner, path: Path) -> None:
        self._runner, self._path = runner, path
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen, in /run where the state folder is read-only or full; raises Unavailable."""
        first, second = self._path, sockets_of(self._path.parent)[1]
        try:
            await self._open(first)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise Unavailable(f"{first}: {error.strerror or error}") from error
            try:
                second.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                await self._open(second)
            except OSError:
                raise Unavailable(f"{first}: {error.strerror or error}") from error
            self._path = second

    async def _open(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(path), limit=MAX_LINE)
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                line = await reader.readline()
            async for answer in self._answers(line, partial(_is_gone, writer)):
                writer.write(line_of(answer))
                await writer.drain()
        except (OSError, TimeoutError, ValueError):
            return
        finally:
            writer.close()

    async def _answers(self, line: bytes, is_gone: Callable[[], bool]) -> AsyncIterator[Json]:
        try:
            question: Question = converted(json_text.parse(line, what="a question as JSON"), Question)
            async for answer in self._answer(question, is_gone):
                yield answer
        except BROKEN as error:
            yield {"error": f"question: {in_words(error, Question)}", "kind": "refused"}
        except AegisError as error:
            yield {"error": str(error), "kind": "refused" if isinstance(error, Refused) else "unavailable"}

    async def _answer(self, question: Question, is_gone: Callable[[], bool]) -> AsyncIterator[Json]:
        match question.do:
            case "status":
                await self._runner.count()
                yield self._status()
            case "why":
                yield await self._why(question)
            case "denied":
                async for answer in self._denied(question):
                    yield answer
            case "panic":
                panic = Panic(question.at or self._runner.parts.wall(), question.why)
                unwritten = await self._runner.begin_panic(panic)
                yield {"panicked": self._runner.panic is not None, **_given(unwritten=unwritten)}
            case "resume":
                calm = self._runner.panic is None
                # nobody waits for this one any more: it says nothing of a panic that came after it
                until = question.at if question.at and is_gone() else inf
                stuck = await self._runner.end_panic(question.ended, until)
                yield {"panicked": self._runner.panic is not None, **_given(calm=calm, stuck=stuck)}
            case "reset-clock":
                believed, now = await self._runner.reset_clock()
                yield {"believed": believed, "now": now}
            case other:
                raise Invalid("do", "status, why, denied, panic, resume or reset-clock", other)

    def _status(self) -> Json:
        runner = self._runner
        found: Json = msgspec.to_builtins(runner.heartbeat())
        found["connected"] = runner.parts.bus.connected
        found["failures"] = {str(i): f"{r}: {d}" for i, (r, d) in runner.applier.failures.items()}
        manifest = runner.accepted.manifest
        services = {s.service_id: s for s in manifest.services} if manifest else {}
        ever = versions_seen(runner.accepted.trusted)
        for report in found["services"]:
            service = services.get(report["service_id"])
            report["name"] = service.name if service else ""
            if report["state"] == "pending" and (service is None or service.active is None):
                tried = service is not None and service.candidate is not None
                had = report["service_id"] in ever and not tried
                report["state"] = "withdrawn" if had else "no snapshot"  # and nothing is wanted of it
        found["failsafe_refused"] = list(runner.parts.settings.failsafe_refused)
        found["failsafe_absent"] = list(absent_failsafes(runner.parts.settings, runner.parts.cgroups.exists))
        if runner.telemetry is not None:
            found["telemetry"] = runner.telemetry.report()
        if runner.panic is not None:
            found["panic"] = {"at": runner.panic.at, "why": runner.panic.why}
        return found

    async def _why(self, question: Question) -> Json:
        runner, flow = self._runner, flow_of(question)
        if runner.panic is not None:
            return {"verdict": "allowed", "reason": "panic", "flow": flow_text(flow), "rule": None}
        service_id, cgroups = self._meant(question.service)
        holding = runner.applier.book.services.get(service_id)
        if holding is None:
            return {"verdict": "allowed", "reason": "unmanaged", "flow": flow_text(flow), "rule": None}
        asked = partial(runner.parts.blocking, runner.parts.datapath.why, holding.slot)
        about = (replace(flow, cgroup=path) for path in cgroups)
        found = [(one.cgroup, await asked(one, question.role)) for one in (about if cgroups else (flow,))]
        verdict = next((one for _, one in found if one.reason != "failsafe"), found[0][1])
        return {
            "verdict": verdict.word,
            "reason": verdict.reason,
            "rule": verdict.rule,
            "digest": verdict.digest,
            "service_id": holding.service_id,
            "flow": flow_text(flow),
            "cgroups": [path for path, one in found if one == verdict and path is not None],
            "otherwise": [
                {"cgroup": path, "verdict": one.word, "reason": one.reason, "rule": one.rule}
                for path, one in found
                if one != verdict
            ],
            **_given(void=self._void(flow, cgroups)),
        }

    def _void(self, flow: Flow, cgroups: Collection[str]) -> list[str]:
        """Failsafe rules that would cover the flow of one of these cgroups and exempt nothing, in words."""
        about = [replace(flow, cgroup=path) for path in cgroups]
        lines = numbered(self._runner.parts.settings)
        covering = ((n, rule.cgroup) for n, rule in lines if any(is_listed(rule, one) for one in about))
        return list(void(covering, self._runner.parts.cgroups.delegated))

    def _meant(self, text: str) -> tuple[int, list[str]]:
        """The service that is asked about (by number, name or cgroup; -1: a cgroup of none), and the cgroups
        for which a failsafe may answer differently."""
        runner = self._runner
        if (named := self._named(text)) is not None:
            own = runner.binder.cgroups.get(named, ())
            rules = (rule.cgroup.strip("/") for rule in runner.parts.settings.failsafe if rule.cgroup)
            inside = (path for path in rules if any(within(path, one) for one in own))
            return named, sorted({*own, *inside})
        paths = {printable(path): i for i, found in runner.binder.cgroups.items() for path in found}
        path = failsafe_path(text, cgroup_mounts(), "service") if text.strip("/") else ""
        parts = path.split("/")
        for n in range(len(parts), 0, -1):
            if (service_id := paths.get("/".join(parts[:n]))) is not None:
                return service_id, [path]
        if "/" in text:
            return -1, [path]
        raise NotFound(f"no service {text} on this host; expected its number, its name or a cgroup path")

    def _named(self, text: str) -> int | None:
        """A service by its number or its name."""
        if (number := whole(text)) is not None:
            return number
        manifest = self._runner.accepted.manifest
        named = (one.service_id for one in (manifest.services if manifest else ()) if one.name == text)
        return next(named, None)

    async def _denied(self, question: Question) -> AsyncIterator[Json]:
        ring, seen = self._runner.reporter.denied, 0
        await self._runner.tick()
        for number, flow in list(ring)[-question.last :] if question.last > 0 else []:
            seen = number
            yield denied_json(flow)
        seen = ring[-1][0] if ring and not seen else seen
        while question.follow:
            await asyncio.sleep(FOLLOW_SECONDS)
            await self._runner.tick()
            for number, flow in [item for item in ring if item[0] > seen]:
                seen = number
                yield denied_json(flow)


def flow_of(question: Question) -> Flow:
    """The initiation that is asked about; raises Invalid."""
    proto = PROTOCOLS.get(question.proto) or whole(question.proto, 255)
    if proto is None or not 0 <= proto <= 255:
        raise Invalid("proto", "tcp, udp, icmp, icmpv6, sctp, gre, esp or a number", question.proto)
    port = question.port if proto in (TCP, UDP) else None
    if proto in (TCP, UDP) and (port is None or not 0 < port < 65_536):
        raise Invalid("port", "1 to 65535", question.port)
    return Flow(question.direction, proto, parse_address(question.peer, "peer"), port)


def flow_text(flow: Flow) -> str:
    """A flow on one line."""
    name, port = PROTOCOL_NAMES.get(flow.proto, str(flow.proto)), "" if flow.port is None else f":{flow.port}"
    peer = f"[{flow.peer}]" if flow.peer.family == 6 and port else str(flow.peer)
    if flow.direction == "egress":
        return f"{name} -> {peer}{port}"
    return f"{name} {flow.peer} -> local{port}"


def line_of(answer: Json) -> bytes:
    """Return an answer as a line of JSON, whatever the names in it hold."""
    return msgspec.json.encode(encodable_all(answer)) + b"\n"


def denied_json(flow: DeniedFlow) -> Json:
    """A denied flow as the command line shows it."""
    return {
        "boot_seconds": round(flow.boot_ns / 1e9, 3),
        "service_id": flow.service_id,
        "verdict": "blocked" if flow.mode == "enforce" and flow.role == "active" else "would block",
        "role": flow.role,
        "direction": flow.direction,
        "proto": PROTOCOL_NAMES.get(flow.proto, str(flow.proto)),
        "local": None if flow.local is None else str(flow.local),
        "local_port": flow.local_port,
        "peer": str(flow.peer),
        "peer_port": flow.peer_port,
        "reason": flow.reason,
        "rule": flow.rule,
        "digest": flow.digest,
    }


class Call:
    """A question to an agent that may be stuck: it is sent at once; the answer is fetched later, or never."""

    def __init__(self, state: Path, question: Json) -> None:
        self._line: socket.socket | None = None
        for path in sockets_of(state):
            line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            line.settimeout(CONNECT_SECONDS)
            try:
                line.connect(str(path))
                line.sendall(line_of(question))
            except OSError:
                line.close()
                continue
            self._line = line
            return

    def answer(self, until: float) -> Json | None:
        """The first line of the answer, None where none came until then (monotonic clock), or a refusal."""
        if self._line is None:
            return None
        with self._line as line:
            line.settimeout(max(MIN_SECONDS, until - time.monotonic()))
            try:
                with line.makefile("rb") as answers:
                    found: Json = json.loads(answers.readline() or b"null")
            except (OSError, ValueError):
                return None
        return None if not found or "error" in found else found


def sockets_of(state: Path) -> tuple[Path, Path]:
    """Where the agent of a state folder listens: there, or in /run where the folder is read-only."""
    number = sha256(os.fsencode(state.absolute())).hexdigest()[:16]
    return state / SOCKET, RUN / f"{number}.sock"


def ask(path: Path, question: Json, timeout: float | None = CLIENT_SECONDS) -> Iterator[Json]:
    """Ask a running agent; raises Unavailable when none answers, and what it raises."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(timeout)
        try:
            _connect(line, path)
            line.sendall(line_of(question))
            with line.makefile("rb") as answers:
                for raw in answers:
                    yield _checked(json.loads(raw))
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"no agent answers at {path}: {error}") from None


def _is_gone(writer: asyncio.StreamWriter) -> bool:
    """Whether the other end was closed, which may be long before its question was read."""
    line = writer.get_extra_info("socket")
    if line is None or line.fileno() < 0:
        return True
    asked = select.poll()
    asked.register(line.fileno(), select.POLLRDHUP)
    return bool(asked.poll(0))


def _given(**fields: Any) -> Json:
    """The fields that say something."""
    return {name: value for name, value in fields.items() if value}


def _connect(line: socket.socket, path: Path) -> None:
    try:
        line.connect(str(path))
    except OSError:
        with suppress(OSError):
            return line.connect(str(sockets_of(path.parent)[1]))
        raise


def _checked(answer: Json) -> Json:
    if "error" in answer:
        raise (Refused if answer.get("kind") == "refused" else Unavailable)(answer["error"])
    return answer
