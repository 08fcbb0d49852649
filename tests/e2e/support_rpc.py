"""Calls in a process of their own: `python support_rpc.py < calls.json` makes each and prints how it ended.

gRPC connects from threads of its own, which stay in the namespace that the process was born in; so whoever wants to
call from inside another namespace has to be born there.

    [{"target": "192.0.2.1:7700", "method": "netweft.controller.v1.HostService/GetHost", "request": {"host": "h1"},
      "ca": "ca.pem", "cert": "a.pem", "key": "a.key"}, ...]

Without `ca` the call is plain text, without `cert` the caller shows no certificate. Of a stream the first message is
taken.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from netweft.agent.v1 import agent_pb2
from netweft.controller.v1 import endpoint_pb2, event_pb2, host_pb2, network_pb2, sandbox_pb2
from netweft.ipam.v1 import ipam_pb2

KNOWN = (agent_pb2, endpoint_pb2, event_pb2, host_pb2, ipam_pb2, network_pb2, sandbox_pb2)
"""What the descriptor pool holds by being imported."""
TIMEOUT_S = 5.0


def call(one: dict[str, Any]) -> dict[str, Any]:
    """Make one call and return its code, and its message or answer."""
    service, _, name = one["method"].partition("/")
    method = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
    request = json_format.ParseDict(one.get("request", {}), message_factory.GetMessageClass(method.input_type)())
    answer_type = message_factory.GetMessageClass(method.output_type)
    # Server names are checked against the address called: that is part of what is tested.
    with _channel(one) as channel:
        kind = channel.unary_stream if method.server_streaming else channel.unary_unary
        made = kind(f"/{one['method']}", type(request).SerializeToString, answer_type.FromString)
        try:
            answer: Any = made(request, timeout=TIMEOUT_S)
            first = next(answer) if method.server_streaming else answer
        except grpc.RpcError as error:
            return {"code": error.code().name, "message": error.details()}
    return {"code": "OK", "message": "", "answer": json_format.MessageToDict(first, preserving_proto_field_name=True)}


def _channel(one: dict[str, Any]) -> grpc.Channel:
    if "ca" not in one:
        return grpc.insecure_channel(one["target"])
    cert, key = (Path(one[name]).read_bytes() if name in one else None for name in ("cert", "key"))
    credentials = grpc.ssl_channel_credentials(Path(one["ca"]).read_bytes(), key, cert)
    return grpc.secure_channel(one["target"], credentials)


if __name__ == "__main__":
    json.dump([call(one) for one in json.load(sys.stdin)], sys.stdout)
