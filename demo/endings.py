"""The second half of the story: what is refused, how things are undone, and life without a control plane."""

import signal
import time
from typing import Any

import msgspec

from aegisflux.wire import envelope
from demo import product
from demo.scene import DB, DROP, PAGES, SQL, STATS, WEB, Scene, edge, snapshot
from demo.story import in_state, web_rules
from demo.talking import REFUSED, WORKS, Talking


def refusals(scene: Scene) -> None:
    """What the API does not take; nothing of it reaches a host."""
    account = scene.account
    with account.step("Bad snapshots are refused, and say why"):
        edges = [
            edge(scene.address("db"), "tcp", SQL),
            {"dst_cidr": "10.0.0.300/8", "proto": "tcp", "port": 443},
        ]
        _refused(scene, "a bad CIDR", snapshot(WEB, 2, edges=edges), (400, 422), "edges[1].dst_cidr")
        _refused(scene, "an unknown field", snapshot(WEB, 2, egdes=[]), (400, 422), "egdes")
        _refused(scene, "an old version with other content", snapshot(WEB, 1, edges=[]), (409,), "version")
        _refused(
            scene, "a host that is not enrolled", snapshot(WEB, 2), (400, 404, 409, 422), "nowhere", "nowhere"
        )
        answer = scene.api.call("POST", "/seg/maps", snapshot(WEB, 2), token="wrong")
        account.expect("a wrong token", answer.status == 401, f"{answer.status} {answer.detail}")
        scene.refused("web-1", "intruder", "tcp", DROP, "nothing changed")
        scene.works("web-1", "db", "tcp", SQL)


def _refused(
    scene: Scene, what: str, body: object, statuses: tuple[int, ...], word: str, target: str = ""
) -> None:
    path = "/seg/maps" + (f"?target_host={target}" if target else "")
    answer = scene.api.post(path, body)
    good = answer.status in statuses and word in f"{answer.detail} {answer.body}"
    scene.account.expect(what, good, f"{answer.status} {answer.detail}")


def forgeries(scene: Scene) -> None:
    """Somebody who owns the bus, but none of the keys that sign."""
    account = scene.account
    with account.step("An attacker on the bus: a tampered and a replayed manifest for web-1"):
        now = scene.capture("web-1")
        scene.forge("web-1", tampered(now))
        _dropped(scene, "web-1", "a manifest with one changed byte")
        scene.forge("web-1", scene.captured[0])
        _nacked(scene, "web-1", "stale_serial", "the manifest from before the promotion, again")
        scene.refused("web-1", "intruder", "tcp", DROP, "the last good snapshot holds")
        scene.works("web-1", "db", "tcp", SQL)


