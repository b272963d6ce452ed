"""Enrolment over HTTP: a token, a name and a proof go out; what comes back is checked against the token."""

import http.client
import json
import random
import re
import ssl
import time
import urllib.error
import urllib.request
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import msgspec
from nacl.signing import SigningKey

from aegisflux.agent.identity import IDENTITY, Identity, first_trust, obtain_seed, signer
from aegisflux.agent.parts import Store
from aegisflux.domain import skew
from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import BROKEN, Invalid, Refused, Unavailable, shown
from aegisflux.domain.names import check_name
from aegisflux.domain.trust import Nacked
from aegisflux.wire import token as tokens
from aegisflux.wire.natsjwt import claims
from aegisflux.wire.token import EnrollAnswer, EnrollRequest, EnrollToken, RenewRequest

SECONDS: Final = 15.0
MAX_ANSWER: Final = 1 << 20
TRIES: Final = 6  # in half a minute
MAX_PATIENCE: Final = 30.0  # with somebody in front of the command
MAX_RETRY_AFTER: Final = 3600.0
MAX_REASON: Final = 200  # characters of what a library says of TLS
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
HOST: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Crowded(Unavailable):
    """The control plane has too much to do just now."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text + (f"; it can be asked again in {retry_after:g} s" if retry_after else ""))
        self.retry_after = retry_after


def retry_after(header: str | None, now: float) -> float:
    """The seconds from `now` (since the epoch) that a `Retry-After` says, as a number or a date, an hour at
    most; 0 for one that says nothing."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER)
    try:
        at = parsedate_to_datetime(text)
        seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def host_id_of(hostname: str) -> str:
    """A host id from a host name: its first label, in lower case; raises Invalid where nothing is left."""
    name = re.sub(r"[^a-z0-9_-]", "-", hostname.partition(".")[0].lower()).lstrip("-_")[:63]
    if not HOST.fullmatch(name):
        raise Invalid("host_id", "[a-z0-9][a-z0-9_-]{0,62}", hostname)
    check_name("host_id", name)
    return name


def enroll(text: str, host_id: str, store: Store) -> Identity:
    """Enrol this host and keep its identity; raises Refused or Unavailable.

    Asked again with the same token it gives the same answer, so a lost answer costs nothing.
    """
    if not HOST.fullmatch(host_id):
        raise Invalid("host_id", "[a-z0-9][a-z0-9_-]{0,62}", host_id)
    token, seed = tokens.parse_token(text), obtain_seed(store)
    context = _context(token)
    request = EnrollRequest(
        text.strip(),
        host_id,
        tokens.b64(bytes(SigningKey(seed).verify_key)),
        tokens.b64(signer(seed)(tokens.proof_bytes(text, host_id))),
    )
    raw = _call(token.url.rstrip("/") + tokens.ENROLL_PATH, context, msgspec.json.encode(request))
    try:
        answer = msgspec.json.decode(raw, type=EnrollAnswer)
    except BROKEN as error:
        raise Refused(
            f"enrolment: the answer of {token.url} is not one: {in_words(error, EnrollAnswer)}"
        ) from None
    identity = checked(answer, token, host_id)
    store.write(IDENTITY, msgspec.msgpack.encode(identity))
    return identity


def renew(identity: Identity, url: str, seed: bytes) -> bytes:
    """Ask once for a `Renewed`, in JSON, with the key of the enrolment; raises Refused or Unavailable.

    The answer is believed for the CA of the enrolment alone, so this needs no new trust. When to ask again is
    the caller's matter: the thread that asks has other work.
    """
    proof = signer(seed)(tokens.renewal_bytes(identity.host_id))
    body = msgspec.json.encode(RenewRequest(identity.host_id, tokens.b64(proof)))
    context = None if _is_plain(url, "renewal") else ssl.create_default_context(cadata=identity.ca_pem)
    return _asked(url.rstrip("/") + tokens.RENEW_PATH, context, body, "renewal")


