"""From what the fleet did to what it may do: learned, planned, tried on recorded flows, carried out in
stages, and taken back by itself where it would hurt.
"""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from demo import product
from demo.account import Failed
from demo.scene import DROP, PAGES, SERVICES, SQL, STATS, Scene
from demo.talking import REFUSED, WORKS

GATE = ("least_seconds=0", "least_flows=5", "fine=0.01", "bad=0.9", "silent_seconds=20")
PROMOTED_SECONDS, TAKEN_BACK_SECONDS = 40.0, 25.0
WIDE, LINES = 108, 12


def learned(scene: Scene) -> None:
    """Everything is withdrawn; what was seen all along becomes a policy, and that is rolled out."""
    with scene.account.step("Withdraw all of it, and learn from what the hosts did"):
        _withdraw(scene)
        if scene.fleet.datapath == "simulated":
            scene.account.note("a simulation has no packets: there is nothing to learn from")
            return
        _propose(scene)
    number = _plan(scene)
    _carry_out(scene, number)
    _harm(scene)


def _withdraw(scene: Scene) -> None:
    for service in SERVICES:
        answer = scene.api.call("DELETE", f"/seg/maps/{service}")
        scene.account.expect(f"service {service} is withdrawn", answer.status == 200, answer.status)
    sent = time.monotonic()
    scene.becomes(WORKS, "intruder", "db", "tcp", SQL, sent, "the intruder reaches the database again")


def _propose(scene: Scene) -> None:
    began = time.monotonic()
    found = scene.wait("there is a proposal", 20, lambda: _proposal(scene))
    took = (time.monotonic() - began) * 1000
    rules = {way for way in _learned(found) if way[0] in SERVICES.values()}
    wanted = {("web", "db", SQL), ("batch", "db", SQL), ("web", "batch", STATS)}
    scene.account.expect("who must talk to whom was learned", rules == wanted, _shown_rules(rules), took)
    _shown(scene, "segment", "show", str(found["id"]))
    text = _types(scene, "segment", "export", str(found["id"])).stdout
    _policy(scene).write_text(text)


def _proposal(scene: Scene) -> Any:
    """The newest, once it knows all three ways; the segmenter has just been started again."""
    words = ("--since", "10m", "--period", "10s", "--suspicious", "intruder")
    done = _types(scene, "segment", "propose", *words, "-o", "json")
    if done.returncode:
        return None
    found = json.loads(done.stdout)
    return found if len(_learned(found)) >= len(SERVICES) else None


def _learned(found: Any) -> set[tuple[str, str, int]]:
    """Who may call whom; beside our services also the agents, which call the bus."""
    rules = found["proposal"]["rules"]
    return {(rule["client"], rule["server"], rule["port"]) for rule in rules if not rule["held"]}


def _plan(scene: Scene) -> int:
    account = scene.account
    with account.step("Plan it, and try it on what was recorded: nobody is touched"):
        kept = _planned(scene)
        blocked = {line["client"] for line in kept["plan"]["replay"]["lines"]} | {
            line["server"] for line in kept["plan"]["replay"]["lines"]
        }
        cut = {name for name in blocked if name.startswith("host:")} or blocked
        account.expect("it would have cut the intruder, and nobody else", cut == {"host:intruder"}, cut)
        _shown(scene, "segment", "simulate", str(kept["id"]))
        account.note(f"needs a second person: {', '.join(kept['plan']['approval'])}")
        refused = _types(scene, "rollout", "begin", str(kept["id"]))
        account.expect("without one it does not begin", refused.returncode == 3, _last(refused))
        _approve(scene, kept, "--accept-blocked")
        return int(kept["id"])


def _carry_out(scene: Scene, plan: int) -> None:
    account = scene.account
    with account.step("The rollout: beside, then a canary, then all, by evidence alone"):
        began = time.monotonic()
        done = _types(scene, "rollout", "begin", str(plan), "-w", "-o", "table")
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        for line in lines[-LINES:]:
            account.note(line[:WIDE])
        took = (time.monotonic() - began) * 1000
        account.expect("it promoted itself", done.returncode == 0, _last(done), took)
        sent = time.monotonic()
        scene.becomes(REFUSED, "intruder", "db", "tcp", SQL, sent, "the intruder is contained: no database")
        scene.refused("intruder", "web-1", "tcp", PAGES, "nor the pages")
        scene.refused("web-2", "intruder", "tcp", DROP, "and nothing leaks to it")
        scene.works("web-1", "db", "tcp", SQL)
        scene.works("batch", "db", "tcp", SQL)
        scene.works("web-2", "batch", "udp", STATS)


