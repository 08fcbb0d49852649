# servicers have the names of their rpcs; the house writes expected == actual
"""Servers that demand certificates, and what each certificate may do."""

from __future__ import annotations

import dataclasses

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio
from netweft.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from netweft_common import client, errors, identity, server, tls
from netweft_common.identity import Role

pytestmark = pytest.mark.anyio
ACCESS = {
    "/netweft.ipam.v1.IpamService/GetPool": frozenset({Role.CONTROLLER, Role.AGENT}),
    "/netweft.ipam.v1.IpamService/ListPools": frozenset({Role.ADMIN}),
}


class Ipam(ipam_pb2_grpc.IpamServiceServicer):
    async def GetPool(self, request, context):
        if request.pool_id:
            identity.require_self(request.pool_id)
        return ipam_pb2.GetPoolResponse(pool=ipam_pb2.Pool(id=str(identity.current())))


class Authority:
    """Issues certificates with URI names, which trustme itself does not."""

    def __init__(self, path) -> None:
        self.path = path
        self.trust = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.trust.cert_pem.write_to_path(path / "ca.pem")
        self.key = serialization.load_pem_private_key(self.trust.private_key_pem.bytes(), None)
        self.cert = x509.load_pem_x509_certificate(self.trust.cert_pem.bytes())

    def issue(self, name: str, *uris: str) -> tls.TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), *(x509.UniformResourceIdentifier(uri) for uri in uris)]
        cert = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.cert.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.cert.not_valid_before_utc)
            .not_valid_after(self.cert.not_valid_after_utc)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        files = tls.TlsFiles(
            ca=self.path / "ca.pem",
            cert=self.path / f"{name}.pem",
            key=self.path / f"{name}.key",
            server_name="localhost",
        )
        files.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def serve(authority: Authority, *targets: str, access: identity.Access | None = ACCESS) -> server.Server:
    files = authority.issue("server", "netweft://ipam/ipam-1")
    made = server.Server(listen_at=targets or ["127.0.0.1:0"], tls_files=files, access=access)
    return made.add(ipam_pb2_grpc.add_IpamServiceServicer_to_server, Ipam())


async def who_am_i(target: str, files: tls.TlsFiles | None, pool: str = "") -> str:
    async with client.Connection(target, tls_files=files) as connection:
        stub = ipam_pb2_grpc.IpamServiceStub(connection.channel)
        answer = await connection.call(stub.GetPool, ipam_pb2.GetPoolRequest(pool_id=pool), timeout_s=10)
    return answer.pool.id


async def test_a_role_of_the_table_is_served_and_known_to_the_handler(authority):
    async with serve(authority) as made:
        files = authority.issue("controller", "netweft://controller/c1")

        assert "controller/c1" == await who_am_i(made.targets[0], files)


async def test_tls_lets_a_server_listen_beyond_loopback(authority):
    async with serve(authority, "0.0.0.0:0") as made:
        files = authority.issue("controller", "netweft://controller/c1")
        port = made.targets[0].rpartition(":")[2]

        assert "controller/c1" == await who_am_i(f"127.0.0.1:{port}", files)


async def test_a_role_outside_the_table_is_refused(authority):
    async with serve(authority) as made:
        files = authority.issue("client", "netweft://client/me")
        with pytest.raises(errors.PermissionDenied) as caught:
            await who_am_i(made.targets[0], files)

    assert ("ROLE_NOT_ALLOWED", "client/me") == (caught.value.reason, caught.value.metadata["caller"])


async def test_a_method_that_the_table_does_not_name_is_for_nobody(authority):
    async with serve(authority, access={}) as made:
        files = authority.issue("admin", "netweft://admin/root")
        with pytest.raises(errors.PermissionDenied):
            await who_am_i(made.targets[0], files)


async def test_without_a_table_each_identity_is_served(authority):
    async with serve(authority, access=None) as made:
        assert "client/me" == await who_am_i(made.targets[0], authority.issue("client", "netweft://client/me"))


async def test_a_certificate_without_an_identity_is_refused(authority):
    async with serve(authority, access=None) as made:
        with pytest.raises(errors.Unauthenticated) as caught:
            await who_am_i(made.targets[0], authority.issue("stranger"))

    assert "IDENTITY_MISSING" == caught.value.reason


async def test_no_certificate_gets_no_connection(authority):
    async with serve(authority) as made:
        credentials = grpc.ssl_channel_credentials(root_certificates=authority.trust.cert_pem.bytes())
        options = [("grpc.ssl_target_name_override", "localhost")]
        async with aio.secure_channel(made.targets[0], credentials, options=options) as channel:
            with pytest.raises(aio.AioRpcError) as caught:
                await ipam_pb2_grpc.IpamServiceStub(channel).GetPool(ipam_pb2.GetPoolRequest(), timeout=10)

    assert grpc.StatusCode.UNAVAILABLE is caught.value.code()


async def test_a_certificate_of_another_authority_gets_no_connection(authority, tmp_path):
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").issue("controller", "netweft://controller/c1")
    async with serve(authority) as made:
        with pytest.raises(errors.Unavailable):
            await who_am_i(made.targets[0], dataclasses.replace(other, ca=authority.path / "ca.pem"))


async def test_without_tls_a_client_of_a_tls_server_gets_no_answer(authority):
    async with serve(authority) as made:
        with pytest.raises(errors.Unavailable):
            await who_am_i(made.targets[0], None)


async def test_a_client_refuses_a_server_of_another_authority(authority, tmp_path):
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").issue("controller", "netweft://controller/c1")
    async with serve(authority) as made:
        with pytest.raises(errors.Unavailable):
            await who_am_i(made.targets[0], other)


async def test_an_agent_acts_for_its_own_host_only(authority):
    async with serve(authority) as made:
        files = authority.issue("agent", "netweft://agent/h1")
        assert "agent/h1" == await who_am_i(made.targets[0], files, "h1")
        with pytest.raises(errors.PermissionDenied) as caught:
            await who_am_i(made.targets[0], files, "h2")

    assert "FOREIGN_HOST" == caught.value.reason


async def test_a_unix_socket_of_a_tls_server_is_local(authority, tmp_path):
    target = f"unix:{tmp_path}/x.sock"
    async with serve(authority, target, "127.0.0.1:0"):
        assert "local" == await who_am_i(target, None)


async def test_a_client_does_not_speak_plain_text_beyond_loopback():
    with pytest.raises(errors.InvalidArgument, match="refusing to call"):
        await who_am_i("192.0.2.1:7000", None)
