"""Who writes the database of a running control plane is not its admin, and `audit verify` says what they
did."""

import asyncio
import json
import re
from pathlib import Path

import asyncpg
import pytest
from tests.support.up import AEGISFLUX, running_up

from aegisflux.adapters.engines import roles
from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.runtime.access import hashed

pytestmark = pytest.mark.engines
EDGE = {"dst_cidr": "10.1.0.0/16", "proto": "tcp", "port": 443}


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    with running_up(tmp_path_factory.mktemp("rights")) as up:
        yield up


def sql(up, text, *values):
    """As whoever can write the database: its owner."""

    async def ran():
        connection = await asyncpg.connect(PostgresEngine(up.data / "postgres").dsn)
        try:
            return await connection.fetch(text, *values)
        finally:
            await connection.close()

    return asyncio.run(ran())


def issued(up, name, role, **more):
    answer = up.call("POST", "/api/v1/tokens", {"name": name, "role": role} | more)
    assert answer.status == 201, answer.body
    return answer.json


def verify(up):
    """What `aegisflux audit verify` says, without digests and lines; and its exit status."""
    done = up.run(AEGISFLUX, "audit", "verify")
    said = re.sub(r"sha256:[0-9a-f]{64}", "sha256:...", done.stdout)
    said = re.sub(r" \(line \d+\)", "", said)
    return done.returncode, said.splitlines(), re.sub(r"^\d+ lines", "N lines", done.stderr.strip())


def test_what_sql_does_to_tokens_gives_nothing_and_is_named(up):
    assert verify(up) == (0, [], "N lines, 0 problems")
    viewer, ended = issued(up, "vera", "viewer"), issued(up, "ed", "admin")
    assert up.call("DELETE", f"/api/v1/tokens/{ended['id']}").status == 200
    sql(up, "update tokens set role = 'admin' where id = $1", viewer["id"])
    sql(up, "update tokens set revoked_at = null where id = $1", ended["id"])
    columns = "(id, name, role, hash, created_at, created_by)"
    sql(
        up,
        f"insert into tokens {columns} values ('0123456789ab', 'eve', 'admin', $1, 1, 'system')",
        hashed("afx_eve"),
    )
    for text in (viewer["token"], ended["token"], "afx_eve"):
        assert up.call("GET", "/api/v1/hosts", token=text).status == 401
    ready = {line["name"]: line for line in up.call("GET", "/readyz").json["dependencies"]}
    assert ready["tokens"] == {
        "name": "tokens", "ok": True,
        "detail": "3 refused, their rows are not believed: see aegisflux audit verify",
    }  # fmt: skip
    assert "aegisflux_tokens_doubted_total 3.0" in up.call("GET", "/metrics").body.decode()
    log = (up.data / "log" / "orchestrator.log").read_text()
    told = [json.loads(line) for line in log.splitlines() if "not believed" in line]
    assert {line["token"] for line in told} == {viewer["id"], ended["id"], "0123456789ab"}
    assert not any(text in log for text in (viewer["token"], ended["token"], "afx_eve"))
    mac = "and a MAC that this control plane did not make"
    no_line = "no line of the audit log gives it"
    eve = f"token/0123456789ab: the store has eve admin sha256:..., {mac}; {no_line}"
    vera = (
        f"token/{viewer['id']}: the audit log says vera viewer sha256:...; "
        f"the store has vera admin sha256:..., {mac}"
    )
    ed = f"token/{ended['id']}: the store has ed admin sha256:...; {no_line}"
    assert verify(up) == (1, sorted([eve, vera, ed]), "N lines, 3 problems")
    sql(up, "delete from tokens where id = '0123456789ab'")
    sql(up, "update tokens set role = 'viewer' where id = $1", viewer["id"])
    sql(up, "update tokens set revoked_at = 1 where id = $1", ended["id"])
    assert verify(up)[0] == 0


def test_a_token_is_refused_by_each_service(up):
    made = issued(up, "each", "operator")
    paths = {0: "/api/v1/hosts", 2: "/api/v1/flows", 5: "/api/v1/dead", 6: "/segment/plans"}
    here = up.port
    try:
        for offset, path in paths.items():
            up.port = here + offset
            assert up.call("GET", path, token=made["token"]).status == 200, path
        sql(up, "update tokens set role = 'approver' where id = $1", made["id"])
        for offset, path in paths.items():
            up.port = here + offset
            up.until(lambda path=path: up.call("GET", path, token=made["token"]).status == 401)
    finally:
        up.port = here
        sql(up, "update tokens set role = 'operator' where id = $1", made["id"])


