"""The predictor as a process: contract, refusal of nonsense, learning beside the service, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np
import pytest

from bench.service_process import Process, started
from tidepipe.v1 import predictor_pb2 as pb
from tidepipe.v1 import predictor_pb2_grpc as pb_grpc
from tidepipe.v1 import prompt_pb2
from tidepipe_common.codec.prompt import prompt_to_wire
from tidepipe_common.lengths.prompt import VERSION, prompt_features
from tidepipe_common.rpc.channel import open_channel, wait_serving
from tidepipe_common.types.length_signal import pack_signal

Stub: TypeAlias = "pb_grpc.PredictorServiceAsyncStub"
STATUS = pb.GetPredictorStatusRequest()


def features(
    key: str = "a", max_tokens: int = 100, prompt_tokens: int = 5, text: str = ""
) -> pb.RequestFeatures:
    return pb.RequestFeatures(
        key=key,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        temperature=1.0,
        prompt=prompt_to_wire(prompt_features(text)) if text else None,
    )


@contextlib.asynccontextmanager
async def predictor(*arguments: str) -> AsyncIterator[tuple[Stub, Process]]:
    with started("predictor", "--listen", "127.0.0.1:0", *arguments) as (process, announced):
        address = announced["ready"]
        await wait_serving(address, timeout=20)
        async with open_channel(address) as channel:
            yield pb_grpc.PredictorServiceStub(channel), process


async def test_process_predicts_learns_and_refuses_nonsense() -> None:
    async with predictor("--window", "64") as (stub, process):
        observations = [
            *(pb.Observation(features=features(), output_tokens=7) for _ in range(40)),
            pb.Observation(features=features(max_tokens=0), output_tokens=0),
            pb.Observation(features=features(max_tokens=10), output_tokens=11),
            pb.Observation(features=features(prompt_tokens=0), output_tokens=1),
            pb.Observation(
                features=pb.RequestFeatures(
                    prompt_tokens=1,
                    max_tokens=9,
                    prompt=prompt_pb2.PromptFeatures(version=VERSION, dense=[1]),
                ),
                output_tokens=1,
            ),
            pb.Observation(
                features=pb.RequestFeatures(
                    prompt_tokens=1, max_tokens=9, prompt=prompt_pb2.PromptFeatures(unlearned=True)
                ),
                output_tokens=1,
            ),
        ]
        observed = await stub.Observe(pb.ObserveRequest(observations=observations), timeout=5)
        assert (observed.accepted, observed.rejected) == (40, 5)

        wanted = pb.PredictRequest(requests=[features("a"), features("b", max_tokens=3)])
        reply = await stub.Predict(wanted, timeout=5)
        assert [entry.key for entry in reply.predictions] == ["a", "b"]
        assert set(reply.predictions[0].tokens) == {7.0} and set(reply.predictions[1].tokens) == {3.0}

        for bad in ([features(max_tokens=0)], [features()] * 1025):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Predict(pb.PredictRequest(requests=bad), timeout=5)
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT

        status = await stub.GetPredictorStatus(STATUS, timeout=5)
        assert (status.window, status.observed, status.predicted) == (40, 40, 2)
        assert status.model_version == reply.model_version
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def answers(count: int, seed: int) -> list[pb.Observation]:
    """Stories are long, labels are short; the text tells them apart."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        long = bool(chance.integers(2))
        number = chance.integers(1000)
        text = f"Write a long story about sea {number}." if long else f"Classify {number}: true or false?"
        length = int((300 if long else 6) * np.exp(0.3 * chance.normal())) + 1
        one = features(max_tokens=4000, text=text)
        one.signal, one.model = signal_of(long), "m"
        found.append(pb.Observation(features=one, output_tokens=length))
    return found


def signal_of(long: bool) -> bytes:
    return pack_signal([1.0 if long else -1.0, 0.5])


async def median_by_signal(stub: Stub) -> float:
    """Of a long answer to a prompt without text: only a head on signals tells it."""
    one = features(max_tokens=4000)
    one.signal, one.model = signal_of(True), "m"
    reply = await stub.Predict(pb.PredictRequest(requests=[one]), timeout=5)
    return reply.predictions[0].tokens[2]


async def medians(stub: Stub) -> list[float]:
    texts = ("Write a long story about the sea.", "Classify this: true or false?")
    wanted = [features(max_tokens=4000, text=text) for text in texts]
    reply = await stub.Predict(pb.PredictRequest(requests=wanted), timeout=5)
    return [entry.tokens[list(entry.levels).index(0.5)] for entry in reply.predictions]


async def test_learns_beside_the_service_and_survives_kill_and_damage(tmp_path: Path) -> None:
    folder, ours = tmp_path / "state", {"champion", "challenger", "verdict.json"}
    state = ["--state", str(folder), "--train-after", "200"]
    async with predictor(*state) as (stub, _):
        await stub.Observe(pb.ObserveRequest(observations=answers(240, seed=1)), timeout=5)
        async with asyncio.timeout(120):
            while (status := await stub.GetPredictorStatus(STATUS, timeout=5)).adopted == 0:
                # Meanwhile it answers.
                await medians(stub)
                assert not status.last_failure
                # What it learns from comes to no disk.
                there = {one.name for one in folder.glob("job-*/*") if not one.name.startswith(".")}
                assert there <= ours, there
                await asyncio.sleep(0.1)
        assert status.model_version == "hazard/1"
        assert await medians(stub) == pytest.approx([300, 7], rel=0.4)
        async with asyncio.timeout(120):
            while await median_by_signal(stub) < 200:  # noqa: ASYNC110 - nothing else tells
                await asyncio.sleep(0.1)
    # That was kill -9. What was learnt is there again.
    async with predictor(*state) as (stub, _):
        assert await medians(stub) == pytest.approx([300, 7], rel=0.4)
        assert await median_by_signal(stub) > 200
    # A damaged model is told of and not used.
    (tmp_path / "state" / "current" / "trees.txt").write_text("no trees")
    async with predictor(*state) as (stub, _):
        status = await stub.GetPredictorStatus(STATUS, timeout=5)
        assert status.model_version.startswith("running-quantile") and "damaged" in status.last_failure
        long, short = await medians(stub)
        assert long == short
