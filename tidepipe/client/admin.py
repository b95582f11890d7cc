"""What operators do to a running cluster, as one call each; answers are plain dictionaries."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from google.protobuf.message import Message

from tidepipe.client.plain import plain
from tidepipe.client.requests import check_endpoint
from tidepipe.client.secured import no_answer
from tidepipe.client.wire import message_of
from tidepipe.v1 import admin_pb2 as pb
from tidepipe.v1 import admin_pb2_grpc as pb_grpc
from tidepipe_common.errors import UnavailableError
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.status import translated

TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0


class AdminClient:
    """AdminService of the router at HOST:PORT; use it as a context manager."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = check_endpoint(endpoint)
        self._channel = open_channel(self._endpoint)
        self._stub = pb_grpc.AdminServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def groups(self) -> dict[str, Any]:
        """Macro instances with their instances, routing policy, scaling."""
        return await self._ask(self._stub.GetGroups, pb.GetGroupsRequest())

    async def split(self, macro_id: str, count: int = 0) -> dict[str, Any]:
        """Split `count` instances (0: N_l) off a macro instance; the groups afterwards."""
        request = message_of(pb.SplitMacroInstanceRequest, macro_id=macro_id, count=count)
        reply = await self._ask(self._stub.SplitMacroInstance, request)
        return dict(reply["groups"])

    async def merge(self, into: str, other: str) -> dict[str, Any]:
        """Make two macro instances one; the groups afterwards."""
        request = message_of(pb.MergeMacroInstancesRequest, into=into, other=other)
        reply = await self._ask(self._stub.MergeMacroInstances, request)
        return dict(reply["groups"])

    async def move(self, instance_id: str, *, macro_id: str = "", router: str = "") -> dict[str, Any]:
        """Pass an instance on to another macro instance, or to another router; groups and unfinished."""
        place = {"router_address": router} if router else {"macro_id": macro_id}
        request = message_of(pb.MoveInstanceRequest, instance_id=instance_id, **place)
        return await self._ask(self._stub.MoveInstance, request)

    async def drain(
        self, instance_id: str, *, resume: bool = False, force: bool = False, finish: bool = False
    ) -> int:
        """Give an instance nothing new (or something again); its unfinished sequences.

        force: also the last one that takes requests. finish: what it has ends there, instead of going on at
        others.
        """
        counts = await self.drain_counts(instance_id, resume=resume, force=force, finish=finish)
        return counts["unfinished"]

    async def drain_counts(
        self, instance_id: str, *, resume: bool = False, force: bool = False, finish: bool = False
    ) -> dict[str, int]:
        """As `drain`: the sequences that it has (unfinished), and how many of them go on at other instances
        (handed_over)."""
        request = message_of(
            pb.DrainInstanceRequest, instance_id=instance_id, resume=resume, force=force, finish=finish
        )
        answer = await self._ask(self._stub.DrainInstance, request)
        return {name: int(answer[name]) for name in ("unfinished", "handed_over")}

    async def scale(self, how: str, count: int, *, force: bool = False, model: str = "") -> dict[str, Any]:
        """how: set, add or remove. force: beyond what the machines hold, and down to none.

        model: whose instances; empty: the router's own.
        """
        request = message_of(pb.ScaleInstancesRequest, **{how: count}, force=force, model=model)
        return await self._ask(self._stub.ScaleInstances, request)

    async def auto_scaling(
        self, on: bool, least: int = 0, most: int = 0, *, model: str = ""
    ) -> dict[str, Any]:
        """Scale by load from now on, or by hand. model: whose instances; empty: the router's own."""
        request = message_of(pb.SetAutoScalingRequest, on=on, least=least, most=most, model=model)
        return await self._ask(self._stub.SetAutoScaling, request)

    async def policies(self, routing: str = "", instance: str = "", instance_id: str = "") -> dict[str, Any]:
        """Change policies (empty: leave it); all of them afterwards."""
        request = message_of(
            pb.SetPoliciesRequest, routing=routing, instance_policy=instance, instance_id=instance_id
        )
        return await self._ask(self._stub.SetPolicies, request)

    async def storage(self) -> dict[str, Any]:
        """Who has stored how much."""
        return await self._ask(self._stub.GetStorage, pb.GetStorageRequest())

    async def clear_prefix_caches(self, instance_id: str = "") -> list[dict[str, Any]]:
        """Have an instance (empty: all) forget the KV blocks that it keeps: what became of it, for each."""
        request = message_of(pb.ClearPrefixCachesRequest, instance_id=instance_id)
        return list((await self._ask(self._stub.ClearPrefixCaches, request))["instances"])

    async def _ask(self, method: Any, request: Message) -> dict[str, Any]:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._channel.channel_ready()
        except TimeoutError as error:
            raise UnavailableError(await asyncio.to_thread(no_answer, self._endpoint, None)) from error
        with translated():
            reply = await method(request, timeout=TIMEOUT_S)
        return plain(reply)
