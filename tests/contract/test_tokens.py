"""Who writes the store is not admin: what SQL can do to tokens, and to the log that they are believed by, on
a real PostgreSQL. Each try is refused by the service that runs and by one that starts later, and reported."""

from types import SimpleNamespace

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.adapters.secrets.file import FileSecrets
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.domain import audit, rights
from aegisflux.domain.audit import Entry
from aegisflux.domain.errors import Conflict, Invalid, Unavailable
from aegisflux.domain.roles import Principal
from aegisflux.runtime.access import REMEMBER_SECONDS, Bearers, Who, hashed
from aegisflux.runtime.register import AUDIT, MARK, Register
from aegisflux.runtime.supervise import Process
from aegisflux.services.orchestrator.acceptance import Acceptance
from aegisflux.services.orchestrator.access import Access

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
ADMIN = Who(Principal("admin", "admin", id="first"), "test", "req")
EVERYTHING = "tokens, audit, audit_head"


class Clock:
    at = 1_000_000.0

    def now(self):
        return self.at


class Lab:
    """The store, its owner's connection, and what a control plane has of tokens."""

    def __init__(self, engine, folder, owner):
        self.engine, self.owner, self.clock = engine, owner, Clock()
        self.secrets = FileSecrets(folder)
        self.key = self.secrets.obtain(AUDIT, lambda: b"k" * 32)
        self.store = PostgresStore(engine.dsn_of("orchestrator"), self.key, owner=engine.dsn)

    def access(self):
        """As the orchestrator has it after a start."""
        core = SimpleNamespace(
            store=self.store, clock=self.clock, keys=SimpleNamespace(secrets=self.secrets),
            now=lambda: int(self.clock.now()),
            register=Register(self.store, self.secrets, keeps=True),
        )  # fmt: skip
        return Access(core)

    async def started(self):
        """As a service has it that starts now and only reads, with its own rights."""
        store = PostgresStore(self.engine.dsn_of("ingest"), self.key, owner=None)
        await store.open()
        return store, Bearers(store, self.clock, Register(store, self.secrets))

    async def believed(self, text):
        """By a service that starts now."""
        store, bearers = await self.started()
        try:
            return await bearers.principal(text)
        finally:
            await store.close()

    async def saved(self, tables=EVERYTHING):
        """All rows, to be put back."""
        return {name: await self.owner.fetch(f"select * from {name}") for name in tables.split(", ")}

    async def put_back(self, saved):
        async with self.owner.transaction():
            for name, rows in saved.items():
                await self.owner.execute(f"delete from {name}")
                if rows:
                    await self.owner.copy_records_to_table(name, records=rows)

    async def emptied(self):
        """No token, no log, no mark."""
        await self.put_back(dict.fromkeys(EVERYTHING.split(", "), ()))
        head = audit.first_head(self.key)
        await self.owner.execute(
            "insert into audit_head (seq, hash, mac) values (0, $1, $2)", head.hash, head.mac
        )
        self.secrets.path(MARK).unlink(missing_ok=True)

    async def accepted(self, dry_run=False):
        """As `aegisflux audit accept` does."""
        acceptance = Acceptance(self.store, self.secrets, lambda *_: None)
        return await acceptance.accept(int(self.clock.now()), dry_run)

    def later(self):
        """Nothing is remembered any more."""
        self.clock.at += REMEMBER_SECONDS + 1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    engine = PostgresEngine(folder / "postgres", log=folder / "postgres.log")
    process = Process(engine.child(), folder / "run")
    (folder / "run").mkdir()
    await process.start()
    lab = Lab(engine, folder / "secrets", None)
    await lab.store.open()
    lab.owner = await asyncpg.connect(engine.dsn)
    try:
        yield lab
    finally:
        await lab.owner.close()
        await lab.store.close()
        await process.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(lab):
    """No token, no log, no mark."""
    await lab.emptied()
    access = lab.access()
    await access.seal()
    return lab, access


