"""Calls to the agents of hosts, over one channel each."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence

import msgspec
from netweft.agent.v1 import agent_pb2, agent_pb2_grpc
from netweft.common.v1 import plan_pb2
from netweft_common import client, errors, tls

from netweft_controller.clients import wire
from netweft_controller.domain.changes import Change, Status
from netweft_controller.domain.objects import Host

_CHANGES_MAX = 4096


class Step(msgspec.Struct, frozen=True):
    """One step of a plan; fields as in the message PlanStep."""

    command: str
    namespace: str
    owner: str
    inverse: str


class InterfaceStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one interface of a sandbox; fields as in the message InterfaceStatistics."""

    interface_name: str
    endpoint_id: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


class _Channel(msgspec.Struct, frozen=True):
    connection: client.Connection
    stub: agent_pb2_grpc.AgentServiceAsyncStub  # only in the stubs' types


class Agents:
    """The agents of all hosts.

    Args:
        tls_files: For TCP.
        timeout: Longest wait for an answer; the caller's deadline may be shorter.
    """

    def __init__(
        self, *, tls_files: tls.TlsFiles | None = None, timeout: dt.timedelta = dt.timedelta(seconds=20)
    ) -> None:
        self._tls_files = tls_files
        self._timeout = timeout
        self._channels: dict[tuple[str, str], _Channel] = {}

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.connection.close()
        self._channels.clear()

    async def apply(self, host: Host, changes: Sequence[Change], store_id: str) -> list[Status]:
        """Bring a host's kernel to these changes; returns one status each, in their order.

        Raises:
            Unavailable: No answer; the host may or may not have done it.
            NetweftError: As the agent says.
        """
        statuses: list[Status] = []
        for start in range(0, len(changes), _CHANGES_MAX):
            part = changes[start : start + _CHANGES_MAX]
            channel = self._channel(host)
            response: agent_pb2.ApplyResponse = await channel.connection.call(
                channel.stub.Apply,
                agent_pb2.ApplyRequest(changes=[wire.change(change) for change in part], store_id=store_id),
            )
            if len(response.statuses) != len(part):
                raise errors.Internal(
                    "AGENT_ANSWER",
                    f"the agent of host {host.name} answered {len(response.statuses)} statuses for {len(part)} changes",
                    host=host.id,
                )
            statuses += [wire.status_of(*pair) for pair in zip(part, response.statuses, strict=True)]
        return statuses

    async def plan(self, host: Host, changes: Sequence[Change]) -> list[Step]:
        """Return what a host would do for these changes.

        Raises:
            NetweftError: As the agent says.
        """
        channel = self._channel(host)
        response: agent_pb2.PlanResponse = await channel.connection.call(
            channel.stub.Plan, agent_pb2.PlanRequest(changes=[wire.change(change) for change in changes])
        )
        return _steps(response.steps)

    async def refresh_sandbox(self, host: Host, sandbox_id: str) -> list[Step]:
        """Have a host repair a sandbox and announce its addresses again; returns what had to be repaired.

        Raises:
            NetweftError: As the agent says.
        """
        channel = self._channel(host)
        response: agent_pb2.RefreshSandboxResponse = await channel.connection.call(
            channel.stub.RefreshSandbox, agent_pb2.RefreshSandboxRequest(sandbox_id=sandbox_id)
        )
        return _steps(response.repaired)

    async def statistics(self, host: Host, sandbox_id: str) -> list[InterfaceStatistics]:
        """Return the counters of a sandbox's interfaces.

        Raises:
            NetweftError: As the agent says.
        """
        channel = self._channel(host)
        response: agent_pb2.GetStatisticsResponse = await channel.connection.call(
            channel.stub.GetStatistics, agent_pb2.GetStatisticsRequest(sandbox_id=sandbox_id)
        )
        names = InterfaceStatistics.__struct_fields__
        return [InterfaceStatistics(**{name: getattr(one, name) for name in names}) for one in response.interfaces]

    def _channel(self, host: Host) -> _Channel:
        key = (host.agent_target, host.tls_server_name)
        channel = self._channels.get(key)
        if channel is None:
            files = self._tls_files
            if files is not None and host.tls_server_name:
                files = dataclasses.replace(files, server_name=host.tls_server_name)
            connection = client.Connection(
                host.agent_target,
                tls_files=files,
                # Apply is idempotent by revisions.
                retry=(),
                timeout=self._timeout,
            )
            channel = _Channel(connection, agent_pb2_grpc.AgentServiceStub(connection.channel))
            connection.over_stream(channel.stub.ApplyStream, agent_pb2.ApplyStreamRequest, apply=channel.stub.Apply)
            self._channels[key] = channel
        return channel

    async def retain(self, hosts: Iterable[Host]) -> None:
        """Close channels to targets that no host has any more."""
        for key in set(self._channels) - {(host.agent_target, host.tls_server_name) for host in hosts}:
            await self._channels.pop(key).connection.close()


def _steps(messages: Iterable[plan_pb2.PlanStep]) -> list[Step]:
    return [Step(one.command, one.namespace, one.owner, one.inverse) for one in messages]
