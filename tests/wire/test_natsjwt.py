"""nkeys and JWTs: the forms of NATS's own library."""

import nkeys
import pytest
from nacl.signing import SigningKey

from aegisflux.domain.errors import Invalid
from aegisflux.wire import natsjwt

SEED = bytes(range(32))
PUBLIC = bytes(SigningKey(SEED).verify_key)


@pytest.mark.parametrize(("kind", "prefix"), [("operator", b"O"), ("account", b"A"), ("user", b"U")])
def test_keys_have_the_form_of_the_library(kind, prefix):
    pair = nkeys.from_seed(bytearray(natsjwt.seed_nkey(kind, SEED).encode()))
    assert pair.public_key.decode() == natsjwt.public_nkey(kind, PUBLIC)
    assert pair.public_key.startswith(prefix)
    assert natsjwt.raw_seed(natsjwt.seed_nkey(kind, SEED)) == SEED


@pytest.mark.parametrize("text", ["", "S", "!!", natsjwt.public_nkey("account", PUBLIC), "SUAAAA"])
def test_other_text_is_no_seed(text):
    with pytest.raises(Invalid):
        natsjwt.raw_seed(text)


def test_a_changed_letter_is_noticed():
    seed = natsjwt.seed_nkey("user", SEED)
    with pytest.raises(Invalid):
        natsjwt.raw_seed(seed[:10] + ("A" if seed[10] != "A" else "B") + seed[11:])


def test_credentials_are_read_back_and_named():
    jwt = natsjwt.user_jwt("U", name="web1", account="A", issuer="A", now=5, sign=lambda _: bytes(64))
    kept = natsjwt.Credentials(jwt, SEED)
    assert natsjwt.Credentials.parse(kept.text) == kept
    assert kept.name == "web1"
    assert natsjwt.claims(jwt)["iat"] == 5
    with pytest.raises(Invalid):
        natsjwt.Credentials.parse("nothing")


def test_the_same_claims_give_the_same_bytes():
    made = [
        natsjwt.account_jwt("A", name="x", issuer="O", now=1, sign=lambda data: data[:4]) for _ in range(2)
    ]
    assert made[0] == made[1]
