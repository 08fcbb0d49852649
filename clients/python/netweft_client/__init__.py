"""Typed Python client of netweft.

    with netweft_client.Client() as client:
        network = client.create_network("blue")
        attached = client.attach_endpoint(
            netweft_client.EndpointSpec(network="blue"), netweft_client.SandboxSpec(container_id="web-1")
        )

Failures are the classes of `netweft_common.errors`, re-exported as `netweft_client.errors`.
"""

from netweft_common import errors
from netweft_common.tls import TlsFiles

from netweft_client import discovery
from netweft_client.aio import AsyncClient, new_request_id
from netweft_client.model import (
    Action,
    Attached,
    AttachItem,
    DetachItem,
    Dns,
    Endpoint,
    EndpointSpec,
    EndpointState,
    Event,
    EventBatch,
    ExtraHost,
    Host,
    HostNamespace,
    HostPlan,
    HostState,
    Lease,
    NamespacePath,
    NamespacePid,
    Network,
    NetworkDetails,
    NetworkState,
    NewNamespace,
    ObjectKind,
    ObjectRef,
    Observation,
    PlanStep,
    Pool,
    Sandbox,
    SandboxDetails,
    SandboxSpec,
    SandboxState,
    Scope,
    Subnet,
    SubnetSpec,
    plain,
)
from netweft_client.sync import Client

__all__ = [
    "Action",
    "AsyncClient",
    "AttachItem",
    "Attached",
    "Client",
    "DetachItem",
    "Dns",
    "Endpoint",
    "EndpointSpec",
    "EndpointState",
    "Event",
    "EventBatch",
    "ExtraHost",
    "Host",
    "HostNamespace",
    "HostPlan",
    "HostState",
    "Lease",
    "NamespacePath",
    "NamespacePid",
    "Network",
    "NetworkDetails",
    "NetworkState",
    "NewNamespace",
    "ObjectKind",
    "ObjectRef",
    "Observation",
    "PlanStep",
    "Pool",
    "Sandbox",
    "SandboxDetails",
    "SandboxSpec",
    "SandboxState",
    "Scope",
    "Subnet",
    "SubnetSpec",
    "TlsFiles",
    "discovery",
    "errors",
    "new_request_id",
    "plain",
]