def tampered(payload: bytes) -> bytes:
    """The same message with one byte of the signed manifest changed."""
    message = envelope.decode_manifest_message(payload, 1 << 22)
    body = bytearray(message.manifest.payload)
    body[len(body) // 2] ^= 1
    sealed = msgspec.structs.replace(message.manifest, payload=bytes(body))
    return envelope.encode(msgspec.structs.replace(message, manifest=sealed))


def _dropped(scene: Scene, host: str, what: str) -> None:
    """What nobody signed for the host is dropped and counted: anybody could order a signed answer."""
    began = time.monotonic()

    def told() -> str:
        body = scene.api.get(f"/api/v1/hosts/{host}").body
        found = body.get("troubles", []) if isinstance(body, dict) else []
        return next((text for text in found if text.startswith("messages are dropped")), "")

    said = scene.wait(f"{host} tells of it", 15, told)
    took = (time.monotonic() - began) * 1000
    scene.account.expect(
        f"{what}: it is dropped, and {host} tells of it", bool(said), said or "nothing", took
    )


def _nacked(scene: Scene, host: str, reason: str, what: str) -> None:
    began = time.monotonic()
    found = scene.wait(f"{host} answers {reason}", 6, lambda: _last_nack(scene, host, reason))
    took = (time.monotonic() - began) * 1000
    scene.account.expect(
        f"{what}: a signed Nack reaches the control plane", bool(found), found or "none", took
    )


def _last_nack(scene: Scene, host: str, reason: str) -> str:
    """The Nack as the control plane tells it: for the service, or for the host."""
    for path in (f"/seg/maps/{WEB}/status", f"/api/v1/hosts/{host}"):
        answer = scene.api.get(path)
        for found in _nacks(answer.body, host if path.startswith("/seg") else ""):
            if found.get("reason") == reason:
                return f"{reason}: {found.get('detail', '')}"
    return ""


def _nacks(body: Any, host: str) -> list[dict[str, Any]]:
    """Every `last_nack` below a JSON value, of one host where its rows name hosts."""
    if isinstance(body, list):
        return [found for entry in body for found in _nacks(entry, host)]
    if not isinstance(body, dict) or (host and body.get("host_id", host) != host):
        return []
    mine = [body["last_nack"]] if isinstance(body.get("last_nack"), dict) else []
    return mine + [found for value in body.values() for found in _nacks(value, host)]


def roll_back(scene: Scene) -> None:
    """A mistake is promoted, seen, and taken back."""
    account = scene.account
    with account.step("A mistake, and the way back"):
        mistake = web_rules(scene, edge(scene.address("intruder"), "any", DROP))
        scene.post("web version 2 allows the intruder", "/seg/maps", snapshot(WEB, 2, **mistake))
        _, sent = scene.post("promoted", "/seg/maps/promote", {"service_id": WEB})
        for host in ("web-1", "web-2"):
            scene.becomes(WORKS, host, "intruder", "tcp", DROP, sent, f"{host} reaches the intruder again")
        answer, sent = scene.post("POST /seg/maps/rollback", "/seg/maps/rollback", {"service_id": WEB})
        for host in ("web-1", "web-2"):
            scene.becomes(REFUSED, host, "intruder", "tcp", DROP, sent, f"{host} no longer does")
        account.note(f"the content of version 1 is now version {answer.body.get('version', '?')}")
        scene.works("web-1", "db", "tcp", SQL)


def without_control(scene: Scene) -> None:
    """kill -9 of everything in the hub: hosts go on, until the lease ends in the kernel."""
    account, fleet = scene.account, scene.fleet
    with account.step("The control plane is killed (kill -9, every process)"):
        count = fleet.kill_control()
        killed = time.monotonic()
        account.note(f"{count} processes are gone")
        deadline = _deadline(scene)
        left = deadline - time.monotonic()
        account.expect(
            "the lease of web is short", left <= product.LEASE_SECONDS + 0.5, f"{left:.1f} s are left"
        )
        scene.works("web-1", "db", "tcp", SQL, "hosts go on")
        scene.refused("web-1", "intruder", "tcp", DROP, "and go on refusing")
        scene.refused("intruder", "db", "tcp", SQL, "and go on refusing")
        _lease_ends(scene, killed, deadline)


def _deadline(scene: Scene) -> float:
    """When the lease of web ends on web-1, on CLOCK_MONOTONIC, to the second."""
    found = scene.fleet.machines["web-1"].ask("status") or {}
    ends = next((s["deadline"] for s in found.get("services", []) if s["service_id"] == WEB), 0)
    return float(ends) - time.time() + time.monotonic()


def _lease_ends(scene: Scene, killed: float, deadline: float) -> None:
    account, web = scene.account, scene.programs["web-1"]
    if scene.fleet.datapath == "bpf":
        scene.fleet.stop_agent("web-1", signal.SIGSTOP)
        account.note("the agent on web-1 is stopped (SIGSTOP): the kernel has to end the lease alone")
    found = web.until(REFUSED, "tcp", scene.address("db"), SQL, product.LEASE_SECONDS + 4.0)
    scene.fleet.stop_agent("web-1", signal.SIGCONT)
    late = found["at"] - deadline
    account.expect(
        "web ends closed: nothing but the failsafe",
        found["word"] in REFUSED and -1.6 < late < 1.6,
        f"{found['word']} {found['at'] - killed:.1f} s after the kill, {late:+.1f} s from the deadline",
    )
    scene.explained("web-1", "db", "tcp", SQL, "expired_closed")
    opened = scene.programs["intruder"].until(
        WORKS, "tcp", scene.address("db"), SQL, product.LEASE_SECONDS + 4.0
    )
    account.expect(
        "db ends open: no enforcement",
        opened["word"] in WORKS,
        f"the intruder {opened['word']} {opened['at'] - killed:.1f} s after the kill",
    )
    scene.explained("db", "intruder", "tcp", SQL, "expired_open", ingress=True)


def panic(scene: Scene) -> None:
    """Locked out, no control plane: the way out is on the host."""
    account, machine = scene.account, scene.fleet.machines["web-1"]
    with account.step("Panic on web-1, without any network"):
        scene.refused("web-1", "db", "tcp", SQL, "locked out")
        sent = time.monotonic()
        done = product.agent(machine, "panic", "--why", "demo")
        account.expect("aegisflux agent panic", done.returncode == 0, done.stderr.strip())
        scene.becomes(WORKS, "web-1", "db", "tcp", SQL, sent, "web-1 reaches the database")
        scene.refused("web-2", "db", "tcp", SQL, "panic is of one host")


def comes_back(scene: Scene) -> None:
    """The control plane finds its truth, the hosts converge, panic lasts until it is resumed."""
    account, machine = scene.account, scene.fleet.machines["web-1"]
    with account.step("All hosts converge again"):
        began = time.monotonic()
        found = scene.programs["web-2"].until(WORKS, "tcp", scene.address("db"), SQL, 12.0)
        account.expect(
            "web-2 reaches the database", found["word"] in WORKS, found["word"], (found["at"] - began) * 1000
        )
        scene.becomes(REFUSED, "intruder", "db", "tcp", SQL, began, "the intruder does not")
        scene.works("web-1", "intruder", "tcp", DROP, "panic lasts")
        sent = time.monotonic()
        done = product.agent(machine, "resume")
        account.expect("aegisflux agent resume", done.returncode == 0, done.stderr.strip())
        scene.becomes(REFUSED, "web-1", "intruder", "tcp", DROP, sent, "web-1 is enforced again")
        scene.becomes(WORKS, "web-1", "db", "tcp", SQL, sent, "web-1 has its renewed lease")
        scene.refused("web-1", "intruder", "tcp", DROP, "and by that, no more")
        scene.works("web-2", "batch", "udp", STATS)
        scene.works("intruder", "web-1", "tcp", PAGES, "web has no ingress list")
        state = scene.wait("db is in force", 5, lambda: in_state(scene, "db", DB, 2, "in_force"))
        account.expect("the agent on db says in_force", bool(state), "version 2")


def traffic(scene: Scene) -> None:
    """What the background programs saw, and the end."""
    account = scene.account
    with account.step("What the traffic saw all along"):
        for program in scene.programs.values():
            if isinstance(program, Talking):
                for name, counts in program.ask(do="counts").items():
                    account.note(
                        f"{name:16s} " + ", ".join(f"{n} {word}" for word, n in sorted(counts.items()))
                    )
        scene.fleet.close()
        left = scene.fleet.leftovers()
        account.expect(
            "nothing is left behind", not left, ", ".join(left) or "no process, namespace, cgroup or pin"
        )