MADE = "insert into tokens (id, name, role, hash, created_at, created_by, mac) values "
# Of `$1`, a token that lives (an operator's until tomorrow), by SQL alone.
LIVING = {
    "a role that is raised": "update tokens set role = 'admin' where id = $1",
    "an end that is moved": "update tokens set expires_at = expires_at + 86400 where id = $1",
    "an end that is taken away": "update tokens set expires_at = null where id = $1",
    "another name": "update tokens set name = 'admin' where id = $1",
    "another id": "update tokens set id = 'aaaaaaaaaaaa' where id = $1",
    "another maker": "update tokens set created_by = 'eve' where id = $1",
    "made at another time": "update tokens set created_at = 1 where id = $1",
    "bound to a host": "update tokens set role = 'source', host_id = 'web-1' where id = $1",
    "no MAC": "update tokens set mac = null where id = $1",
    "another one's MAC": "update tokens t set mac = o.mac from tokens o where o.name = 'other' and t.id = $1",
    "an empty MAC": "update tokens set mac = '' where id = $1",
    "a copy under another id": "with old as (delete from tokens where id = $1 returning *) "
    "insert into tokens select 'bbbbbbbbbbbb', name, role, hash, created_at, created_by, expires_at, "
    "last_used, revoked_at, host_id, mac from old",
    "another one's row with this hash": "with old as (delete from tokens where id = $1 returning hash) "
    "update tokens t set hash = old.hash from old where t.name = 'other'",
}


@pytest.mark.parametrize("how", LIVING)
async def test_a_row_that_was_changed_is_nobodys(fresh, how):
    lab, access = fresh
    await access.issue("other", "admin", None, ADMIN)
    made = await access.issue("op", "operator", 86_400, ADMIN)
    assert (await access.principal(made.token)).role == "operator"
    assert (await lab.believed(made.token)).id == made.id
    assert (await lab.owner.execute(LIVING[how], made.id)).endswith(" 1")
    lab.later()
    assert await access.principal(made.token) is None
    assert await lab.believed(made.token) is None
    assert access.bearers.doubted
    assert "refused" in await access.bearers.said()
    assert any("refused" in view.troubles[0] for view in await access.all() if view.troubles)


async def test_a_row_that_was_made_by_sql_is_nobodys(fresh):
    lab, access = fresh
    made = await access.issue("op", "operator", None, ADMIN)
    for mac in (None, b"x" * 32, await lab.owner.fetchval("select mac from tokens where id = $1", made.id)):
        await lab.owner.execute(
            f"{MADE} ('cccccccccccc', 'admin', 'admin', $1, 1, 'system', $2) "
            "on conflict (id) do update set mac = excluded.mac", hashed("afx_eve"), mac,
        )  # fmt: skip
        lab.later()
        assert await access.principal("afx_eve") is None
        assert await lab.believed("afx_eve") is None


async def test_a_row_and_its_line_that_were_made_by_sql_are_nobodys(fresh):
    """With hashes that hold; only the MACs are missing. The change that comes next carries none of it on."""
    lab, access = fresh
    await access.issue("op", "operator", None, ADMIN)
    token = rights.Token(
        id="dddddddddddd", name="eve", role="admin", hash=hashed("afx_eve"), created_at=1,
        created_by="admin", expires_at=None, host_id=None,
    )  # fmt: skip
    head, _ = await lab.store.audit_log()
    entry = Entry("admin", "token.issue", "token/dddddddddddd", after=rights.said(token))
    line, forged = audit.following(head, b"not the key" * 3, 5, entry)
    await lab.owner.execute(f"{MADE} ($1, 'eve', 'admin', $2, 1, 'admin', $3)", token.id, token.hash,
                            rights.mac_of(b"not the key" * 3, token))  # fmt: skip
    names = ("actor", "source", "action", "object", "before", "after", "reason", "request_id")
    texts = [getattr(entry, name) for name in names]
    await lab.owner.execute(
        "insert into audit values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        line.seq,
        line.at,
        *texts,
        line.hash,
    )
    await lab.owner.execute(
        "update audit_head set seq = $1, hash = $2, mac = $3", *msgspec.structs.astuple(forged)
    )
    lab.later()
    assert await access.principal("afx_eve") is None
    assert await lab.believed("afx_eve") is None
    with pytest.raises(Unavailable, match="not written by this control plane"):
        await access.issue("carried", "viewer", None, ADMIN)


# Of `$1`, a token that was revoked; `saved` is all as it was before.
async def _unrevoked(lab, number, _saved):
    await lab.owner.execute("update tokens set revoked_at = null where id = $1", number)


async def _row_of_before(lab, _number, saved):
    await lab.put_back({"tokens": saved["tokens"]})


async def _row_of_before_under_another_id(lab, number, saved):
    await _row_of_before(lab, number, saved)
    await lab.owner.execute("update tokens set id = 'eeeeeeeeeeee' where id = $1", number)


