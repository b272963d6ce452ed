"""Keys as files, and the certificates made from them."""

import os
import ssl
import stat
import time

import pytest
from cryptography import x509

from aegisflux.adapters.bus.accounts import NatsAccounts
from aegisflux.adapters.secrets.file import FileSecrets
from aegisflux.adapters.secrets.pki import Pki
from aegisflux.domain.errors import Invalid, Unavailable
from aegisflux.wire import natsjwt
from aegisflux.wire import token as tokens

DAY = 86_400


@pytest.fixture
def secrets(tmp_path):
    return FileSecrets(tmp_path / "keys")


def test_a_secret_is_whole_and_only_ours(secrets):
    assert secrets.read("one") is None
    secrets.write("one", b"first")
    secrets.write("one", b"second")
    assert secrets.read("one") == b"second"
    assert stat.S_IMODE(secrets.path("one").stat().st_mode) == 0o600
    assert stat.S_IMODE(secrets.directory.stat().st_mode) == 0o700
    assert os.listdir(secrets.directory) == ["one"]


def test_a_secret_is_made_once(secrets):
    assert secrets.obtain("key", lambda: b"a") == b"a"
    assert secrets.obtain("key", lambda: b"b") == b"a"


def test_a_secret_that_is_removed_is_gone(secrets):
    secrets.write("one", b"x")
    secrets.write("two", b"y")
    for _ in range(2):
        secrets.remove("one")
        assert (secrets.read("one"), secrets.read("two")) == (None, b"y")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o666])
def test_a_secret_that_others_may_read_is_not_used(secrets, mode):
    secrets.write("one", b"x")
    secrets.path("one").chmod(mode)
    with pytest.raises(Unavailable, match="expected mode 0600"):
        secrets.read("one")


def test_a_folder_that_others_may_enter_is_not_used(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(Unavailable, match="expected mode 0700"):
        FileSecrets(tmp_path / "open")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "A"])
def test_a_name_leads_nowhere_else(secrets, name):
    with pytest.raises(Invalid):
        secrets.read(name)


def test_the_ca_stays_and_its_servers_are_renewed_in_time(secrets):
    now = time.time()
    pki = Pki(secrets, now)
    assert Pki(secrets, now).ca_pem == pki.ca_pem
    assert tokens.ca_sha256(pki.ca_pem) == pki.ca_sha256
    hosts = ["localhost", "127.0.0.1", "::1"]
    first = pki.server("nats", hosts, now).certificate.read_bytes()
    assert pki.server("nats", hosts, now + DAY).certificate.read_bytes() == first
    assert pki.server("nats", hosts, now + 310 * DAY).certificate.read_bytes() != first
    renewed = pki.server("nats", ["localhost"], now).certificate.read_bytes()
    assert renewed != first
    leaf, ca = x509.load_pem_x509_certificates(renewed)
    leaf.verify_directly_issued_by(ca)
    ssl.create_default_context(cadata=pki.ca_pem)


def test_each_key_has_a_file_of_its_own_and_claims_are_reproducible(secrets):
    accounts = NatsAccounts(secrets, 1000)
    accounts.viewer_creds(1000)
    accounts.control_creds(1000)
    names = {path.name for path in secrets.directory.iterdir()}
    assert {"nats-operator", "nats-account-control", "nats-hosts", "nats-account-sys"} <= names
    assert {"nats-sign-agent", "nats-sign-viewer", "nats-sign-control", "nats-sign-sys"} <= names
    again = NatsAccounts(secrets, 2000)
    assert again.account_jwts() == accounts.account_jwts()
    assert again.server_config("/x") == accounts.server_config("/x")


def test_whatever_identity_on_the_bus_ends(secrets):
    """Nobody has credentials for ever: not a host, not a viewer, not a service of ours."""
    accounts, now, day = NatsAccounts(secrets, 1000), 5000, 86_400
    host = natsjwt.claims(accounts.issue_agent("web1", bytes(range(32)), now))["exp"]
    services = accounts.control_creds(now), accounts.ingest_creds(now), accounts.system_creds(now)
    assert all(12 * day <= ends - now <= 14 * day for ends in (host, *(found.ends for found in services)))
    assert accounts.viewer_creds(now).ends == now + 7 * day
    made = {name for name in dir(NatsAccounts) if name.endswith("_creds") or name.startswith("issue_")}
    assert made == {"control_creds", "ingest_creds", "system_creds", "viewer_creds", "issue_agent"}


def test_a_revocation_is_kept_and_makes_a_newer_claim(secrets):
    accounts = NatsAccounts(secrets, 1000)
    public = bytes(range(32))
    before = natsjwt.claims(accounts.host_claim("web1", public))
    after = natsjwt.claims(accounts.revoke("web1", public, 1500))
    assert after["iat"] > before["iat"]
    assert after["nats"]["revocations"] == {"*": 1500}
    assert before["nats"]["revocations"] == {}
    assert NatsAccounts(secrets, 9).revoked("web1", public) == 1500
    assert NatsAccounts(secrets, 9).revoked("web2", public) == 0


def test_a_revocation_is_forgotten_when_all_that_it_refuses_has_ended(secrets):
    accounts, day = NatsAccounts(secrets, 1000), 86_400
    keys = [bytes([n]) * 32 for n in range(3)]
    for number, at in enumerate((0, 27 * day, 29 * day)):
        accounts.revoke("web1", keys[number], 1000 + at)
    assert [bool(accounts.revoked("web1", key)) for key in keys] == [False, True, True]
    issued = natsjwt.claims(accounts.issue_agent("web1", keys[0], 1000))
    assert issued["exp"] <= 1000 + 14 * day


def test_each_host_and_key_has_an_account_of_its_own(secrets):
    accounts = NatsAccounts(secrets, 1000)
    pairs = [(host, bytes([n]) * 32) for host in ("web1", "web2") for n in range(2)]
    claims = [natsjwt.claims(accounts.host_claim(*pair)) for pair in pairs]
    assert len({claim["sub"] for claim in claims}) == len(pairs)
    for (host, public), claim in zip(pairs, claims, strict=True):
        assert claim["sub"] == accounts.host_account(host, public) != natsjwt.public_nkey("account", public)
        assert (
            natsjwt.claims(accounts.issue_agent(host, public, 1000))["nats"]["issuer_account"] == claim["sub"]
        )
        assert all(part["subject"].endswith("." + host) for part in claim["nats"]["imports"])
        assert (claim["nats"]["limits"]["conn"], claim["nats"]["limits"]["leaf"]) == (4, 0)
    other = NatsAccounts(FileSecrets(secrets.directory.parent / "other"), 1000)
    assert other.host_account(*pairs[0]) != claims[0]["sub"], "nobody without the secret finds it"


def test_the_account_that_hosts_shared_before_lets_nobody_in(secrets):
    secrets.write("nats-account-agents", natsjwt.seed_nkey("account", bytes(32)).encode())
    made = map(natsjwt.claims, NatsAccounts(secrets, 1000).account_jwts().values())
    shared = next(claim for claim in made if claim["name"] == "AGENTS")
    assert (shared["nats"]["limits"]["conn"], shared["nats"]["imports"]) == (0, [])
    assert shared["nats"]["signing_keys"] == []


def test_a_viewer_cannot_take_the_name_of_our_services(secrets):
    accounts = NatsAccounts(secrets, 1000)
    assert accounts.viewer_creds(1000, "control").name == "viewer-control"
    assert accounts.viewer_creds(1000, "control").seed != accounts.control_creds(1000).seed
    for name in ("*", ">", "a.b", ""):
        with pytest.raises(Invalid):
            accounts.viewer_creds(1000, name)
