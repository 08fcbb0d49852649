"""An authority that issues certificates with the URI names that netweft reads identities from."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from netweft_common import tls


class Authority:
    """Issues certificates into a folder. trustme makes the root; it knows no URI names, so leaves are made here.

    Args:
        folder: Where the files go.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ca = folder / "ca.pem"
        root = trustme.CA(key_type=trustme.KeyType.ECDSA)
        root.cert_pem.write_to_path(str(self.ca))
        key = serialization.load_pem_private_key(root.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._cert = x509.load_pem_x509_certificate(root.cert_pem.bytes())

    def issue(self, name: str, *uris: str, addresses: Sequence[str] = ()) -> tls.TlsFiles:
        """Return the files of a new certificate with these URIs, valid for a server at these addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        names.append(x509.DNSName("localhost"))
        issuer = self._key.public_key()
        cert = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._cert.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._cert.not_valid_before_utc)
            .not_valid_after(self._cert.not_valid_after_utc)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        files = tls.TlsFiles(ca=self.ca, cert=self.folder / f"{name}.pem", key=self.folder / f"{name}.key")
        files.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        return files
