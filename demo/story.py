"""The story, from nothing to enforcement: fleet, control plane, enrolment, the first snapshots, a canary."""

import subprocess
import time
from functools import partial

from demo import product
from demo.account import Failed
from demo.scene import (
    BATCH,
    DB,
    DROP,
    HOSTS,
    PAGES,
    RUNS,
    SERVICES,
    SQL,
    STATS,
    WEB,
    Scene,
    edge,
    snapshot,
    source,
)
from demo.talking import REFUSED, Talking


def build(scene: Scene) -> None:
    """Hosts, servers and programs."""
    account, fleet = scene.account, scene.fleet
    with account.step("A fleet of five hosts"):
        fleet.open()
        scene.api.netns = fleet.netns
        machines = fleet.machines
        machines["db"].serve("db", SQL)
        machines["batch"].serve("batch", STATS)
        machines["intruder"].serve("evil", DROP)
        for web in ("web-1", "web-2"):
            machines[web].serve("web", PAGES)
        for host in HOSTS:
            scene.programs[host] = machines[host].program(RUNS.get(host, "evil"))
        account.note(", ".join(f"{host} {scene.address(host)}" for host in HOSTS))
        account.note(fleet.words)


def control_plane(scene: Scene, again: bool = False) -> None:
    """`aegisflux up`, as a user starts it, until it says that all it needs is reachable."""
    account, fleet = scene.account, scene.fleet
    title = "The control plane comes back" if again else "aegisflux up: NATS, PostgreSQL and the orchestrator"
    with account.step(title):
        began = time.monotonic()
        argv, settings = product.up(scene.data, fleet.control_address, scene.port_base)
        fleet.start_control(argv, settings)
        ready = scene.wait("the control plane is ready", 40, lambda: _ready(scene))
        account.require(
            "GET /readyz answers 200",
            bool(ready),
            "ready" if ready else fleet.tail_of_log(),
            (time.monotonic() - began) * 1000,
        )
        if not again:
            scene.api.token = product.admin_token(scene.data)
        account.note(f"API http://127.0.0.1:{scene.api.port}, data in {scene.data}")


def _ready(scene: Scene) -> bool:
    if scene.fleet.control.poll() is not None:
        raise Failed(f"aegisflux up has ended: {scene.fleet.tail_of_log()}")
    try:
        return scene.api.get("/readyz").status == 200
    except OSError:
        return False


def enrol(scene: Scene) -> None:
    """Each host gets a name, a key of its own and permission to speak as itself."""
    account, machines = scene.account, scene.fleet.machines
    with account.step("Enrolment: one token, one host, one key"):
        tokens = {host: _token(scene, RUNS.get(host, "guest")) for host in HOSTS}
        began = time.monotonic()
        for host in HOSTS:
            done = product.agent(machines[host], "enroll", "--host-id", host, stdin=tokens[host] + "\n")
            account.require(f"{host} is enrolled", done.returncode == 0, done.stderr.strip())
        account.note(f"five enrolments took {time.monotonic() - began:.1f} s")
        _twice(scene, tokens["web-1"])
        for host in HOSTS:
            machines[host].start_agent([product.AEGISFLUX, "agent", "run"])
        began = time.monotonic()
        heard = scene.wait("the control plane hears all agents", 25, partial(_heard, scene))
        account.require(
            "the control plane hears all agents (BPF programs are loaded, attached and pinned)",
            bool(heard),
            heard or [machines[host].tail_of_log() for host in HOSTS],
            (time.monotonic() - began) * 1000,
        )


def _token(scene: Scene, role: str) -> str:
    answer = scene.api.post("/api/v1/hosts/tokens", {"labels": {"role": role}})
    scene.account.require(
        f"a token for a host with the label role={role}", answer.status in (200, 201), answer.status
    )
    return str(answer.body["token"])


def _twice(scene: Scene, used: str) -> None:
    """A token is used once, and a name is taken once."""
    stranger = scene.fleet.machines["intruder"].beside("stranger")
    done = product.agent(stranger, "enroll", "--host-id", "other", stdin=used + "\n")
    scene.account.expect("a used token is refused to another key", done.returncode == 3, _last(done))
    done = product.agent(stranger, "enroll", "--host-id", "db", stdin=_token(scene, "db") + "\n")
    scene.account.expect("a second host cannot take the name db", done.returncode == 3, _last(done))


def _last(done: "subprocess.CompletedProcess[str]") -> str:
    return (done.stderr.strip().splitlines() or ["no word"])[-1].removeprefix("aegisflux agent: ")


def _heard(scene: Scene) -> str:
    """How many hosts sent a heartbeat, once all of them did."""
    hosts = scene.api.get("/api/v1/hosts").body
    heard = [f"{host['host_id']} {host['datapath']}" for host in hosts if not host["silent"]]
    return ", ".join(heard) if len(heard) == len(HOSTS) else ""


def before(scene: Scene) -> None:
    """Without a snapshot nothing is enforced."""
    account = scene.account
    with account.step("Traffic before any snapshot: everybody reaches everybody"):
        for service, name in SERVICES.items():
            body = {
                "id": service,
                "name": name,
                "selectors": [f"cgroup:**/{name}.service"],
                "host_labels": {"role": name},
            }
            scene.post(f"service {service} is {name}: the unit {name}.service", "/api/v1/services", body)
        scene.works("web-1", "db", "tcp", SQL)
        scene.works("web-1", "batch", "udp", STATS)
        scene.works("web-1", "intruder", "tcp", DROP, "a leak waiting to happen")
        scene.works("intruder", "db", "tcp", SQL, "an open database")
        _start_load(scene)


