"""Texts that nobody should print, and an answer full of them for every command of the command line."""

KINDS = {
    "escape": "\x1b[31m", "title": "\x1b]0;owned\x07", "c1": "\x9b31m", "delete": "\x7f", "nul": "\0",
    "override": "\u202e", "isolate": "\u2066", "zero width": "\u200b\u200d", "mark": "\ufeff",
    "filler": "\u3164",
    "selector": "\ufe0f", "tag": "\U000e0041", "line": "\u2028", "paragraph": "\u2029", "next line": "\x85",
    "byte": "\udcff", "surrogate": "\ud83d", "return": "\r", "feed": "\nforged", "private": "\ue000",
}  # fmt: skip
MARKUP = "[red]x[/red] [/] [link=http://evil]y[/link]"
EVIL = "=1+" + "".join(KINDS.values()) + MARKUP
PLAIN = "grün 日本 🙂 \\x2d"
E = EVIL

FLOW = {
    "service": E, "host_id": E, "peer_service": E, "peer_host": E, "peer": E, "direction": "egress",
    "proto": 6, "port": 443, "verdict": E, "reason": E, "connections": 1, "flows": 2, "bytes": 3, "local": E,
    "bytes_out": 1, "bytes_in": 2, "path": E, "cgroup": E, "package": E, "time": E, "client": E,
    "server": E,
}  # fmt: skip
EVENTS = [
    {"kind": kind, "host_id": E, "service": E, "path": E, "time": E, "body": {"event": event}}
    for kind, event in (
        ("exec", {"args": [E], "path": E}), ("exec", {"path": E}), ("exit", {"comm": E, "signal": 9}),
        ("listen", {"address": E, "port": 1}), ("auth", {"user": E, "success": True}),
        ("verdict", {"direction": "egress", "proto": 6, "peer": E, "verdict": E, "reason": E}),
        ("file", {"action": E, "path": E}), ("log", {"message": E}),
    )
]  # fmt: skip
CHANGED = {"warnings": [E], "dry_run": True, "service_id": 1, "action": E, "version": 1, "changed_hosts": [E]}
WAY = {"actor": E, "hops": 1, "by": [E]}
RUN = {
    "stage": "canary", "at": 0, "since": 0, "paused": True, "reason": E, "canary": [[E] * 9], "waves": [],
    "gate": {"least_seconds": 1, "least_flows": 1, "denied_budget": 0},
}  # fmt: skip
DENIED_WAY = {"legitimate": True, "client": E, "server": E, "what": E, "denied": 1, "host": E}
ROLLOUT = {
    "id": 4, "plan": 1, "run": RUN | {"stage": "aborted"}, "created_at": 1, "created_by": E,
    "parts": [{"service": E, "version": 1, "replaces": None, "hosts": [E]}],
    "looked": {"in_force": 1, "hosts": 1, "flows": 1, "denied": 1, "ways": [DENIED_WAY]},
}  # fmt: skip
STEP = {"at": 0, "stage": E, "turn": 0, "who": E, "reason": E, "did": [E]}
TOLD = {"rollout": ROLLOUT, "steps": [STEP], "verbs": [E]}
TOLD["rollout"] = ROLLOUT | {"verbs": [E]}
RUNNING = TOLD | {"rollout": TOLD["rollout"] | {"run": RUN}}
MOVED = {"rollout": TOLD["rollout"], "did": [E], "dry_run": False}
BLOCKED = {
    "at": E, "direction": "ingress", "client": E, "server": E, "what": E, "records": 3, "rule": E,
    "connections": 5, "since": 2, "hosts": [E], "programs": [E], "reason": E,
}  # fmt: skip
CHANGE = {"direction": E, "what": E, "before": E, "after": E, "witness": E, "cidrs": [E]}
PART = {
    "service": E, "snapshot": {"version": 2, "mode": E}, "replaces": 1, "changes": [CHANGE],
    "more_changes": 4,
    "canary": [E], "hosts": [E], "settings": [E],
}  # fmt: skip
BROKEN = {
    "number": 1, "client": E, "server": E, "proto": "tcp", "port": 1, "expected": "allowed", "got": "blocked",
    "why": E,
}  # fmt: skip
LINT = {"kind": "too_broad", "about": E, "detail": E, "advice": E}
PLAN = {
    "services": [PART], "unchanged": [E], "broken_tests": [BROKEN], "lint": [LINT], "guardrails": [],
    "replay": {"records": 9, "judged": 8, "blocked": 3, "unplaced": 1, "lines": [BLOCKED], "cut": 0},
    "canary": [[E]], "waves": [[E]], "held": [E], "approval": [E],
}  # fmt: skip
KEPT = {
    "id": 5, "digest": E, "approved_by": E, "approved_at": 1, "accepted": [E], "stale": [E], "plan": PLAN,
    "created_at": 1, "created_by": E,
    "asked": {"since": "2026-11-20T06:30:00Z", "until": "2026-11-27T06:30:00Z", "period_seconds": 3600},
}  # fmt: skip
RULE = {
    "client": E, "server": E, "proto": 6, "port": 1, "held": "", "kind": E, "confidence": 1.0,
    "programs": [E],
    "clients": 1, "servers": 1, "days": 1, "connections": 1,
}  # fmt: skip
PROPOSAL = {
    "id": 3, "flows": 1,
    "proposal": {
        "rules": [RULE], "stability": {"halves": 1.0, "cuts": 1.0}, "review": [E], "coverage": 1.0,
        "unseen": 0.0,
        "forecast": None, "groups": [], "segmentedness": 1.0, "blast_radius": {E: 1},
        "blast_radius_before": 1,
        "left_out": {E: E}, "advice": [E],
    },
}  # fmt: skip
EXPORTED = {
    "asked": {"ttl_seconds": 86400, "mode": "enforce"},
    "proposal": {
        "groups": [], "rules": [], "coverage": 1, "unseen": 0, "review": [], "left_out": {}, "stability": {},
        "segmentedness": 0, "blast_radius": {},
    },
}  # fmt: skip
DONE = {"id": "0", "kind": E, "step": E, "share": 1.0, "error": E, "state": "done", "result": "/done"}
CHANGE = {
    "id": 7,
    "service_id": 1,
    "name": E,
    "selectors": [E],
    "created_by": E,
    "reason": E,
    "differs": [E],
    "stale": [],
    "begin": {"count": 2, "hosts": [E]},
    "cease": None,
}
SERVICE = {"id": 1, "name": E, "selectors": [E], "host_labels": {E: E}, "waits": CHANGE, E: E}
HOST = {"host_id": E, "labels": {E: E}, "agent_version": E, "services": [E], "suspicious": [E]}
EFFECT = {"action": E, "object": E, "did": [E], "dry_run": True}
ENROL = {"token": E, "host_id": None, "labels": {E: E}, "expires_at": 1, "command": E}
LETTER = {"id": 7, "time_ns": 1, "stream": E, "subject": E, "host_id": E, "size": 1, "reason": E}
WHY = {"word": E, "reason": E, "rule": E, "mode": E, "version": 1, "digest": E, "hosts": [E]}
PACKAGE = {"host_id": E, "type": E, "name": E, "version": E, "arch": E, "source": E, "added": True}
PLACES = {"services": {E: {"id": 1, "hosts": [E], "version": None}}, "hosts": {}}


