"""Becoming a host: what a machine without a certificate asks of a controller."""

from __future__ import annotations

from grpc import aio
from netweft.controller.v1 import host_pb2, host_pb2_grpc
from netweft_common import client, pki, status

TIMEOUT_S = 20.0


async def join(token: pki.Token, controller: str, *, request_pem: bytes, name: str) -> tuple[bytes, str]:
    """Become the host that a token stands for; returns its certificate in PEM form, and its name.

    Args:
        token: Good once.
        controller: Where machines join, host:port; its certificate must come from the token's authority.
        request_pem: Certificate signing request.
        name: What the machine calls itself.

    Raises:
        Unauthenticated: The token is unknown, used up or expired.
        Unavailable: The controller does not answer, or is not one of the token's cluster.
    """
    async with client.open_guest_channel(controller, token.authority_pem) as channel:
        stub = host_pb2_grpc.JoinServiceStub(channel)
        request = host_pb2.JoinRequest(
            host_id=token.host_id, secret=token.secret, certificate_request=request_pem, host_name=name
        )
        try:
            answer = await stub.Join(request, timeout=TIMEOUT_S)
        except aio.AioRpcError as error:
            raise status.from_rpc_error(error, target=controller, method=client.method_name(stub.Join)) from error
        return answer.certificate, answer.host_name
