"""What a prediction takes: 64 prompts through the core, through a service process, and at 200 requests/s.

    python -m bench.predictor_latency DATA.jsonl MODEL/ [--seconds 20]

At a rate: requests come to a controller at random times, each is asked for when it comes, and a moment later
with its length signal, which a head answers; what ends is observed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.service_process import started
from controller.runtime.predictor_client import LengthOracle, next_refresh
from controller.scheduler.actions import Finish
from controller.scheduler.sequence import Sequence
from predictor.evaluation.signal_head import COLUMNS, SignalHead
from predictor.head_store import head_folder, save_head
from predictor.training.fit_head import fit_head
from predictor.training.head_samples import HeadSamples
from tidepipe.v1 import predictor_pb2 as pb
from tidepipe.v1 import predictor_pb2_grpc as pb_grpc
from tidepipe_common.codec.prompt import prompt_to_wire
from tidepipe_common.lengths.calibration import Ends
from tidepipe_common.lengths.prompt import prompt_features
from tidepipe_common.lengths.request import RequestFeatures
from tidepipe_common.lengths.store import load_lengths
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.types.length_signal import NUMBERS, pack_signal
from tidepipe_common.types.sampling import FinishReason, SamplingParams

BATCH = 64
CALLS = 1000
RATE = 200.0
SIGNAL_AFTER_S = 0.2
ANSWER_TOKENS = 300


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
        message = pb.PredictRequest(requests=[_wire(str(index), one) for index, one in enumerate(requests)])
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


def _wire(key: str, one: RequestFeatures, **more: Any) -> pb.RequestFeatures:
    """As a controller asks for it. more: further fields."""
    return pb.RequestFeatures(
        key=key,
        prompt_tokens=one.prompt_tokens,
        max_tokens=one.max_tokens,
        temperature=one.temperature,
        prompt=prompt_to_wire(one.prompt),
        **more,
    )


def sent(prompts: list[str], answer_tokens: int) -> dict[str, float]:
    """Bytes that one request sends to the predictor, means: when it comes, with its signal, as it
    grows, and at its end. `signal`: what the last stage sends with the first token, and with no other.
    """
    signal = pack_signal([0.5] * NUMBERS)
    asked, again, grown = 0.0, 0.0, 0
    for text in prompts:
        one = RequestFeatures(len(text) // 4 + 1, 512, 0.7, prompt_features(text))
        # Ids are 32 characters, a model's digest 64.
        asked += _wire("0" * 32, one).ByteSize() / len(prompts)
        again += _wire("0" * 32, one, signal=signal, model="0" * 64).ByteSize() / len(prompts)
    at = 0
    while (at := next_refresh(at)) < answer_tokens:
        grown += 1
    whole = asked + (2 + grown) * again
    return {
        "signal": float(len(signal)),
        "asked": asked,
        "asked_with_signal": again,
        "refreshed": float(grown),
        "per_output_token": whole / answer_tokens,
    }


def _head() -> SignalHead:
    """One on signals that say nothing: it takes as long as any."""
    chance = np.random.default_rng(1)
    lengths = np.ceil(100.0 * np.exp(chance.normal(size=400)))
    columns = chance.normal(size=(400, COLUMNS))
    open_ends = np.zeros(400, dtype=np.bool_)
    ends = Ends(open_ends, open_ends, np.full(400, 512.0), np.zeros(400, dtype=np.int64))
    samples = HeadSamples(columns, lengths, open_ends, ends, np.arange(400), np.ones(400))
    return fit_head(samples, "head/1")


async def at_rate(model: Path, prompts: list[str], seconds: float) -> dict[str, float]:
    """What one controller waits for (p50, p99) at RATE requests a second, and the service's CPU time."""
    chance = np.random.default_rng(2)
    signal = pack_signal(chance.normal(size=NUMBERS).tolist())
    asked: dict[str, float] = {}
    waits: list[float] = []
    fell_back = 0

    def predicted(name: str, *_: float) -> None:
        nonlocal fell_back
        began = asked.pop(name, None)
        if oracle.fallbacks > fell_back:
            # Answered at once, as the predictor was silent: that says nothing of it.
            fell_back += 1
        elif began is not None:
            waits.append(time.perf_counter() - began)

    features = [prompt_features(text) for text in prompts]
    with tempfile.TemporaryDirectory() as state:
        save_head(_head(), "m", head_folder(Path(state), "m"))
        arguments = ("--listen", "127.0.0.1:0", "--model", str(model), "--state", state)
        with started("predictor", *arguments) as (process, announced):
            about = psutil.Process(process.pid)
            start_cpu, start_rss = sum(about.cpu_times()[:2]), about.memory_info().rss
            oracle = LengthOracle(announced["ready"], predicted)
            serving = asyncio.create_task(oracle.run())

            async def request(number: int) -> None:
                name, place = str(number), number % len(prompts)
                tokens = (1,) * (len(prompts[place]) // 4 + 1)
                asked[name] = time.perf_counter()
                oracle.ask(Sequence(name, tokens, SamplingParams(), 512, 0.0, None), features[place])
                await asyncio.sleep(SIGNAL_AFTER_S)
                asked[name] = time.perf_counter()
                oracle.signal(name, "m", signal)
                await asyncio.sleep(SIGNAL_AFTER_S)
                oracle.ended(Finish(name, FinishReason.STOP, 100))

            await request(0)
            waits.clear()
            before, begin = sum(about.cpu_times()[:2]), time.perf_counter()
            coming, number = begin, 0
            async with asyncio.TaskGroup() as group:
                while coming < begin + seconds:
                    coming += chance.exponential(1.0 / RATE)
                    await asyncio.sleep(max(0.0, coming - time.perf_counter()))
                    number += 1
                    group.create_task(request(number))
            await asyncio.sleep(1.0)
            spent, wall = sum(about.cpu_times()[:2]) - before, time.perf_counter() - begin - 1.0
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
    return {
        "requests_per_s": number / wall,
        "predictions": float(len(waits)),
        "wall_p50_ms": 1e3 * float(np.quantile(waits, 0.5)),
        "wall_p99_ms": 1e3 * float(np.quantile(waits, 0.99)),
        "fallbacks": float(oracle.fallbacks),
        "service_cpu_ms_per_request": 1e3 * spent / number,
        "start_cpu_s": start_cpu,
        "start_rss_mib": start_rss / 2**20,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA.jsonl")
    parser.add_argument("model", type=Path, metavar="MODEL/")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with options.data.open(encoding="utf-8") as source:
        prompts = [str(json.loads(line)["prompt"]) for line in source]
    found = asyncio.run(at_rate(options.model, prompts, options.seconds))
    print(json.dumps({**found, "bytes": sent(prompts, ANSWER_TOKENS)}, indent=1))


if __name__ == "__main__":
    main()