def page(*items):
    """A page of a list, the last one."""
    return {"items": list(items), "next_cursor": None}


# words -> what each of its requests is answered, by turns; {file} is a policy, {json} a JSON file
COMMANDS = {
    "audit list": page({"seq": 1, "at": 1, "actor": E, "action": E, "object": E, "reason": E}),
    "dead list": page(LETTER) | {"next_cursor": 9},
    "dead replay 7": {"id": 7, "subject": E, "accepted": 1, "refused": [E], "sequence": 1},
    "dead show 7": {"letter": LETTER, "says": {E: E}, "payload": ""},
    "events": page(*EVENTS),
    "flows observe": page(FLOW),
    "flows summary": [FLOW],
    "graph blast-radius h": {"services": [E], "reaches": [WAY], "could": [WAY], "cut": True},
    "graph reach s": {
        "hosts": [E], "reached_by": [WAY], "could": [WAY], "refused": [WAY], "open": True, "cut": True
    },
    "hosts list": [HOST], "host list": [HOST],
    "hosts show h": HOST, "host show h": HOST,
    "hosts token": ENROL, "host token": ENROL,
    "hosts label h --clear": HOST, "host label h --label a=b": HOST,
    "hosts release h": EFFECT, "host release h": EFFECT,
    "hosts suspect h": EFFECT, "host suspect h": EFFECT,
    "hosts trust h": EFFECT, "host trust h": EFFECT,
    "inventory changes": [PACKAGE | {"time": E}],
    "inventory hosts": [HOST | {"last_at": E, "lost": {E: 1}}],
    "inventory list": page(PACKAGE),
    "keys list": {"version": 1, "keys": [E], "signing": E, "phase": E, "waiting_for": [E], "waits_until": 1},
    "keys rotate": {"version": 1, "phase": "none", "waiting_for": [E], "waiting": 1, E: E},
    "panic --fleet": {"services": [{"service_id": 1, "service": E, "version": 1, "hosts": [E]}],
    "aborted": [E], "failed": [{"service_id": 2, "reason": E}]},
    "policy inventory": PLACES,
    "policy validate {file} --inventory {json}": None,
    "policy test {file} --inventory {json}": None,
    "policy diff {file}": [{"services": {}, "hosts": {}}, {}],
    "policy apply {file}": [DONE, KEPT],
    "rollout list": page(TOLD["rollout"]),
    "rollout begin 1": MOVED,
    "rollout get 4": RUNNING,
    "rollout get 4 -w": TOLD,
    **{f"rollout {verb} 4": [TOLD, MOVED] for verb in ("abort", "pause", "promote", "resume", "rollback")},
    "segment approve 5 --digest d": KEPT,
    "segment diff 5": KEPT,
    "segment export 3": EXPORTED,
    "segment list": page({"id": 1, "created_at": 1, "created_by": E, "coverage": 1.0, "groups": E}),
    "segment plan --proposal 3": [DONE | {"state": "running"}, DONE, KEPT],
    "segment plans": page(KEPT | {"services": [E], "held": [E]}),
    "segment propose": [DONE, PROPOSAL],
    "segment recompute 3": DONE,
    "segment show 3": PROPOSAL,
    "segment show --plan 5": KEPT,
    "segment simulate 5": KEPT,
    "service list": [SERVICE],
    "service put x": SERVICE,
    "service put x --dry-run": SERVICE | {"tried": CHANGE},
    "service health 1 --well": EFFECT,
    "service delete 1": EFFECT,
    "service changes": [CHANGE, CHANGE | {"stale": [E]}],
    "service approve 1 7": SERVICE,
    "service approve 1 7 --dry-run": SERVICE,
    "service discard 1 7": EFFECT,
    "snapshot list": [{"service_id": 1, "name": E, "latest": 1}],
    "snapshot post {json}": {"service_id": 1, "version": 1, "digest": E, "target_hosts": [E],
    "warnings": [E]},
    "snapshot promote 1": CHANGED,
    "snapshot rollback 1": CHANGED,
    "snapshot withdraw 1": CHANGED,
    "snapshot show 1": {"service_id": 1, "name": E},
    "snapshot status 1": {"hosts": [{"host_id": E, "state": E, "last_nack": {"reason": E, "detail": E}}]},
    "snapshot why 1 tcp 10.0.0.1 1": {"desired": [WHY], "observed": [WHY], "differs": True},
    "token create n admin": {"id": E, "name": E, "role": E, "token": E},
    "token list": [{"id": 1, "name": E, "role": E, "host_id": E}],
    "token revoke t": [[{"id": "t", "name": E, "revoked_at": None}], EFFECT],
}  # fmt: skip

STATUS = {
    "host_id": E, "serial": 1, "connected": True, "datapath": E, "panicked": True, "failures": {E: E},
    "services": [{
        "service_id": 1, "name": E, "state": E, "version": 1, "digest": E, "deadline": None, "cgroups": [E],
    }],
    "telemetry": {"sources": {E: E}, "inventory": E, "lost": {E: 1}, "trouble": E},
}  # fmt: skip
DENIED = {
    "boot_seconds": 1.0, "service_id": 1, "verdict": "blocked", "direction": "egress", "proto": E, "peer": E,
    "peer_port": 1, "reason": E, "rule": E,
}  # fmt: skip
ASKED = {
    "status": STATUS, "denied": DENIED,
    "why": {"verdict": E, "reason": E, "rule": E, "digest": E, "flow": E},
}  # fmt: skip
