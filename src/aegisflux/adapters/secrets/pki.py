"""Our X.509: one CA of our own and the certificates of our servers.

Only the control plane imports this module; an agent gets the CA's certificate as text and pins it.
"""

import datetime
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aegisflux.adapters.secrets.file import FileSecrets
from aegisflux.domain.errors import Unavailable

CA_KEY, CA_CERT = "ca.key", "ca.crt"
CA_DAYS, SERVER_DAYS, RENEW_DAYS = 3650, 365, 60


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """Where a server reads its certificate (with the CA's appended) and its key."""

    certificate: Path
    key: Path


class Pki:
    """The CA in `secrets`, made when missing. `now` is always in seconds since the epoch."""

    def __init__(self, secrets: FileSecrets, now: float) -> None:
        self._secrets = secrets
        self._key = _load_key(secrets.obtain(CA_KEY, _new_key))
        pem = secrets.obtain(CA_CERT, lambda: _pem(_ca(self._key, now)))
        self._ca = x509.load_pem_x509_certificate(pem)
        if self._ca.public_key() != self._key.public_key():
            raise Unavailable(f"{secrets.directory}: {CA_CERT} does not belong to {CA_KEY}")

    @property
    def ca_pem(self) -> str:
        """The CA's certificate, to be handed to everyone."""
        return _pem(self._ca).decode()

    @property
    def ca_file(self) -> Path:
        """The file of the CA's certificate."""
        return self._secrets.path(CA_CERT)

    @property
    def ca_sha256(self) -> str:
        """SHA-256 (hex) of the CA's certificate in DER, as enrolment tokens carry it."""
        return hashlib.sha256(self._ca.public_bytes(serialization.Encoding.DER)).hexdigest()

    def server(self, name: str, hosts: Sequence[str], now: float) -> ServerFiles:
        """Files of a certificate for the DNS names and addresses, made anew when they change or 60 days
        remain.
        """
        key_name, cert_name = f"{name}.key", f"{name}.crt"
        key = _load_key(self._secrets.obtain(key_name, _new_key))
        kept = self._secrets.read(cert_name)
        if kept is None or not self._fits(kept, key, hosts, now):
            issued = _server(self._ca, self._key, key, name, hosts, now)
            self._secrets.write(cert_name, _pem(issued) + _pem(self._ca))
        return ServerFiles(self._secrets.path(cert_name), self._secrets.path(key_name))

    def _fits(self, pem: bytes, key: ec.EllipticCurvePrivateKey, hosts: Sequence[str], now: float) -> bool:
        found = x509.load_pem_x509_certificates(pem)[0]
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        remaining = found.not_valid_after_utc.timestamp() - now
        return (
            list(names) == _names(hosts)
            and found.public_key() == key.public_key()
            and found.issuer == self._ca.subject
            and remaining > RENEW_DAYS * 86_400
        )


def _new_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Unavailable(f"key file: expected an elliptic curve key, got {type(key).__name__}")
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for host in hosts:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            found.append(x509.DNSName(host))
    return found


def _builder(
    subject: str, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: float, days: int
) -> x509.CertificateBuilder:
    start = datetime.datetime.fromtimestamp(now, datetime.UTC) - datetime.timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _ca(key: ec.EllipticCurvePrivateKey, now: float) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "AegisFlux CA")])
    return (
        _builder("AegisFlux CA", name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _server(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    name: str,
    hosts: Sequence[str],
    now: float,
) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(name, ca.subject, key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(hosts)), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
