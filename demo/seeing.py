"""What the hosts told meanwhile: the commands that their users type, and what these print."""

from typing import Any

from demo import product
from demo.scene import SQL, Scene

WIDE = 108


def meanwhile(scene: Scene) -> None:
    """Flows, programs, software and reach, as the command line shows them while the fleet runs."""
    account = scene.account
    with account.step("What the hosts told meanwhile: nobody wrote any of this down"):
        if scene.fleet.datapath == "simulated":
            account.note("a simulation has no packets and no programs: its hosts tell of packages only")
            _software(scene)
            return
        _flows(scene)
        _refusals(scene)
        _programs(scene)
        _software(scene)
        _reach(scene)


def _flows(scene: Scene) -> None:
    command = ("flows", "observe", "--from", "web", "--to", "db", "--verdict", "allowed", "--limit", "3")
    found = scene.wait("flows of web to db are told", 15, lambda: _rows(scene, *command, "--since", "5m"))
    scene.account.expect(
        "aegisflux flows observe: web to db, both by name",
        bool(found) and {found[0]["service"], found[0]["peer_service"]} == {"web", "db"},
        f"{found[0]['verdict']}, {found[0]['connections']} connections" if found else "none",
    )
    _shown(scene, *command)


def _refusals(scene: Scene) -> None:
    intruder = scene.address("intruder")

    def told() -> list[dict[str, Any]]:
        rows = _rows(scene, "flows", "observe", "--to", "db", "--verdict", "blocked", "--since", "5m")
        return [row for row in rows if row["peer"] == intruder and row["port"] == SQL]

    found = scene.wait("the intruder's packets are told", 15, told)
    scene.account.expect(
        "the intruder's packets at the database, with the reason",
        bool(found),
        f"{found[0]['verdict']}: {found[0]['reason']}" if found else "none",
    )
    _shown(scene, "flows", "observe", "--to", "db", "--verdict", "blocked", "--limit", "2")


def _programs(scene: Scene) -> None:
    """The job starts another program; nobody told the control plane about it."""
    scene.fleet.machines["batch"].host.run(["sh", "-c", "exec sleep 0.01"], "batch.service")
    command = ("events", "--kind", "exec", "--service", "batch", "--limit", "2")
    found = scene.wait("the batch job's program is told", 15, lambda: _rows(scene, *command))
    above = [one[2] for one in found[0]["body"]["event"]["ancestors"]] if found else []
    scene.account.expect(
        "aegisflux events: the batch job's program, and who started it",
        bool(above),
        " < ".join([found[0]["body"]["event"]["comm"], *above][:4]) if found else "none",
    )
    _shown(scene, *command)


def _software(scene: Scene) -> None:
    command = ("inventory", "list", "--host", "db", "--limit", "1000")
    found = scene.wait("the software of db is told", 25, lambda: _rows(scene, *command))
    kinds = sorted({row["type"] for row in found or []})
    claim = "aegisflux inventory list: the packages of db"
    scene.account.expect(claim, bool(found), f"{len(found or [])} at least, {', '.join(kinds)}")


def _reach(scene: Scene) -> None:
    intruder = "host:intruder"

    reached: set[str] = set()
    refused: set[str] = set()

    def told() -> bool:
        nonlocal reached, refused
        found = _said(scene, "graph", "reach", "db")
        reached = {way["actor"] for way in found.get("reached_by", ())}
        refused = {way["actor"] for way in found.get("refused", ())}
        return {"service:web", "service:batch"} <= reached and intruder in refused

    known = scene.wait("the graph knows who reaches db", 15, told)
    scene.account.expect(
        "aegisflux graph reach db: web and batch do, the intruder was refused",
        bool(known),
        f"reached by {', '.join(sorted(reached))}; refused: {', '.join(sorted(refused))}",
    )
    _shown(scene, "graph", "reach", "db")


def _said(scene: Scene, *words: str) -> Any:
    return product.viewer(scene.fleet.desk, scene.data, scene.api.token, scene.port_base, *words)


def _rows(scene: Scene, *words: str) -> list[dict[str, Any]]:
    found = _said(scene, *words)
    return found if isinstance(found, list) else []


def _shown(scene: Scene, *words: str) -> None:
    """The command and what it prints, as somebody at a terminal sees it."""
    scene.account.note("$ aegisflux " + " ".join(words))
    text = product.viewed(scene.fleet.desk, scene.data, scene.api.token, scene.port_base, *words)
    for line in text.splitlines()[:6]:
        scene.account.note(line[:WIDE])
