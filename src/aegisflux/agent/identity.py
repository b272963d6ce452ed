"""Who this host is: its key, made here and never sent, and what enrolment gave in return."""

from typing import Final

import msgspec
from msgspec import Struct
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from aegisflux.agent.parts import Store
from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import BROKEN, NotFound, Unavailable
from aegisflux.domain.manifest import KeySet
from aegisflux.domain.trust import Trusted, accept_keys
from aegisflux.wire import envelope
from aegisflux.wire.envelope import Sign

KEY: Final = "key"
IDENTITY: Final = "identity"
KEY_SET_BYTES: Final = 65_536


class Identity(Struct, frozen=True):
    """What enrolment gave; `keys` is the encoded envelope of the first key set, `url` where it was."""

    host_id: str
    user_jwt: str
    nats_urls: tuple[str, ...]
    ca_pem: str
    root: bytes
    keys: bytes
    url: str = ""


def obtain_seed(store: Store) -> bytes:
    """The seed of the host's key; made, and durable, before anybody hears of it."""
    seed = store.read(KEY)
    if seed is None:
        seed = bytes(SigningKey.generate())
        store.write(KEY, seed)
    return seed


def read_identity(store: Store) -> tuple[Identity, bytes]:
    """Identity and seed; raises NotFound on a host that is not enrolled."""
    raw, seed = store.read(IDENTITY), store.read(KEY)
    if raw is None or seed is None:
        raise NotFound("this host is not enrolled: run aegisflux agent enroll")
    try:
        return msgspec.msgpack.decode(raw, type=Identity), seed
    except BROKEN as error:
        raise Unavailable(f"state {IDENTITY}: damaged ({in_words(error, Identity)}); enrol again") from None


def first_trust(identity: Identity) -> Trusted:
    """What to believe before any manifest came; raises Nacked when the key set is not the root's."""
    trusted = Trusted(identity.host_id, identity.root, KeySet(0, ()))
    sealed = envelope.decode_envelope(identity.keys, KEY_SET_BYTES)
    return accept_keys(trusted, envelope.opened(sealed, envelope.KEY_SET), verify)


def signer(seed: bytes) -> Sign:
    """Signs with the host's key."""
    key = SigningKey(seed)
    return lambda data: key.sign(data).signature


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Ed25519; False also on a key or a signature of the wrong length."""
    try:
        VerifyKey(public).verify(message, signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True