def test_a_name_that_is_given_again_answers_nobody_elses_requests(up):
    snapshot = {"version": 1, "service_id": 61, "ttl_seconds": 600, "edges": [EDGE]}
    first = issued(up, "carl", "operator")
    twice = up.call("POST", "/api/v1/tokens", {"name": "Carl", "role": "approver"})
    assert (twice.status, first["id"] in twice.json["detail"]) == (409, True)
    key = {"Idempotency-Key": "k1"}
    assert up.call("POST", "/seg/maps", snapshot, token=first["token"], **key).status == 200
    assert up.call("DELETE", f"/api/v1/tokens/{first['id']}").status == 200
    second = issued(up, "carl", "approver")
    other = snapshot | {"version": 2}
    answer = up.call("POST", "/seg/maps", other, token=second["token"], **key)
    assert (answer.status, answer.json.get("version")) == (200, 2), "the key was another one's"
    own = up.call("POST", "/seg/maps/promote", {"service_id": 61, "version": 2}, token=second["token"])
    assert own.status == 403
    theirs = up.call("POST", "/seg/maps/promote", {"service_id": 61, "version": 1}, token=second["token"])
    assert theirs.status in (200, 409), theirs.body
    assert theirs.status == 200 or "newer" in theirs.json["detail"] or "version 2" in theirs.json["detail"]


def test_a_log_that_was_cut_off_or_put_back_is_said_and_accepted_by_root_alone(up):
    kept = issued(up, "kept", "viewer")
    saved = {name: sql(up, f"select * from {name}") for name in ("audit_head", "tokens")}
    last = saved["audit_head"][0]["seq"]
    gone = issued(up, "gone", "admin")
    sql(up, "delete from audit where seq > $1", last)
    head = saved["audit_head"][0]
    sql(up, "update audit_head set seq = $1, hash = $2, mac = $3", head["seq"], head["hash"], head["mac"])
    status, said, _ = verify(up)
    assert status == 1
    assert f"cut-off: the audit log ends at line {last}; line {last + 1} was there before" in said
    assert (
        f"token/{gone['id']}: the store has gone admin sha256:...; no line of the audit log gives it" in said
    )
    assert up.call("GET", "/api/v1/hosts", token=kept["token"]).status == 200
    refused = up.run(AEGISFLUX, "audit", "accept")
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True), refused.stderr
    tried = up.run(AEGISFLUX, "audit", "accept", "--dry-run")
    assert (tried.returncode, f"accept the log up to line {last}" in tried.stderr) == (0, True), tried.stderr
    assert verify(up)[0] == 1, "a dry run changes nothing"
    up.until(lambda: "audit accept" in _ready(up, "audit log")["detail"])
    assert _ready(up, "audit log")["ok"] is False
    done = up.run(AEGISFLUX, "audit", "accept", "--yes")
    assert done.returncode == 0, done.stderr
    assert "numbers: key set: version 1 becomes 1001, with a new key" in done.stdout
    up.until(lambda: _ready(up, "audit log")["ok"])
    sql(up, "delete from tokens where id = $1", gone["id"])
    assert verify(up) == (0, [], "N lines, 0 problems")
    later = issued(up, "later", "viewer")
    up.until(lambda: up.call("GET", "/api/v1/hosts", token=later["token"]).status == 200)


def _ready(up, name):
    answer = up.call("GET", "/readyz")
    assert answer.status == 200, "who writes the database has no service taken for dead"
    return next(line for line in answer.json["dependencies"] if line["name"] == name)


def test_nobody_is_superuser_and_no_password_stands_in_a_process_or_a_log(up):
    users = "select distinct usename::text as name from pg_stat_activity where datname = 'aegisflux'"
    found = {row["name"] for row in sql(up, users)}
    services = {roles.PREFIX + name for name in roles.ROLES if name != roles.OWNER}
    assert found == {*services, "aegisflux_owner"}, "the owner is this test"
    assert sql(up, "select count(*) as n from pg_roles where rolsuper and rolcanlogin")[0]["n"] == 0
    words = [path.read_text() for path in (up.data / "postgres" / "passwords").iterdir()]
    assert len(words) == len(roles.ROLES)
    for child in ("postgres", "orchestrator", "ingest", "enrich", "segmenter"):
        said = Path(f"/proc/{up.pid(child)}/environ").read_text()
        said += Path(f"/proc/{up.pid(child)}/cmdline").read_text()
        said += (up.data / "log" / f"{child}.log").read_text()
        assert not any(word in said for word in words), child
