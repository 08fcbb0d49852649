"""Certificates and tokens: what an authority issues, what it refuses, and what a token carries."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from netweft_common import credentials, errors, pki, tls
from netweft_common.identity import Identity, Role

NOW = dt.datetime(2026, 11, 27, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
HOLDER = Identity(role=Role.AGENT, name="a" * 32)


@pytest.fixture(scope="module")
def authority():
    return pki.new_authority("test", now=NOW)


def issue(authority, request, *, names=(), life=DAY):
    return x509.load_pem_x509_certificate(authority.issue(request, HOLDER, names=names, life=life, now=NOW))


def names_of(certificate, kind):
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(one) for one in extension.value.get_values_for_type(kind)]


def test_a_certificate_names_its_holder_and_what_the_authority_says(authority):
    _, request = pki.new_request()

    found = issue(authority, request, names=["192.0.2.1", "2001:db8::1", "agent.example", "agent.example"])

    assert [f"netweft://agent/{'a' * 32}"] == names_of(found, x509.UniformResourceIdentifier)
    assert ["192.0.2.1", "2001:db8::1"] == names_of(found, x509.IPAddress)
    assert ["agent.example"] == names_of(found, x509.DNSName)
    assert (NOW - pki.SKEW, NOW + DAY) == (found.not_valid_before_utc, found.not_valid_after_utc)
    found.verify_directly_issued_by(authority.certificate)


def test_nothing_of_a_request_is_believed_but_its_key(authority):
    key = ec.generate_private_key(ec.SECP256R1())
    wish = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("netweft://admin/root"), x509.DNSName("ctl")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(wish, critical=True)
    request = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)

    found = issue(authority, request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    assert [f"netweft://agent/{'a' * 32}"] == names_of(found, x509.UniformResourceIdentifier)
    assert [] == names_of(found, x509.DNSName)
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_no_certificate_outlives_its_authority(authority):
    _, request = pki.new_request()

    found = issue(authority, request, life=pki.AUTHORITY_LIFE * 2)

    assert authority.certificate.not_valid_after_utc == found.not_valid_after_utc


def _signed_by_another():
    _, request = pki.new_request()
    der = bytearray(x509.load_pem_x509_csr(request).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)


def _of_key(key):
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


BAD = {
    "nothing": lambda: b"",
    "garbage": lambda: b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    "of another signature": _signed_by_another,
    "of an RSA key": lambda: _of_key(rsa.generate_private_key(65537, 2048)),
    "of another curve": lambda: _of_key(ec.generate_private_key(ec.SECP384R1())),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_an_unusable_request_is_refused(authority, make):
    with pytest.raises(errors.InvalidArgument) as caught:
        issue(authority, make())

    assert "certificate_request" == caught.value.metadata["field"]


def test_a_token_comes_back_from_its_text(authority):
    token = pki.new_token("b" * 32, authority)

    found = pki.read_token(f"  {token.text()}\n")

    assert token == found
    assert authority.certificate_pem == found.authority_pem
    assert pki.is_secret_of(found.secret, pki.digest(token.secret))
    assert not pki.is_secret_of(found.secret, pki.digest("another"))


@given(st.text(max_size=80))
def test_what_is_no_token_is_refused_without_telling_it(text):
    with pytest.raises(errors.InvalidArgument) as caught:
        pki.read_token(text)

    assert len(text) < 8 or text not in caught.value.message


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_token_that_was_cut_is_refused(authority, cut):
    with pytest.raises(errors.InvalidArgument, match="not whole"):
        pki.read_token(pki.new_token("b" * 32, authority).text()[:-cut])


def test_an_authority_comes_back_from_its_files(authority, tmp_path):
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    (tmp_path / "ca.key").write_bytes(authority.key_pem)

    found = pki.load_authority(tmp_path / "ca.pem", tmp_path / "ca.key")

    assert authority.certificate == found.certificate


def test_an_authority_with_another_ones_key_is_refused(authority, tmp_path):
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    (tmp_path / "ca.key").write_bytes(pki.new_authority("other", now=NOW).key_pem)

    with pytest.raises(errors.FailedPrecondition, match="not the P-256 key"):
        pki.load_authority(tmp_path / "ca.pem", tmp_path / "ca.key")
    with pytest.raises(errors.FailedPrecondition, match="cannot use"):
        pki.load_authority(tmp_path / "none.pem", tmp_path / "ca.key")


def test_credentials_are_replaced_as_a_whole_and_the_old_ones_go(authority, tmp_path):
    files = credentials.files(tmp_path / "tls")
    stamps = []
    for _ in range(2):
        key, request = pki.new_request()
        cert = authority.issue(request, HOLDER, names=["localhost"], life=DAY, now=NOW)
        credentials.put(tmp_path / "tls", ca=authority.certificate_pem, cert=cert, key=key)
        assert (cert, key) == (files.cert.read_bytes(), files.key.read_bytes())
        stamps.append(tls.stamp(files))

    assert stamps[0] != stamps[1]
    assert 2 == len(list((tmp_path / "tls").iterdir()))
    assert 0o600 == files.key.stat().st_mode & 0o777
