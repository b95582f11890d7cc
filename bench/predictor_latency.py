"""What a prediction takes: 64 prompts through the core, and through a service process."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.service_process import started
from tidepipe.v1 import predictor_pb2 as pb
from tidepipe.v1 import predictor_pb2_grpc as pb_grpc
from tidepipe_common.codec.prompt import prompt_to_wire
from tidepipe_common.lengths.prompt import prompt_features
from tidepipe_common.lengths.request import RequestFeatures
from tidepipe_common.lengths.store import load_lengths
from tidepipe_common.rpc.channel import open_channel

BATCH = 64
CALLS = 1000


def measure(model: Path, prompts: list[str]) -> dict[str, Any]:
    """CPU milliseconds of one core per batch (p50, p99), wall too; sizes in bytes."""
    trained = load_lengths(model)
    texts = prompts[:BATCH]

    def features() -> list[RequestFeatures]:
        return [RequestFeatures(len(text) // 4 + 1, 512, 0.7, prompt_features(text)) for text in texts]

    ready = features()
    return {
        "batch": BATCH,
        "calls": CALLS,
        "features_ms": _times(lambda: features()),
        "model_ms": _times(lambda: trained.predict(ready)),
        "text_to_prediction_ms": _times(lambda: trained.predict(features())),
        "rpc": asyncio.run(_through_service(model, ready)),
        "model_bytes": {
            path.name: path.stat().st_size for path in (model / "model.json", model / "trees.txt")
        },
    }


def _times(call: Callable[[], object]) -> dict[str, float]:
    for _ in range(20):
        call()
    gc.collect()
    cpu, wall = np.empty(CALLS), np.empty(CALLS)
    for index in range(CALLS):
        began, began_wall = time.process_time(), time.perf_counter()
        call()
        cpu[index], wall[index] = time.process_time() - began, time.perf_counter() - began_wall
    return {
        "cpu_p50": 1e3 * float(np.quantile(cpu, 0.5)),
        "cpu_p99": 1e3 * float(np.quantile(cpu, 0.99)),
        "wall_p50": 1e3 * float(np.quantile(wall, 0.5)),
        "wall_p99": 1e3 * float(np.quantile(wall, 0.99)),
    }


async def _through_service(model: Path, requests: list[RequestFeatures]) -> dict[str, float]:
    """The service's CPU time per call (mean), the caller's waiting (p50, p99), resident memory."""
    with started("predictor", "--listen", "127.0.0.1:0", "--model", str(model)) as (process, announced):
        message = pb.PredictRequest(
            requests=[
                pb.RequestFeatures(
                    key=str(index),
                    prompt_tokens=one.prompt_tokens,
                    max_tokens=one.max_tokens,
                    temperature=one.temperature,
                    prompt=prompt_to_wire(one.prompt),
                )
                for index, one in enumerate(requests)
            ]
        )
        about = psutil.Process(process.pid)
        async with open_channel(announced["ready"]) as channel:
            stub = pb_grpc.PredictorServiceStub(channel)
            for _ in range(20):
                await stub.Predict(message, timeout=10)
            before = sum(about.cpu_times()[:2])
            waits = np.empty(CALLS)
            for index in range(CALLS):
                began = time.perf_counter()
                await stub.Predict(message, timeout=10)
                waits[index] = time.perf_counter() - began
            spent = sum(about.cpu_times()[:2]) - before
        return {
            "service_cpu_ms": 1e3 * spent / CALLS,
            "wall_p50_ms": 1e3 * float(np.quantile(waits, 0.5)),
            "wall_p99_ms": 1e3 * float(np.quantile(waits, 0.99)),
            "request_bytes": float(message.ByteSize()),
            "service_rss_mib": about.memory_info().rss / 2**20,
        }
