"""The router's side of ProvisionerService."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import grpc

from tidepipe.v1 import provisioner_pb2 as pb
from tidepipe.v1 import provisioner_pb2_grpc as pb_grpc
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.status import translated

START_TIMEOUT_S = 900.0
"""Loading a large model from disk takes minutes."""
STOP_TIMEOUT_S = 60.0
LIST_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class StartedInstance:
    """controller_address: HOST:PORT. place: where its processes are, in words."""

    instance_id: str
    controller_address: str
    place: str


@dataclass(frozen=True, slots=True)
class Stock:
    """What a provisioner has.

    instances: those that it started and has not stopped, whether they serve just now or not. more: for how
    many there is room beside them (None: not known). why: what that rests on, in words.
    """

    instances: frozenset[str]
    more: int | None
    why: str


class Provisioner(Protocol):
    """Starts and stops instances."""

    async def start(self) -> StartedInstance:
        """One more; returns when it serves. TidePipeError if it cannot be."""
        ...

    async def stop(self, instance_id: str) -> None:
        """End one; returns when it is gone. NotFoundError if it was not started here."""
        ...

    async def stock(self) -> Stock:
        """What it has, and could start beside it."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


class RemoteProvisioner:
    """A Provisioner behind ProvisionerService."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub = pb_grpc.ProvisionerServiceStub(channel)

    async def start(self) -> StartedInstance:
        """Part of Provisioner."""
        with translated():
            reply = await self._stub.StartInstance(pb.StartInstanceRequest(), timeout=START_TIMEOUT_S)
        one = reply.instance
        return StartedInstance(one.instance_id, one.controller_address, one.place)

    async def stop(self, instance_id: str) -> None:
        """Part of Provisioner."""
        with translated():
            await self._stub.StopInstance(
                pb.StopInstanceRequest(instance_id=instance_id), timeout=STOP_TIMEOUT_S
            )

    async def stock(self) -> Stock:
        """Part of Provisioner."""
        with translated():
            reply = await self._stub.ListProvisioned(pb.ListProvisionedRequest(), timeout=LIST_TIMEOUT_S)
        names = frozenset(one.instance_id for one in reply.instances)
        return Stock(names, reply.room if reply.HasField("room") else None, reply.room_reason)

    async def close(self) -> None:
        """Part of Provisioner."""
        await self._channel.close()


def connect_provisioner(address: str) -> RemoteProvisioner:
    """The one at HOST:PORT, until it is closed."""
    return RemoteProvisioner(open_channel(address))