async def _without_its_line(lab, number, saved):
    await _row_of_before(lab, number, saved)
    await lab.owner.execute(
        "delete from audit where action = 'token.revoke' and object = $1", f"token/{number}"
    )


async def _line_of_another(lab, number, saved):
    await _row_of_before(lab, number, saved)
    await lab.owner.execute("update audit set object = 'token/0' where action = 'token.revoke'")


async def _all_as_before(lab, _number, saved):
    """With the log and its head, whose MAC holds."""
    await lab.put_back(saved)


RESURRECTIONS = {
    "its end taken away": _unrevoked,
    "the row of before": _row_of_before,
    "the row of before under another id": _row_of_before_under_another_id,
    "the row of before, without the line": _without_its_line,
    "the row of before, and the line about another": _line_of_another,
    "everything as it was before": _all_as_before,
}


@pytest.mark.parametrize("how", RESURRECTIONS)
async def test_a_token_that_was_revoked_never_lives_again(fresh, how):
    lab, access = fresh
    other = await access.issue("other", "viewer", None, ADMIN)
    made = await access.issue("op", "admin", None, ADMIN)
    assert await access.principal(made.token) is not None
    saved = await lab.saved()
    await access.revoke(made.id, ADMIN, force=True)
    await RESURRECTIONS[how](lab, made.id, saved)
    lab.later()
    assert await access.principal(made.token) is None
    assert await lab.access().principal(made.token) is None
    assert await lab.believed(made.token) is None
    assert (await access.principal(other.token)).name == "other", "what was known holds on"
    assert (await lab.believed(other.token)).name == "other"


async def test_a_store_that_was_put_back_goes_on_once_it_is_accepted(fresh):
    lab, access = fresh
    kept = await access.issue("kept", "admin", None, ADMIN)
    saved = await lab.saved()
    gone = await access.issue("gone", "admin", None, ADMIN)
    await lab.put_back(saved)
    lab.later()
    assert await access.principal(kept.token) is not None
    assert "ends at line" in access.register.trouble
    later = await access.issue("later", "viewer", None, ADMIN)
    assert await access.principal(later.token) is None
    told = await lab.accepted()
    assert told.believed == (f"token/{later.id}: later, viewer",)
    lab.later()
    assert (await access.principal(later.token)).name == "later"
    assert access.register.trouble == ""
    assert await access.principal(gone.token) is None
    again = await access.issue("gone", "viewer", None, ADMIN)
    assert (await lab.believed(again.token)).name == "gone"


async def test_a_token_in_a_file_of_ours_is_known_again_and_one_that_was_revoked_is_not(fresh):
    lab, access = fresh
    await access.keep("admin", "admin", "afx_file")
    first = await access.principal("afx_file")
    await access.keep("admin", "admin", "afx_file")
    assert len(await access.all()) == 1
    await lab.owner.execute("update tokens set role = 'viewer'")
    lab.later()
    assert await access.principal("afx_file") is None
    await access.keep("admin", "admin", "afx_file")
    again = await access.principal("afx_file")
    assert (again.role, again.id != first.id) == ("admin", True)
    await access.revoke(again.id, ADMIN, force=True)
    for statement in ("update tokens set revoked_at = null", "delete from tokens"):
        await lab.owner.execute(statement)
        await access.keep("admin", "admin", "afx_file")
        lab.later()
        assert await access.principal("afx_file") is None, statement


async def _old(lab, *named):
    """Tokens as an earlier version issued them: no MAC, and a line without a digest."""
    async with lab.store.change() as db:
        for name, role in named:
            number = hashed(name).hex()[:12]
            values = (number, name, role, hashed(f"afx_{name}"), 1, "admin", None, None, None)
            await db.run("add_token", *values)
            await db.audit(Entry("admin", "token.issue", f"token/{number}", after=f"{name} {role}"))


async def test_tokens_of_before_get_their_mac_once(fresh, caplog):
    lab, _ = fresh
    await lab.emptied()
    await _old(lab, ("bob", "operator"), ("Bob", "viewer"), ("raised", "viewer"), ("ended", "admin"))
    await lab.owner.execute("update tokens set role = 'admin' where name = 'raised'")
    await lab.owner.execute(
        f"{MADE} ('ffffffffffff', 'eve', 'admin', $1, 1, 'admin', null)", hashed("afx_eve")
    )
    access = lab.access()
    await access.revoke(hashed("ended").hex()[:12], ADMIN)
    await access.seal()
    assert (await access.principal("afx_bob")).role == "operator"
    assert (await access.principal("afx_Bob")).role == "viewer", "a name that two have goes on"
    for text in ("afx_raised", "afx_eve", "afx_ended"):
        assert await access.principal(text) is None, text
    troubles = {view.name: view.troubles for view in await access.all()}
    assert "another living token has this name: revoke one of them" in troubles["bob"] + troubles["Bob"]
    assert "refused" in troubles["raised"][0]
    await lab.owner.execute("update tokens set role = 'viewer' where name = 'raised'")
    before = (await lab.store.audit_log())[0].seq
    again = lab.access()
    await again.seal()
    assert (await lab.store.audit_log())[0].seq == before, "it is done once"
    assert await again.principal("afx_raised") is None


