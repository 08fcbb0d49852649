"""Certificates of a cluster: its authority, what that issues, and tokens that name it.

Keys are of P-256, which BoringSSL (gRPC) and OpenSSL both know. A certificate names its holder by URI, see `identity`;
a server's also carries the names at which clients may meet it. A host's agent is met by a name made of its id,
whatever its address, so that a host cannot ask for somebody else's address in its certificate.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime as dt
import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from netweft_common import errors
from netweft_common.identity import Identity

AUTHORITY_LIFE = dt.timedelta(days=3650)
SKEW = dt.timedelta(minutes=5)
"""Certificates are good from a little before their making: clocks differ."""

_TOKEN_PREFIX = "nwt1"  # noqa: S105  # the form's name, no secret
_SECRET_BYTES = 24


@dataclasses.dataclass(frozen=True, slots=True)
class Authority:
    """Who issues a cluster's certificates."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(
        self, request_pem: bytes, holder: Identity, *, names: Iterable[str], life: dt.timedelta, now: dt.datetime
    ) -> bytes:
        """Return a certificate in PEM form for the key of a request; nothing else of the request is believed.

        Args:
            request_pem: Certificate signing request (RFC 2986).
            holder: Whom it names.
            names: DNS names and addresses at which the holder may be met as a server.
            life: How long it is good; it never outlives the authority.
            now: Time.

        Raises:
            InvalidArgument: The request is malformed, its signature is not its key's, or its key is no P-256 key.
        """
        try:
            request = x509.load_pem_x509_csr(request_pem)
            key = request.public_key()
        except (ValueError, TypeError) as error:
            raise _bad_request("it is no certificate signing request in PEM form") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise _bad_request("its key is no P-256 key")
        if not request.is_signature_valid:
            raise _bad_request("its signature is not its key's")
        alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"netweft://{holder}")]
        alternatives += [_general_name(name) for name in dict.fromkeys(names)]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(min(now + life, self.certificate.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def certificate_pem(self) -> bytes:
        """The authority's certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The authority's key, a secret."""
        return key_pem(self.key)


def new_authority(name: str, *, now: dt.datetime) -> Authority:
    """Make an authority, good for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def load_authority(certificate: Path, key: Path) -> Authority:
    """Read an authority from PEM files.

    Raises:
        FailedPrecondition: A file is missing or unusable, or the key is not the certificate's.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        secret = serialization.load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise errors.FailedPrecondition(
            "AUTHORITY_UNUSABLE",
            f"cannot use {certificate} with {key} as the cluster's authority: {error}; give its certificate and its "
            "P-256 key in PEM form, without a password",
        ) from error
    if not isinstance(secret, ec.EllipticCurvePrivateKey) or secret.public_key() != found.public_key():
        raise errors.FailedPrecondition(
            "AUTHORITY_UNUSABLE", f"{key} is not the P-256 key of {certificate}; give the pair that was made together"
        )
    return Authority(found, secret)


def new_request() -> tuple[bytes, bytes]:
    """Make a key and a request for a certificate of it; returns both in PEM form, the key first, a secret."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key in PEM form (PKCS #8), not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def validity(certificate_pem: bytes) -> tuple[dt.datetime, dt.datetime]:
    """Return from when and until when a certificate is good.

    Raises:
        FailedPrecondition: It is none.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate_pem)
    except ValueError as error:
        raise errors.FailedPrecondition("CERTIFICATE_UNUSABLE", f"this is no certificate: {error}") from error
    return found.not_valid_before_utc, found.not_valid_after_utc


def agent_server_name(host_id: str) -> str:
    """Return the name that an agent's certificate carries as a server."""
    return f"agent-{host_id}.netweft.internal"


# Join tokens


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What lets one machine become one pending host.

    Attributes:
        host_id: The host.
        secret: Known to whoever holds the token; the cluster keeps its digest alone.
        authority_der: Certificate that the controller's must come from.
    """

    host_id: str
    secret: str
    authority_der: bytes

    def text(self) -> str:
        """Return the token as people copy it."""
        return ".".join((_TOKEN_PREFIX, self.host_id, self.secret, _unpadded(self.authority_der)))

    @property
    def authority_pem(self) -> bytes:
        """The authority's certificate in PEM form."""
        return x509.load_der_x509_certificate(self.authority_der).public_bytes(serialization.Encoding.PEM)


def new_token(host_id: str, authority: Authority) -> Token:
    """Make a token for a host."""
    der = authority.certificate.public_bytes(serialization.Encoding.DER)
    return Token(host_id=host_id, secret=secrets.token_urlsafe(_SECRET_BYTES), authority_der=der)


def read_token(text: str) -> Token:
    """Read a token as people copy it.

    Raises:
        InvalidArgument: It is none; its text is not told, for it may be nearly right.
    """
    prefix, _, rest = text.strip().partition(".")
    parts = rest.split(".")
    try:
        if prefix != _TOKEN_PREFIX or len(parts) != 3:
            raise ValueError("form")  # noqa: TRY301  # one answer to all that may be wrong
        der = base64.urlsafe_b64decode(parts[2] + "=" * (-len(parts[2]) % 4))
        x509.load_der_x509_certificate(der)
    except (ValueError, binascii.Error) as error:
        raise errors.InvalidArgument(
            "TOKEN_MALFORMED", "the token is not whole; copy all of what 'netweft host token' printed", field="token"
        ) from error
    return Token(host_id=parts[0], secret=parts[1], authority_der=der)


def digest(secret: str) -> str:
    """Return what is kept of a token's secret: it is random, so a plain hash of it tells nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_secret_of(secret: str, kept: str) -> bool:
    """Return whether a secret is the one that was kept, in a time that does not tell how nearly."""
    return hmac.compare_digest(digest(secret), kept)


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _bad_request(why: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        "CERTIFICATE_REQUEST_UNUSABLE", f"certificate_request: {why}", field="certificate_request"
    )
