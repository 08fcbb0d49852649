"""TLS from files: who we are, and which authority we trust for the other side."""

from __future__ import annotations

import dataclasses
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from netweft_common import errors, logs

if TYPE_CHECKING:
    import grpc  # 90 ms; who only names files (the CLI, discovery) does not pay for it


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files of one process.

    Attributes:
        ca: Certificates of the authorities that the other side's certificate must come from.
        cert: Our certificate, with its chain.
        key: Its private key.
        server_name: Name that the server's certificate must carry instead of the target's host; clients only.
    """

    ca: Path
    cert: Path
    key: Path
    server_name: str = ""


def from_settings(ca: Path | None, cert: Path | None, key: Path | None, server_name: str = "") -> TlsFiles | None:
    """Return the files, or None when none of the three is set.

    Raises:
        InvalidArgument: Some are set and some are not.
    """
    if ca is None and cert is None and key is None:
        return None
    if ca is None or cert is None or key is None:
        missing = [name for name, path in (("tls_ca", ca), ("tls_cert", cert), ("tls_key", key)) if path is None]
        raise errors.InvalidArgument(
            "TLS_INCOMPLETE",
            f"TLS needs tls_ca, tls_cert and tls_key together; missing: {', '.join(missing)}",
            field=missing[0],
        )
    return TlsFiles(ca=ca, cert=cert, key=key, server_name=server_name)


def stamp(files: TlsFiles) -> tuple[tuple[int, int], ...]:
    """Return what changes when a file is replaced; zeros for one that is not there."""

    def one(path: Path) -> tuple[int, int]:
        try:
            found = path.stat()
        except OSError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_ino)

    return (one(files.ca), one(files.cert), one(files.key))


def server_credentials(files: TlsFiles, *, client_certificates: bool = True) -> grpc.ServerCredentials:
    """Return credentials of a server; files that are replaced are read again for the next connection.

    Args:
        files: Ours, and whom we trust.
        client_certificates: False: clients show none, and are nobody to us.

    Raises:
        FailedPrecondition: A file is missing, unreadable, or does not fit the others.
    """
    import grpc  # noqa: PLC0415  # see above

    def configuration() -> grpc.ServerCertificateConfiguration:
        ca, cert, key = _read_all(files)
        trusted = ca if client_certificates else None
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=trusted)

    seen = stamp(files)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # Called at each handshake, by a thread of gRPC's.
        nonlocal seen
        found = stamp(files)
        if found == seen:
            return None
        try:
            fresh = configuration()
        except errors.FailedPrecondition as error:  # replaced by halves: the old ones do until it is whole
            logs.get().warning("certificate not taken", error=error.message)
            return None
        seen = found
        return fresh

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        fetch,  # type: ignore[arg-type]  # the stub does not know of None: nothing has changed
        require_client_authentication=client_certificates,
    )


def anonymous_credentials(ca_pem: bytes) -> grpc.ChannelCredentials:
    """Return credentials of a client that shows no certificate and trusts one authority."""
    import grpc  # noqa: PLC0415  # see above

    return grpc.ssl_channel_credentials(root_certificates=ca_pem)


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """Return credentials of a client that shows its certificate.

    Raises:
        FailedPrecondition: A file is missing, unreadable, or does not fit the others.
    """
    import grpc  # noqa: PLC0415  # see above

    ca, cert, key = _read_all(files)
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


def _read_all(files: TlsFiles) -> tuple[bytes, bytes, bytes]:
    ca, cert, key = _read(files.ca, "tls_ca"), _read(files.cert, "tls_cert"), _read(files.key, "tls_key")
    # gRPC itself reports a bad file at the first handshake only, and only in its own log; OpenSSL says it now.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(files.ca)
    except (ssl.SSLError, ValueError) as error:
        raise _unusable("tls_ca", files.ca, "holds no certificate authority in PEM form", error) from error
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            raise _unusable(
                "tls_key", files.key, f"is not the private key of {files.cert}; take the pair that was issued", error
            ) from error
        raise _unusable(
            "tls_cert", files.cert, f"and the key {files.key} must be PEM, the key without a password", error
        ) from error
    return ca, cert, key


def _no_password() -> str:
    # Without this OpenSSL asks on the terminal, which hangs a service.
    raise ValueError("the key is encrypted")


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.FailedPrecondition(
            "TLS_FILE_UNREADABLE",
            f"cannot read {setting} {path}: {error.strerror}; give a PEM file that this user can read",
            setting=setting,
            path=str(path),
        ) from error


def _unusable(setting: str, path: Path, why: str, error: Exception) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        "TLS_FILE_UNUSABLE", f"{setting} {path} {why} ({error})", setting=setting, path=str(path)
    )