async def test_a_name_is_one_living_tokens_and_a_name_given_again_is_another_principal(fresh):
    lab, access = fresh
    first = await access.issue("bob", "operator", None, ADMIN)
    for same in ("bob", "BOB", "\uff42ob", "bo\u2b50b"[:2] + "b"):
        with pytest.raises(Conflict, match=first.id):
            await access.issue(same, "viewer", None, ADMIN)
    was = await access.principal(first.token)
    await access.revoke(first.id, ADMIN)
    second = await access.principal((await access.issue("bob", "approver", None, ADMIN)).token)
    assert (second.name, second.key == was.key) == (was.name, False)
    assert not second.is_author(was.key, was.name)
    short = await access.issue("carol", "viewer", 60, ADMIN)
    lab.clock.at += 61
    assert (await access.issue("carol", "viewer", None, ADMIN)).id != short.id


NAMES = ["", " ", "a ", " a", "a\u202eb", "a\u200bb", "a\nb", "a\x00b", "\u2800", "a\u3164", "x" * 65,
         "system", "SYSTEM", "\uff53ystem"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_is_text_that_can_be_seen_and_not_ours(fresh, name):
    with pytest.raises(Invalid, match="name"):
        await fresh[1].issue(name, "viewer", None, ADMIN)


async def test_a_check_costs_the_same_however_long_the_log_is(fresh):
    """The log is never read again: what was followed once is a file."""
    lab, access = fresh
    made = await access.issue("op", "operator", None, ADMIN)
    for number in range(30):
        async with lab.store.change() as db:
            await db.audit(Entry("x", "x", f"x/{number}"))
    await access.principal(made.token)
    asked = []
    rows = lab.store.rows

    async def counted(query, *values):
        found = await rows(query, *values)
        asked.append((query, len(found)))
        return found

    lab.store.rows = counted
    try:
        lab.later()
        await access.principal(made.token)
        assert asked == []
        async with lab.store.change() as db:
            await db.audit(Entry("x", "x", "x/last"))
        lab.later()
        await access.principal(made.token)
        assert asked == [("audit_lines", 1)]
    finally:
        del lab.store.rows


async def test_a_full_disk_keeps_nobody_out_and_the_mark_is_written_later(fresh, monkeypatch):
    lab, access = fresh

    def full(_name, _value):
        raise Unavailable("secret audit-mark: cannot be written: No space left on device")

    with monkeypatch.context() as then:
        then.setattr(lab.secrets, "write", full)
        made = await access.issue("op", "operator", None, ADMIN)
        assert (await access.principal(made.token)).name == "op"
        await access.revoke(made.id, ADMIN)
        assert await access.principal(made.token) is None
    before = lab.secrets.read(MARK)
    lab.later()
    await access.register.follow()
    assert lab.secrets.read(MARK) != before
    assert await lab.believed(made.token) is None


async def test_the_last_token_of_an_admin_is_not_revoked_by_mistake(fresh):
    """One that ended, or whose row is not believed, is no admin's."""
    lab, access = fresh
    first = await access.issue("first", "admin", None, ADMIN)
    short = await access.issue("short", "admin", 60, ADMIN)
    await access.issue("op", "approver", None, ADMIN)
    await lab.owner.execute(
        f"{MADE} ('cccccccccccc', 'eve', 'admin', $1, 1, 'system', 'x')", hashed("afx_eve")
    )
    lab.clock.at += 61
    with pytest.raises(Conflict, match="last one of an admin"):
        await access.revoke(first.id, ADMIN)
    second = await access.issue("second", "admin", None, ADMIN)
    await access.revoke(first.id, ADMIN)
    with pytest.raises(Conflict, match="last one of an admin"):
        await access.revoke(second.id, ADMIN)
    await access.revoke(short.id, ADMIN)
    await access.revoke(second.id, ADMIN, force=True)
    assert await access.principal(second.token) is None


@pytest.mark.parametrize("lives", [True, False])
async def test_our_own_token_is_replaced_and_the_one_before_ends(fresh, lives):
    lab, access = fresh
    await access.keep("admin", "admin", "afx_old")
    if not lives:
        await access.revoke((await access.principal("afx_old")).id, ADMIN, force=True)
    await lab.access().replace("admin", "admin", "afx_old", "afx_new")
    lab.later()
    assert await access.principal("afx_old") is None
    assert (await lab.believed("afx_new")).role == "admin"
    assert not any(view.troubles for view in await access.all())


def _marked(lab):
    return msgspec.json.decode(lab.secrets.read(MARK), type=rights.Mark)


async def _line(lab, action, **more):
    async with lab.store.change() as db:
        await db.audit(Entry("x", action, "host/h", **more))
    return (await lab.store.audit_log())[0].seq


AT_ONCE = {"host.release": True, "snapshot.withdraw": True, "keys.remove": True, "host.token": False}


@pytest.mark.parametrize("action", AT_ONCE)
async def test_the_mark_follows_endings_at_once_and_all_else_when_it_is_kept(fresh, action):
    lab, access = fresh
    await access.register.keep(0)
    last = await _line(lab, action)
    await access.register.follow()
    assert (_marked(lab).seq == last) is AT_ONCE[action]
    await access.register.keep(5)
    assert (_marked(lab).seq, _marked(lab).serial) == (last, 5)
    await access.register.keep(4)
    assert _marked(lab).serial == 5


async def test_a_mark_that_is_as_it_was_is_not_written(fresh, monkeypatch):
    lab, access = fresh
    await access.register.keep(1)
    written = []
    monkeypatch.setattr(lab.secrets, "write", lambda *given: written.append(given))
    for _ in range(3):
        await access.register.keep(1)
        await access.register.follow()
    assert written == []
    await access.register.keep(2)
    assert len(written) == 1


async def test_a_mark_of_an_older_version_is_made_again_from_the_whole_log(fresh):
    """It left out what is kept now; what it knew to have ended stays ended."""
    lab, access = fresh
    await _line(lab, "host.release", before="KEY")
    await access.register.keep(0)
    old = _marked(lab)
    old.rights.released.clear()
    old.rights.ended["gone"] = "00"
    old.format = 0
    lab.secrets.write(MARK, msgspec.json.encode(old))
    later = lab.access().register
    await later.follow()
    assert (later.trouble, later.rights.released_host("KEY")) == ("", "h")
    assert later.rights.ended["gone"] == "00"
    old.hash = b"x" * 32
    lab.secrets.write(MARK, msgspec.json.encode(old))
    other = lab.access().register
    await other.follow()
    assert "is not the one that was there before" in other.trouble


async def test_what_was_revoked_stays_so_when_an_older_store_is_accepted(fresh):
    lab, access = fresh
    kept = await access.issue("kept", "admin", None, ADMIN)
    ended = await access.issue("ended", "admin", None, ADMIN)
    saved = await lab.saved()
    await access.revoke(ended.id, ADMIN)
    await lab.put_back(saved)
    before = lab.secrets.read(MARK), (await lab.store.audit_log())[0]
    tried = await lab.accepted(dry_run=True)
    assert (tried.believed, tried.ended) == ((), (f"token/{ended.id}: ended, admin",))
    assert (lab.secrets.read(MARK), (await lab.store.audit_log())[0]) == before
    assert (await lab.accepted()).ended == tried.ended
    lab.later()
    assert await access.principal(ended.token) is None
    assert await lab.believed(ended.token) is None
    assert (await lab.believed(kept.token)).name == "kept"
    assert "doubted" in await access.bearers.said(), "none of them is living"
    assert (await lab.accepted(dry_run=True)).ended == ()


async def test_readyz_forgets_a_doubt_about_a_row_that_is_gone_or_believed(fresh):
    lab, access = fresh
    made = await access.issue("op", "operator", None, ADMIN)
    for undo in ("update tokens set role = 'operator' where id = $1", "delete from tokens where id = $1"):
        await lab.owner.execute("update tokens set role = 'admin' where id = $1", made.id)
        lab.later()
        assert await access.principal(made.token) is None
        assert "1 refused" in await access.bearers.said()
        await lab.owner.execute(undo, made.id)
        lab.later()
        assert await access.bearers.said() == "none is doubted"