def checked(answer: EnrollAnswer, token: EnrollToken, host_id: str) -> Identity:
    """The identity in the answer; raises Refused when it is not that of the token's control plane."""
    root = tokens.from_b64(answer.root_public_key, "root_public_key", 32)
    if tokens.root_sha256(root) != token.root_sha256:
        raise Refused("enrolment: the root key is not the one that the token names")
    if tokens.ca_sha256(answer.ca_pem) != token.ca_sha256:
        raise Refused("enrolment: the CA is not the one that the token names")
    if answer.host_id != host_id or claims(answer.user_jwt).get("name") != host_id:
        raise Refused(f"enrolment: expected credentials of {host_id}, got those of {answer.host_id[:63]}")
    keys = tokens.from_b64(answer.keys, "keys")
    identity = Identity(host_id, answer.user_jwt, answer.nats_urls, answer.ca_pem, root, keys, token.url)
    try:
        first_trust(identity)
    except Nacked as error:
        raise Refused(f"enrolment: the key set is not the root's: {error}") from None
    return identity


def _context(token: EnrollToken) -> ssl.SSLContext | None:
    """How to talk to the token's URL: verified by the CA that the token names, or plain on this machine."""
    if _is_plain(token.url, "enrolment"):
        return None
    pem = _call(token.url.rstrip("/") + tokens.CA_PATH, _unverified(), None).decode("ascii", "replace")
    if tokens.ca_sha256(pem) != token.ca_sha256:
        raise Refused(
            f"enrolment: {urlsplit(token.url).hostname} shows another CA than the one that the token names"
        )
    return ssl.create_default_context(cadata=pem)


def _is_plain(text: str, what: str) -> bool:
    """Whether the URL is plain HTTP on this machine; raises Refused or Invalid on one that is neither that
    nor HTTPS."""
    url = urlsplit(text)
    if url.scheme == "http":
        if url.hostname not in LOOPBACK:
            raise Refused(f"{what}: plain HTTP is for this machine only, not for {url.hostname}")
        return True
    if url.scheme != "https":
        raise Invalid("url", "an https URL", url.scheme)
    return False


def _unverified() -> ssl.SSLContext:
    """Only to fetch the CA, which is compared with the token before anything secret is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _call(url: str, context: ssl.SSLContext | None, body: bytes | None) -> bytes:
    """Ask, and again a while later where the control plane has too much to do: many hosts may enrol then."""
    for number in range(TRIES):
        try:
            return _asked(url, context, body, "enrolment")
        except Crowded as error:
            if number == TRIES - 1 or error.retry_after > MAX_PATIENCE:
                raise
            spread = random.uniform(0.5, 1.0)
            time.sleep(max(spread * 2**number, error.retry_after + spread))
    raise AssertionError("every try returns or raises")


def _asked(url: str, context: ssl.SSLContext | None, body: bytes | None, what: str) -> bytes:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 - scheme checked by _is_plain
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=SECONDS) as answer:
            return bytes(answer.read(MAX_ANSWER))
    except urllib.error.HTTPError as error:
        raise _refusal(error, what) from None
    except (OSError, http.client.HTTPException) as error:  # of urllib.error the others are OSError
        reason = getattr(error, "reason", error)
        reset = isinstance(reason, ConnectionResetError)
        words = skew.explained(shown(str(reason), MAX_REASON), time.time())
        raise (Crowded if reset else Unavailable)(f"{what}: {url}: {words}") from None


def _refusal(error: urllib.error.HTTPError, what: str) -> Refused | Unavailable:
    with error:
        try:
            detail = _detail(error.read(MAX_ANSWER))
        except (OSError, http.client.HTTPException):
            detail = ""
    text = f"{what}: {error.code} {detail or error.reason}"
    if error.code in (429, 503):
        return Crowded(text, retry_after(error.headers.get("Retry-After"), time.time()))
    return (Refused if 400 <= error.code < 500 else Unavailable)(text)


def _detail(body: bytes) -> str:
    try:
        problem = json.loads(body)
        return str(problem.get("detail") or problem.get("title") or "")[:500]
    except (ValueError, AttributeError):
        return ""
