"""What strangers at the gRPC ports of a cluster's services cost its clients: `python -m bench.strangers`.

Each kind of garbage is sent once, by who shows the cluster's token, while a canary asks for one short answer
after the other: how the call ends, the longest that the canary waited between two tokens, and the epochs that
the stages lost. Prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import grpc

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe.v1 import controller_pb2, controller_pb2_grpc, sampling_pb2, stage_pb2, stage_pb2_grpc
from tidepipe_common.errors import TidePipeError
from tidepipe_common.limits import MESSAGE_BYTES
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.types.plan import PROTOCOL_VERSION

WAIT_S = 100.0
BEFORE_S, AFTER_S = 0.5, 2.0
BEYOND = 2**31 - 1
"""A token id that no vocabulary has."""
Call = Any
"""Of grpc.aio, of any kind."""


class Canary:
    """A client that asks again and again. longest_s: between two of its tokens. failed: of its answers."""

    def __init__(self, client: AsyncClient) -> None:
        self.longest_s = 0.0
        self.failed = 0
        self._client = client
        self._task = asyncio.create_task(self._ask())
        self._over = False

    async def end(self) -> None:
        """When its last answer has come."""
        self._over = True
        await self._task

    async def _ask(self) -> None:
        while not self._over:
            last = time.monotonic()
            sampling: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
            try:
                async for _ in self._client.stream([1, 2, 3], timeout=60, **sampling):
                    now = time.monotonic()
                    self.longest_s = max(self.longest_s, now - last)
                    last = now
            except TidePipeError:
                self.failed += 1


def handed_over(**fields: Any) -> controller_pb2.SubmitSequencesRequest:
    """One sequence, ordinary but for these fields."""
    usual: dict[str, Any] = {
        "prompt_token_ids": (1, 2, 3),
        "sampling": sampling_pb2.SamplingParams(max_tokens=3),
    }
    spec = controller_pb2.SequenceSpec(sequence_id=f"strange-{time.monotonic_ns()}", **(usual | fields))
    return controller_pb2.SubmitSequencesRequest(router_id="stranger", sequences=[spec])


def garbage(
    controller: controller_pb2_grpc.ControllerServiceAsyncStub,
    stage: stage_pb2_grpc.StageServiceAsyncStub,
    about: stage_pb2.DescribeStageResponse,
) -> dict[str, Callable[[int], Call]]:
    """Calls by their names; each is made with the number of the present epoch."""
    odd = sampling_pb2.SamplingParams

    def configure(**fields: Any) -> Call:
        good: dict[str, Any] = {"stage_count": 2, "layer_end": 1, "block_size": 16, "max_step_tokens": 64}
        request = stage_pb2.ConfigureRequest(
            protocol_version=PROTOCOL_VERSION, model_fingerprint=about.model_fingerprint, **(good | fields)
        )
        return stage.Configure(request, timeout=WAIT_S)

    def submit(**fields: Any) -> Call:
        return controller.SubmitSequences(handed_over(**fields), timeout=WAIT_S)

    def cancel(count: int) -> Call:
        request = controller_pb2.CancelSequencesRequest(sequence_ids=[""] * count)
        return controller.CancelSequences(request, timeout=WAIT_S)

    many = controller_pb2.SubmitSequencesRequest(sequences=[controller_pb2.SequenceSpec()] * 500_000)
    return {
        "a token beyond the vocabulary": lambda epoch: submit(prompt_token_ids=(1, BEYOND)),
        "an output beyond it": lambda epoch: submit(output_token_ids=(BEYOND,)),
        "temperature NaN": lambda epoch: submit(sampling=odd(max_tokens=3, temperature=math.nan)),
        "2^31 log-probabilities": lambda epoch: submit(sampling=odd(max_tokens=3, logprobs=BEYOND)),
        "500,000 empty sequences": lambda epoch: controller.SubmitSequences(many, timeout=WAIT_S),
        "2,000,000 ids to cancel": lambda epoch: cancel(2_000_000),
        "4,000,000 ids to cancel": lambda epoch: cancel(4_000_000),
        "a stage's plans without a word": lambda epoch: stage.Run(iter(()), timeout=WAIT_S),
        "activations without a word": lambda epoch: stage.Forward(iter(()), timeout=WAIT_S),
        "a second controller": lambda epoch: stage.Run(iter([stage_pb2.RunRequest(epoch=epoch)]), timeout=5),
        "an old epoch": lambda epoch: stage.Run(iter([stage_pb2.RunRequest(epoch=epoch - 1)]), timeout=5),
        "a forged ticket": lambda epoch: stage.FetchBlocks(
            stage_pb2.FetchBlocksRequest(epoch=epoch, ticket=b"0" * 16, count=1), timeout=WAIT_S
        ),
        "patience NaN": lambda epoch: configure(epoch=epoch + 1, patience_s=math.nan),
        "epoch 2^64-1": lambda epoch: configure(epoch=2**64 - 1),
    }


async def ended(call: Call) -> str:
    """How a call ends."""
    try:
        reply = await (call.read() if hasattr(call, "read") else call)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {(error.details() or '')[:80]}"
    finally:
        call.cancel()
    if isinstance(reply, controller_pb2.SubmitSequencesResponse) and reply.verdicts:
        one = reply.verdicts[0]
        return f"{controller_pb2.SubmitVerdict.Outcome.Name(one.outcome)}: {one.reason[:80]}"
    return "answered"


async def run(model: str, only: str) -> None:
    """Start a cluster, try everything, print a line each. only: what has this in its name."""
    config = ClusterConfig(model=model, stages=2, dtype="float32", kv_blocks=256)
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address) as client:
        at = {child.name: child.address for child in cluster.children}

        def channel(name: str) -> grpc.aio.Channel:
            return open_channel(
                at[name], credentials=cluster.service_credentials, max_message_bytes=4 * MESSAGE_BYTES
            )

        async with channel("controller-0") as one, channel("stage-worker-0-0") as other:
            stage = stage_pb2_grpc.StageServiceStub(other)
            describe = stage_pb2.DescribeStageRequest()
            about = await stage.DescribeStage(describe)
            await client.generate([1, 2, 3], temperature=0, max_tokens=3)
            print("| sent | how it ends | canary's longest wait, s | epochs lost | restarts |")
            print("|---|---|---|---|---|")
            calls = garbage(controller_pb2_grpc.ControllerServiceStub(one), stage, about)
            for name in [name for name in calls if only in name]:
                call = calls[name]
                before = (await stage.DescribeStage(describe)).epoch
                canary = Canary(client)
                await asyncio.sleep(BEFORE_S)
                how = await ended(call(before))
                await asyncio.sleep(AFTER_S)
                await canary.end()
                lost = (await stage.DescribeStage(describe)).epoch - before
                waited = f"{canary.longest_s:.2f}" + (", fails" if canary.failed else "")
                restarts = sum(child.restart_count for child in cluster.children)
                print(f"| {name} | {how} | {waited} | {lost} | {restarts} |", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", default="", metavar="TEXT", help="what has this in its name")
    given = parser.parse_args()
    asyncio.run(run(given.model, given.only))


if __name__ == "__main__":
    main()
