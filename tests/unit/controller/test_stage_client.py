"""What the client of a stage leaves behind: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from controller.runtime.pipeline import _together
from controller.runtime.stage_client import StageClient, StageLostError
from tidepipe.v1 import stage_pb2, stage_pb2_grpc
from tidepipe_common.errors import UnavailableError


class Ends(stage_pb2_grpc.StageServiceServicer):
    """A stage that ends the epoch as soon as it has begun. waited: whether gRPC's task was there then."""

    waited = False

    async def Run(  # noqa: N802
        self, request_iterator: AsyncIterator[stage_pb2.RunRequest], context: object
    ) -> AsyncIterator[stage_pb2.RunResponse]:
        await anext(request_iterator)
        self.waited = _waits_for_plans()
        yield stage_pb2.RunResponse()


def _waits_for_plans() -> bool:
    return any("_consume_request_iterator" in repr(one) for one in asyncio.all_tasks())


async def test_no_task_outlives_an_epoch_that_the_stage_ends() -> None:
    """gRPC's own waits for the next plan, unless there is a last one."""
    server = grpc.aio.server()
    stage = Ends()
    stage_pb2_grpc.add_StageServiceServicer_to_server(stage, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = StageClient(f"127.0.0.1:{port}", 0, 1)
    with pytest.raises(StageLostError, match="ended the stream"):
        await client.run(1, lambda stage, report: None)
    async with asyncio.timeout(10):
        while _waits_for_plans():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert stage.waited, "gRPC calls it otherwise now"
    await client.close()
    await server.stop(None)


async def test_one_stage_that_fails_ends_what_the_others_are_asked() -> None:
    """Their answers would come in the middle of the next try."""
    answered: list[str] = []

    async def fails() -> None:
        raise UnavailableError("away")

    async def answers() -> None:
        await asyncio.sleep(0.05)
        answered.append("late")

    with pytest.raises(UnavailableError, match="away"):
        await _together([answers(), fails()])
    await asyncio.sleep(0.1)
    assert not answered
