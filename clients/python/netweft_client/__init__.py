"""Typed Python client of netweft.

    with netweft_client.Client() as client:
        network = client.create_network("blue")
        attached = client.attach_endpoint(
            netweft_client.EndpointSpec(network="blue"), netweft_client.SandboxSpec(container_id="web-1")
        )

Failures are the classes of `netweft_common.errors`, re-exported as `netweft_client.errors`.
"""

import importlib
from typing import TYPE_CHECKING

from netweft_common import errors
from netweft_common.tls import TlsFiles

from netweft_client import discovery
from netweft_client.model import (
    Action,
    Address,
    AddressLike,
    Attached,
    AttachItem,
    Bandwidth,
    DetachItem,
    Dns,
    DrainedHost,
    Drift,
    Endpoint,
    EndpointSpec,
    EndpointState,
    Event,
    EventBatch,
    ExtraHost,
    HandoverNamespace,
    Host,
    HostNamespace,
    HostPlan,
    HostState,
    Interface,
    InterfaceStatistics,
    JoinToken,
    Lease,
    LeaseEvent,
    LeaseEventType,
    Namespace,
    NamespacePath,
    NamespacePid,
    NarrowPath,
    Network,
    NetworkDetails,
    NetworkState,
    NewNamespace,
    ObjectKind,
    ObjectRef,
    ObjectStatus,
    Observation,
    Owner,
    OwnerKind,
    PlanStep,
    Pool,
    PoolUse,
    Prefix,
    PrefixLike,
    Protocol,
    PublishedPort,
    Repair,
    Sandbox,
    SandboxDetails,
    SandboxRef,
    SandboxSpec,
    SandboxState,
    Scope,
    StaticRoute,
    Subnet,
    SubnetSpec,
    plain,
)

if TYPE_CHECKING:
    from netweft_client.aio import AsyncClient, new_request_id
    from netweft_client.sync import Client

# What loads grpc (0.2 s) is imported when it is asked for; values, errors and discovery are free of it.
_HEAVY = {"AsyncClient": "aio", "new_request_id": "aio", "Client": "sync"}

__all__ = [
    "Action",
    "Address",
    "AddressLike",
    "AsyncClient",
    "AttachItem",
    "Attached",
    "Bandwidth",
    "Client",
    "DetachItem",
    "Dns",
    "DrainedHost",
    "Drift",
    "Endpoint",
    "EndpointSpec",
    "EndpointState",
    "Event",
    "EventBatch",
    "ExtraHost",
    "HandoverNamespace",
    "Host",
    "HostNamespace",
    "HostPlan",
    "HostState",
    "Interface",
    "InterfaceStatistics",
    "JoinToken",
    "Lease",
    "LeaseEvent",
    "LeaseEventType",
    "Namespace",
    "NamespacePath",
    "NamespacePid",
    "NarrowPath",
    "Network",
    "NetworkDetails",
    "NetworkState",
    "NewNamespace",
    "ObjectKind",
    "ObjectRef",
    "ObjectStatus",
    "Observation",
    "Owner",
    "OwnerKind",
    "PlanStep",
    "Pool",
    "PoolUse",
    "Prefix",
    "PrefixLike",
    "Protocol",
    "PublishedPort",
    "Repair",
    "Sandbox",
    "SandboxDetails",
    "SandboxRef",
    "SandboxSpec",
    "SandboxState",
    "Scope",
    "StaticRoute",
    "Subnet",
    "SubnetSpec",
    "TlsFiles",
    "discovery",
    "errors",
    "new_request_id",
    "plain",
]


def __getattr__(name: str) -> object:
    """Import what loads grpc at its first use (PEP 562)."""
    home = _HEAVY.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
