"""The predictor as a process: contract, refusal of nonsense, clean end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import grpc
import pytest

from common.rpc.channel import open_channel, wait_serving
from common.rpc.lifecycle import READY_FD
from tidepipe.v1 import predictor_pb2 as pb
from tidepipe.v1 import predictor_pb2_grpc as pb_grpc


def features(key: str = "a", max_tokens: int = 100, prompt_tokens: int = 5) -> pb.RequestFeatures:
    return pb.RequestFeatures(key=key, prompt_tokens=prompt_tokens, max_tokens=max_tokens, temperature=1.0)


async def test_process_predicts_learns_and_refuses_nonsense() -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [sys.executable, "-m", "predictor", "--listen", "127.0.0.1:0", "--window", "64"],
        env={**os.environ, READY_FD: str(writer)},
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    try:
        with os.fdopen(reader) as pipe:
            address = json.loads(pipe.readline())["ready"]
        await wait_serving(address, timeout=5)
        async with open_channel(address) as channel:
            stub = pb_grpc.PredictorServiceStub(channel)
            observations = [
                *(pb.Observation(features=features(), output_tokens=7) for _ in range(40)),
                pb.Observation(features=features(max_tokens=0), output_tokens=0),
                pb.Observation(features=features(max_tokens=10), output_tokens=11),
                pb.Observation(features=features(prompt_tokens=0), output_tokens=1),
            ]
            observed = await stub.Observe(pb.ObserveRequest(observations=observations), timeout=5)
            assert (observed.accepted, observed.rejected) == (40, 3)

            wanted = pb.PredictRequest(requests=[features("a"), features("b", max_tokens=3)])
            reply = await stub.Predict(wanted, timeout=5)
            assert [entry.key for entry in reply.predictions] == ["a", "b"]
            assert set(reply.predictions[0].tokens) == {7.0} and set(reply.predictions[1].tokens) == {3.0}

            for bad in ([features(max_tokens=0)], [features()] * 1025):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await stub.Predict(pb.PredictRequest(requests=bad), timeout=5)
                assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT

            status = await stub.GetPredictorStatus(pb.GetPredictorStatusRequest(), timeout=5)
            assert (status.window, status.observed, status.predicted) == (40, 40, 2)
            assert status.model_version == reply.model_version
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