def _harm(scene: Scene) -> None:
    account, policy = scene.account, _policy(scene)
    with account.step("A harmful change: caught by simulation; pushed by force, taken back by itself"):
        text = policy.read_text()
        policy.write_text(text.replace("from: batch\n    to: db", "from: web\n    to: db"))
        kept = _planned(scene)
        lines = [line for line in kept["plan"]["replay"]["lines"] if line["rule"] == f"batch -> db tcp/{SQL}"]
        account.expect(
            "segment simulate: it would cut batch from the database",
            bool(lines) and _types(scene, "segment", "simulate", str(kept["id"])).returncode == 1,
            f"{lines[0]['records']} records by {', '.join(lines[0]['programs'])}" if lines else "not told",
        )
        _approve(scene, kept)
        number = _pushed(scene, kept["id"])
        began = time.monotonic()
        run = scene.wait("it was taken back", TAKEN_BACK_SECONDS, lambda: _ended(scene, number))
        reason = run["reason"] if run else "it was not"
        took = (time.monotonic() - began) * 1000
        account.expect("it took itself back", bool(run), f"{run['stage']}: {reason}"[:WIDE], took)
        _shown(scene, "rollout", "get", str(number))
        sent = time.monotonic()
        scene.becomes(WORKS, "batch", "db", "tcp", SQL, sent, "batch reaches the database")
        scene.refused("intruder", "db", "tcp", SQL, "the intruder still does not")


def _pushed(scene: Scene, plan: int) -> int:
    """By its API, since a second later the observing would have ended it: it sees the flows as well."""
    begun, _ = scene.post("rollout begin", "/api/v1/rollouts", {"plan": plan})
    number = int(begun.body["rollout"]["id"])
    seen = {"stage": "observe", "why": "it is urgent"}
    path = f"/api/v1/rollouts/{number}/promote"
    scene.post("rollout promote: by force, without waiting", path, seen)
    return number


def _ended(scene: Scene, number: int) -> Any:
    run = scene.api.get(f"/api/v1/rollouts/{number}").body["rollout"]["run"]
    return run if run["stage"] in ("rolled_back", "aborted") else None


def _planned(scene: Scene) -> Any:
    gates = [word for gate in GATE for word in ("--gate", gate)]
    return _says(scene, "segment", "plan", "--policy", str(_policy(scene)), "--since", "10m", *gates)


def _approve(scene: Scene, kept: Any, *words: str) -> None:
    """By somebody else: whoever made it may not."""
    said = ("segment", "approve", str(kept["id"]), "--digest", kept["digest"], *words)
    done = product.typed(scene.fleet.desk, scene.data, _second(scene), scene.port_base, *said)
    scene.account.expect("a second person approves it, by its digest", done.returncode == 0, _last(done))


def _second(scene: Scene) -> str:
    """The token of a second person, made once."""
    if not scene.second:
        answer = scene.api.post("/api/v1/tokens", {"name": "second", "role": "approver"})
        scene.second = str(answer.body["token"])
    return scene.second


def _policy(scene: Scene) -> Path:
    return scene.fleet.folder / "policy.yaml"


def _types(scene: Scene, *words: str) -> "subprocess.CompletedProcess[str]":
    return product.typed(scene.fleet.desk, scene.data, scene.api.token, scene.port_base, *words)


def _says(scene: Scene, *words: str) -> Any:
    done = _types(scene, *words, "-o", "json")
    if not done.stdout:
        raise Failed(f"aegisflux {' '.join(words)}: {_last(done)}")
    return json.loads(done.stdout)


def _shown(scene: Scene, *words: str) -> None:
    """The command and what it prints, as somebody at a terminal sees it."""
    scene.account.note("$ aegisflux " + " ".join(words))
    done = _types(scene, *words)
    for line in (done.stdout or done.stderr).splitlines()[:LINES]:
        scene.account.note(line[:WIDE])


def _shown_rules(rules: set[tuple[str, str, int]]) -> str:
    return ", ".join(f"{client} -> {server} {port}" for client, server, port in sorted(rules))


def _last(done: "subprocess.CompletedProcess[str]") -> str:
    said = (done.stdout + "\n" + done.stderr).strip().splitlines() or ["no word"]
    return said[-1][:WIDE]
