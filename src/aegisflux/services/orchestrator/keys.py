"""The keys that sign: the root signs the key set, a key of the set signs manifests, contents and
confirmations.
"""

import os
from collections.abc import Callable

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from aegisflux.domain.errors import Unavailable
from aegisflux.domain.manifest import KeySet, PublicKey
from aegisflux.domain.trust import ROOT_KEY_ID
from aegisflux.ports.secrets import Secrets
from aegisflux.wire import envelope
from aegisflux.wire import token as tokens
from aegisflux.wire.envelope import Envelope

KEY_SECONDS = 10 * 365 * 86_400
SKEW_SECONDS = 3600
ROOT, ENROLL = "root-key", "enroll-key"


class Keys:
    """The root key and the current signing key; `use` sets which key set and which key hold now.

    held: why nothing is signed, in words
    """

    def __init__(self, secrets: Secrets) -> None:
        self.secrets = secrets
        self._root = _signing(secrets, ROOT)
        self.root_public = bytes(self._root.verify_key)
        self._enroll = secrets.obtain(ENROLL, lambda: os.urandom(32))
        self.version = 0
        self.set = KeySet(0, ())
        self.envelope = Envelope("", b"", ())
        self.signing = self.held = ""
        self._sign: Callable[[bytes], bytes] = _unset

    def use(self, encoded: bytes, signing: str, held: str = "") -> None:
        """Take a stored key set and the id of the key to sign with; raises Unavailable when the secret of
        either is missing. `held`: why it may not sign, as one of an older store; nothing is signed then.
        """
        self.envelope = msgspec.msgpack.decode(encoded, type=Envelope)
        stated = envelope.opened(self.envelope, envelope.KEY_SET)
        if not any(verified(self.root_public, stated.signed_bytes, sig) for _, sig in stated.signatures):
            raise Unavailable(f"the store's key set is not signed by the secret {ROOT}: restore that file")
        self.set = msgspec.msgpack.decode(self.envelope.payload, type=KeySet)
        self.version = self.set.version
        if held:
            self.signing, self.held, self._sign = signing, held, self._refuse
            return
        if self.secrets.read(_file(signing)) is None:
            raise Unavailable(f"the secret {_file(signing)} is missing, and the store says that it signs")
        key = _signing(self.secrets, _file(signing))
        self.signing, self.held = signing, ""
        self._sign = lambda data: key.sign(data).signature

    def made(self, key_id: str, now: int) -> PublicKey:
        """A new snapshot key, kept in the secrets."""
        key = _signing(self.secrets, _file(key_id))
        return PublicKey(key_id, bytes(key.verify_key), now - SKEW_SECONDS, now + KEY_SECONDS)

    def discard(self, key_id: str) -> None:
        """Forget a key that signs no more, so that no older store makes it sign again."""
        if key_id != self.signing or self.held:
            self.secrets.remove(_file(key_id))

    def signed_set(self, version: int, keys: tuple[PublicKey, ...]) -> bytes:
        """A key set, signed by the root, as it is stored and sent."""
        payload = msgspec.msgpack.encode(KeySet(version, keys))
        return envelope.encode(
            envelope.seal(
                envelope.KEY_SET, payload, ROOT_KEY_ID, lambda data: self._root.sign(data).signature
            )
        )

    def enroll_secret(self) -> str:
        """The secret of a new enrolment token."""
        return tokens.sealed_secret(os.urandom(tokens.RANDOM_BYTES), self._enroll)

    def made_enroll(self, secret: str) -> bool:
        """Whether the secret of an enrolment token is one of ours."""
        return tokens.is_sealed(secret, self._enroll)

    def seal(self, payload_type: str, payload: bytes) -> Envelope:
        """Sign with the current key."""
        return envelope.seal(payload_type, payload, self.signing, self._sign)

    def _refuse(self, _data: bytes) -> bytes:
        raise Unavailable(f"nothing is signed: {self.held}")


def verified(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 signature holds."""
    try:
        VerifyKey(public).verify(message, signature)
        return True
    except (BadSignatureError, ValueError, TypeError):
        return False


def _file(key_id: str) -> str:
    return f"snapshot-key-{key_id}"


def _signing(secrets: Secrets, name: str) -> SigningKey:
    return SigningKey(secrets.obtain(name, lambda: bytes(SigningKey.generate())))


def _unset(_data: bytes) -> bytes:
    raise Unavailable("the signing keys are not loaded yet")
