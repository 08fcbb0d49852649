"""TLS files: what is wrong with which one."""

from __future__ import annotations

import pytest
import trustme
from netweft_common import errors, tls


@pytest.fixture
def files(tmp_path):
    authority = trustme.CA()
    cert = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    cert.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    cert.private_key_pem.write_to_path(tmp_path / "key.pem")
    return tls.TlsFiles(ca=tmp_path / "ca.pem", cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")


@pytest.mark.parametrize("make", [tls.server_credentials, tls.channel_credentials], ids=["server", "client"])
def test_files_that_fit_are_taken(files, make):
    assert make(files) is not None


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_a_missing_file_is_named_with_its_setting(files, name):
    getattr(files, name).unlink()

    with pytest.raises(errors.FailedPrecondition) as caught:
        tls.server_credentials(files)

    assert ("TLS_FILE_UNREADABLE", f"tls_{name}") == (caught.value.reason, caught.value.metadata["setting"])


@pytest.mark.parametrize(("name", "blamed"), [("ca", "tls_ca"), ("cert", "tls_cert"), ("key", "tls_cert")])
def test_a_file_that_is_not_pem_is_named(files, name, blamed):
    getattr(files, name).write_text("rubbish")

    with pytest.raises(errors.FailedPrecondition) as caught:
        tls.server_credentials(files)

    assert ("TLS_FILE_UNUSABLE", blamed) == (caught.value.reason, caught.value.metadata["setting"])
    assert str(getattr(files, name)) in caught.value.message


def test_a_key_of_another_certificate_is_told(files, tmp_path):
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(files.key)

    with pytest.raises(errors.FailedPrecondition, match="is not the private key of"):
        tls.server_credentials(files)


def test_settings_without_any_file_mean_no_tls():
    assert tls.from_settings(None, None, None) is None


def test_settings_with_some_files_name_the_missing_ones(files):
    with pytest.raises(errors.InvalidArgument, match="missing: tls_cert, tls_key"):
        tls.from_settings(files.ca, None, None)
