"""Podman's netavark: its calls come over the socket of CNI's plugin, which is netavark's too, and are done as CNI's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from netweft_common import errors

from netweft_agent.domain.cluster import Cluster
from netweft_agent.frontends import cni, netavark_config
from netweft_agent.frontends.cni_config import CniError, Code, decode


class Answers(Protocol):
    """Who answers CNI."""

    async def answer(self, frame: bytes, netns: int | None) -> tuple[int, bytes]:
        """Return exit code and text."""


class NetavarkService:
    """Answers netavark's plugin, and hands calls of CNI on.

    Args:
        cni: Who answers those.
        cluster: Where networks are looked up.
    """

    def __init__(self, *, cni: Answers, cluster: Cluster) -> None:
        self._cni = cni
        self._cluster = cluster

    async def answer(self, frame: bytes, netns: int | None) -> tuple[int, bytes]:
        """Answer one call, as CniService does."""
        try:
            variables, config = cni.unpack(frame)
        except CniError:
            return await self._cni.answer(frame, netns)
        if netavark_config.COMMAND not in variables:
            return await self._cni.answer(frame, netns)
        try:
            return 0, await self._do(variables, config, frame, netns)
        except CniError as error:
            return _failure(error.message)
        except errors.NetweftError as error:
            return _failure(cni.translate(error).message)

    async def _do(self, variables: cni.Variables, config: bytes, frame: bytes, netns: int | None) -> bytes:
        verb = variables[netavark_config.COMMAND]
        if verb == "create":
            return json.dumps(await self._create(decode(config, netavark_config.STDIN))).encode()
        code, text = await self._cni.answer(frame, netns)
        said = json.loads(text) if text else {}
        if code:
            raise CniError(Code(said["code"]), said["msg"])
        return json.dumps(netavark_config.status(said)).encode() if verb == "setup" else b""

    async def _create(self, network: Mapping[str, Any]) -> dict[str, Any]:
        name = netavark_config.network_of(network)
        try:
            subnets = await self._cluster.subnets(name)
        except errors.NotFound as error:
            raise CniError(
                Code.BAD_CONFIGURATION,
                f"there is no network {name} of netweft's: `netweft network create {name}`, or name one that is there "
                "with --opt netweft.network=NAME",
            ) from error
        return netavark_config.created(network, subnets)


def _failure(message: str) -> tuple[int, bytes]:
    return 1, json.dumps({"error": message}).encode()