def _start_load(scene: Scene) -> None:
    """Real traffic in the background, for as long as the story lasts."""
    for host, name, proto, target, port in (
        ("web-1", "web-1 -> db", "tcp", "db", SQL),
        ("web-2", "web-2 -> db", "tcp", "db", SQL),
        ("batch", "batch -> db", "tcp", "db", SQL),
        ("web-2", "web-2 -> batch", "udp", "batch", STATS),
        ("intruder", "intruder -> db", "tcp", "db", SQL),
    ):
        program = scene.programs[host]
        if isinstance(program, Talking):
            program.ask(
                do="load", name=name, proto=proto, address=scene.address(target), port=port, every=0.05
            )


def database(scene: Scene) -> None:
    """Who may call the database: first observed, then enforced."""
    account, callers = scene.account, ("web-1", "web-2", "batch")
    ingress = [source(scene.address(host), "tcp", SQL) for host in callers]
    with account.step("The database: observe first, then enforce"):
        body = snapshot(DB, 1, ingress=ingress, mode="observe")
        _, sent = scene.post("POST /seg/maps: db version 1, mode observe", "/seg/maps", body)
        state = scene.wait("db observes", 8, lambda: in_state(scene, "db", DB, 1, "observing"))
        account.expect(
            "the kernel of db judges by it", bool(state), "observing", (time.monotonic() - sent) * 1000
        )
        scene.works("intruder", "db", "tcp", SQL, "observe blocks nothing")
        _reported(scene, "would block")
        body = snapshot(DB, 2, ingress=ingress, edges=[])
        _, sent = scene.post("POST /seg/maps: db version 2, mode enforce", "/seg/maps", body)
        scene.becomes(REFUSED, "intruder", "db", "tcp", SQL, sent, "the intruder's connections are dropped")
        scene.works("web-1", "db", "tcp", SQL)
        scene.works("batch", "db", "tcp", SQL)
        scene.explained("db", "intruder", "tcp", SQL, "no_match", ingress=True)
        scene.explained("db", "web-1", "tcp", SQL, "allow", ingress=True)
        _reported(scene, "blocked")
        scene.post("promoted: from now on its lease is renewed", "/seg/maps/promote", {"service_id": DB})


def _reported(scene: Scene, word: str) -> None:
    """Expect `aegisflux agent denied` to tell of the intruder."""
    if scene.fleet.datapath == "simulated":
        scene.account.note("no packets in a simulation: nothing for aegisflux agent denied")
        return
    machine, intruder = scene.fleet.machines["db"], scene.address("intruder")
    scene.provoke("intruder", "db", "tcp", SQL)
    found = scene.wait(
        f"db reports {word}",
        4,
        lambda: [f for f in machine.asked("denied") if f["peer"] == intruder and f["verdict"] == word],
    )
    if found:
        last = found[-1]
        seen = f"{last['proto']} from {last['peer']}: {last['verdict']}, {last['reason']}"
        scene.account.expect("aegisflux agent denied on db tells of it", True, seen)


def in_state(scene: Scene, host: str, service: int, version: int, state: str) -> bool:
    """Whether a host's own agent says this of a service."""
    found = scene.fleet.machines[host].ask("status")
    return any(
        s["service_id"] == service and s["version"] == version and s["state"] == state
        for s in (found or {}).get("services", [])
    )


def web_rules(scene: Scene, *more: dict[str, object]) -> dict[str, object]:
    """What web may do; when its lease ends, nothing."""
    edges = [edge(scene.address("db"), "tcp", SQL), edge(scene.address("batch"), "udp", STATS), *more]
    return {"edges": edges, "on_expiry": "closed", "established": "cut"}


def canary(scene: Scene) -> None:
    """A snapshot on one host first, then on all."""
    account = scene.account
    body = snapshot(WEB, 1, **web_rules(scene))
    with account.step("A canary: web version 1 on web-1 only"):
        live = scene.programs["web-1"]
        if isinstance(live, Talking):
            held = live.ask(do="hold", address=scene.address("intruder"), port=DROP)
            account.expect("a connection web-1 -> intruder is live", held["echo"], "carries data")
        answer, sent = scene.post("POST /seg/maps?target_host=web-1", "/seg/maps?target_host=web-1", body)
        scene.becomes(
            REFUSED, "web-1", "intruder", "tcp", DROP, sent, "web-1 may no longer call the intruder"
        )
        if isinstance(live, Talking):
            account.expect(
                "its live connection is cut (established: cut)", not live.ask(do="say")["echo"], "cut"
            )
        scene.refused("web-1", "intruder", "udp", DROP, "UDP as well")
        scene.works("web-1", "db", "tcp", SQL)
        scene.works("web-1", "batch", "udp", STATS)
        scene.works("web-2", "intruder", "tcp", DROP, "not in the canary")
        scene.explained("web-1", "intruder", "tcp", DROP, "no_match")
        scene.explained("web-1", "db", "tcp", SQL, "allow")
        account.note(f"digest {answer.body.get('digest', '-')[:26]}... on {answer.body.get('target_hosts')}")
    scene.capture("web-1")
    with account.step("Promotion: all hosts of the service"):
        _, sent = scene.post("POST /seg/maps/promote", "/seg/maps/promote", {"service_id": WEB})
        scene.becomes(
            REFUSED, "web-2", "intruder", "tcp", DROP, sent, "web-2 may no longer call the intruder"
        )
        scene.works("web-2", "db", "tcp", SQL)
        rules = {"edges": [edge(scene.address("db"), "tcp", SQL)]}
        body = snapshot(BATCH, 1, **rules)
        scene.post("batch gets its own: the database and nothing else", "/seg/maps", body)
        scene.post("and is promoted", "/seg/maps/promote", {"service_id": BATCH})
