"""Agents as they really are: a process, enrolled over HTTP, on a real bus; the control plane is `Plane`."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec

from aegisflux.domain.manifest import Answer, Heartbeat
from aegisflux.wire import envelope, subjects
from aegisflux.wire import token as tokens
from aegisflux.wire.token import EnrollAnswer, EnrollRequest, EnrollToken
from support import leftovers
from support.agents import Plane, signer, verify
from support.engines import NatsLab, eventually

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "s" * 32


class EnrollServer:
    """POST /api/v1/enroll on loopback. `break_answer` lets a test answer as another control plane would."""

    def __init__(self, lab: NatsLab, plane: Plane) -> None:
        self.lab, self.plane = lab, plane
        self.public: dict[str, bytes] = {}
        self.break_answer = lambda answer: answer
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = outer.enroll(msgspec.json.decode(body, type=EnrollRequest))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def token(self, **changes) -> str:
        values = {
            "url": self.url,
            "ca_sha256": tokens.ca_sha256(self.lab.pki.ca_pem),
            "root_sha256": tokens.root_sha256(bytes(self.plane.root.verify_key)),
            "secret": SECRET,
            **changes,
        }
        return tokens.token_text(EnrollToken(**values))

    def enroll(self, request: EnrollRequest) -> tuple[int, bytes]:
        public = tokens.from_b64(request.agent_public_key, "agent_public_key", 32)
        proof = tokens.from_b64(request.proof, "proof", 64)
        if not verify(public, tokens.proof_bytes(request.token, request.host_id), proof):
            return 403, b'{"detail":"the proof does not hold"}'
        if self.public.setdefault(request.host_id, public) != public:
            return 409, b'{"detail":"the name is taken"}'
        keys = envelope.seal(
            envelope.KEY_SET, msgspec.msgpack.encode(self.plane.key_set()), "root", signer(self.plane.root)
        )
        self.lab.admit(request.host_id, public)
        answer = EnrollAnswer(
            request.host_id,
            self.lab.accounts.issue_agent(request.host_id, public, int(time.time())),
            (self.lab.engine.url,),
            self.lab.pki.ca_pem,
            tokens.b64(bytes(self.plane.root.verify_key)),
            tokens.b64(envelope.encode(keys)),
        )
        return 200, msgspec.json.encode(self.break_answer(answer))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Fleet:
    """The control plane's end of the bus: publishes manifests, serves contents, keeps answers by host."""

    def __init__(self, bus, plane: Plane) -> None:
        self.bus, self.plane = bus, plane
        self.answers: list[Answer] = []
        self.number = 0

    async def begin(self) -> "Fleet":
        await self.bus.ensure_streams()
        await self.bus.serve(subjects.ALL_CONTENT, self.plane.serve, [self.plane.host])
        await self.bus.consume("ACKS", "fleet", self._answered)
        return self

    async def _answered(self, messages) -> None:
        for message in messages:
            sealed = envelope.opened(envelope.decode_envelope(message.payload, 1 << 20), envelope.ANSWER)
            self.answers.append(msgspec.msgpack.decode(sealed.payload, type=Answer))

    async def desire(self, *services, **changes) -> None:
        await self.send(self.plane.desired(*services, **changes))

    async def send(self, data: bytes) -> None:
        self.number += 1
        host = self.plane.host
        await self.bus.publish(subjects.desired(host), data, msg_id=f"{host}:{self.number}:{time.time_ns()}")

    async def confirm(self, content, **changes) -> None:
        self.number += 1
        data = self.plane.confirm(content, **changes)
        await self.bus.publish(subjects.confirm(self.plane.host), data, msg_id=f"c:{time.time_ns()}")

    async def acked(self, version: int, seconds: float = 15) -> Answer:
        def found():
            return next((a for a in self.answers if a.version == version and hasattr(a, "deadline")), None)

        return await eventually(found, seconds)

    async def heartbeat(self) -> Heartbeat | None:
        message = await self.bus.last(subjects.heartbeat(self.plane.host))
        if message is None:
            return None
        sealed = envelope.opened(envelope.decode_envelope(message.payload, 1 << 20), envelope.HEARTBEAT)
        return msgspec.msgpack.decode(sealed.payload, type=Heartbeat)


class AgentProcess:
    """`aegisflux agent` in a process of its own, with its own state folder.

    `prelude` is Python that its next `start` runs first: another clock, a fault of the kernel.
    """

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory, self.state, self.prelude = directory, directory / "state", ""
        self.env = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY / "src"),
            "AEGISFLUX_AGENT_CONFIG": str(directory / "none.toml"),
            "AEGISFLUX_AGENT_STATE_DIR": str(self.state),
            **{f"AEGISFLUX_AGENT_{name.upper()}": value for name, value in settings.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-c", "from aegisflux.agent.cli import app; app()", *words]

    def call(self, *words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            input=stdin,
        )

    async def acall(self, *words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(lambda: self.call(*words, stdin=stdin, **env))

    async def status(self) -> dict | None:
        done = await self.acall("status", "-o", "json")
        return json.loads(done.stdout) if done.returncode in (0, 1) else None

    def start(self) -> None:
        log = (self.directory / "agent.log").open("ab")
        python, option, code, *words = self.command("run")
        argv = [python, option, f"{self.prelude}\n{code}", *words]
        self.process = subprocess.Popen(argv, env=self.env, stderr=log, stdout=log)
        log.close()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        """End it for good, and take away what it left outside of its folder."""
        self.kill()
        leftovers.remove(leftovers.below(self.state))
        instance = self.env.get("AEGISFLUX_AGENT_INSTANCE")
        if instance is not None:
            leftovers.remove([leftovers.MARKERS / instance])

    def log(self) -> str:
        return (self.directory / "agent.log").read_text()

    def rss_mb(self, name: str = "VmRSS") -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(name + ":"))

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def fleet(lab: NatsLab, plane: Plane):
    """The control plane's end, connected."""
    async with lab.control() as bus:
        yield await Fleet(bus, plane).begin()
