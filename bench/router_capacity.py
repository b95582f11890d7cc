"""What one core of a router carries: decisions per second, and streamed tokens per second.

    python -m bench.router_capacity --model smollm2-135m -o docs/images/router-capacity

Writes OUT.json and OUT.png.

Decisions: the routing core alone, 64 instances in macro instances of up to 11, each reporting ten times a
second; with and without 16,384 keys of computed beginnings that each holds, of which a few come and go with
every report, and requests of which most find theirs somewhere. Streams: a real router process between a
synthetic instance and a client with many gRPC streams, each in a process of its own. Both are counted in CPU
time of the router alone, so a busy machine changes little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from bench.synthetic_instance import TOKEN, serve
from launcher.ports import choose_port
from router.scheduler.events import InstanceJoined, InstanceReported, RequestArrived, Route
from router.scheduler.instance_report import InstanceReport, Slack
from router.scheduler.mitosis import Bounds
from router.scheduler.prefill import PrefillTime
from router.scheduler.request import RouteRequest
from router.scheduler.routing_scheduler import OverallConfig, RoutingScheduler
from router.scheduler.slo import INTERACTIVE
from router.scheduler.view import InstanceFacts
from tidepipe.v1 import inference_pb2 as pb
from tidepipe.v1 import inference_pb2_grpc as pb_grpc
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.linear import RooflineLinear
from tidepipe_common.latency.model import LatencyModel, Parallelism
from tidepipe_common.latency.shapes import SHAPES
from tidepipe_common.latency.work import PrefillWork
from tidepipe_common.prefix import MAX_TOLD, STRIDE
from tidepipe_common.rpc.channel import open_channel, wait_serving
from tidepipe_common.settings.defaults import BLOCK_SIZE
from tidepipe_common.types.holdings import PrefixHoldings
from tidepipe_common.types.plan import Phase

REPORT_S = 0.1
KEYS = 16
"""Of a beginning: at 128 tokens a key a conversation of 2,048 tokens."""
VOCABULARY = 49_152


class Conversations:
    """Beginnings of `KEYS` keys each, which an instance holds: as many as it may tell of."""

    def __init__(self, instance: int) -> None:
        self._next = instance << 32
        self._held: list[tuple[int, ...]] = []
        self._version = instance << 32
        self._told = False
        for _ in range(MAX_TOLD // KEYS):
            self._held.append(self._new())

    def _new(self) -> tuple[int, ...]:
        self._next += KEYS
        return tuple(mix(number) for number in range(self._next - KEYS, self._next))

    def some(self, number: int) -> tuple[int, ...]:
        """What a request begins with that continues one of them."""
        return self._held[number % len(self._held)]

    def news(self) -> PrefixHoldings:
        """All of them at first, then a new one in place of the oldest with each report."""
        self._version += 1
        if not self._told:
            self._told = True
            added = tuple(key for one in self._held for key in one)
            return PrefixHoldings(self._version, True, BLOCK_SIZE, STRIDE, added)
        gone, came = self._held.pop(0), self._new()
        self._held.append(came)
        return PrefixHoldings(self._version, False, BLOCK_SIZE, STRIDE, came, gone)


def mix(number: int) -> int:
    """A key that looks like a hash."""
    return number * 0x9E3779B97F4A7C15 & (1 << 64) - 1


def decisions(
    instances: int, requests: int, rate: float, policy: str, *, held: bool = False
) -> dict[str, float]:
    """CPU time of arrivals and reports in the routing core, at `rate` requests per second of virtual time.

    held: instances hold beginnings, and requests have some.
    """
    holdings = [Conversations(number + 1) for number in range(instances)] if held else []
    shape, device = SHAPES["llama2-13b"], hardware("l20")
    cost = LatencyModel(shape, device, RooflineLinear(shape, device), Parallelism(4))
    scheduler = RoutingScheduler(OverallConfig(policy, Bounds(6, 11)))
    names = [f"i{number}" for number in range(instances)]
    for name in names:
        scheduler.on(InstanceJoined(InstanceFacts(name, PrefillTime(cost, 4), 4096, 8192)), 0.0)
    sent = dict.fromkeys(names, 0)
    took: list[float] = []
    reports = routed = 0
    reported_s = 0.0
    next_report = 0.0
    for number in range(requests):
        now = number / rate
        while next_report <= now:
            # Spread over the interval, as real ones are.
            place = reports % instances
            name = names[place]
            status = _status(next_report, sent[name], reports)
            if held:
                status = replace(status, holdings=holdings[place].news())
            start = time.thread_time()
            scheduler.on(InstanceReported(name, status), next_report)
            reported_s += time.thread_time() - start
            reports += 1
            next_report += REPORT_S / instances
        prompt = 200 + number * 37 % 800
        request = RouteRequest(f"r{number}", prompt, 512, INTERACTIVE, now)
        if held:
            # Three of four continue what an instance holds; one is new, and as long.
            prefix = tuple(map(mix, range(number * KEYS, (number + 1) * KEYS)))
            if number % 4:
                prefix = holdings[number * 7 % instances].some(number)
            request = replace(request, prefix=prefix, prompt_tokens=KEYS * STRIDE * BLOCK_SIZE + prompt)
        start = time.thread_time()
        actions = scheduler.on(RequestArrived(request), now)
        took.append(time.thread_time() - start)
        for action in actions:
            if isinstance(action, Route) and action.choice.instance_id is not None:
                sent[action.choice.instance_id] += 1
                routed += 1
    cpu_s = sum(took) + reported_s
    took.sort()
    return {
        "instances": instances,
        "requests": requests,
        "routed": routed,
        "reports": reports,
        "decisions_per_cpu_s": requests / cpu_s,
        "report_ms": 1000 * reported_s / reports,
        "decision_p50_ms": 1000 * took[len(took) // 2],
        "decision_p99_ms": 1000 * took[int(0.99 * len(took))],
    }


def _status(now: float, accepted: int, number: int) -> InstanceReport:
    """An instance under load: a quarter are in a prefill window, the others decode with some slack."""
    filling = number % 4 == 0
    return InstanceReport(
        taken=now,
        accepted=accepted,
        phase=Phase.PREFILL if filling else Phase.DECODE,
        switched=now - 0.5,
        sequences=100,
        tokens=60_000,
        kv_free=200_000,
        kv_total=300_000,
        kv_peak=150_000,
        window=PrefillWork(4000, 2e6) if filling else PrefillWork(),
        left=PrefillWork(2000, 1e6) if filling else PrefillWork(),
        slack=Slack(90, now + 3.0, now + 1.0 + number % 5, now + 2.0 + number % 5),
    )


def _run_instance(router: str, step_s: float, model: str) -> None:
    asyncio.run(serve("synthetic", router, step_s, VOCABULARY, model))


def _run_clients(router: str, streams: int, tokens: int, answers: Any) -> None:
    answers.put(asyncio.run(_stream_all(router, streams, tokens)))


async def _stream_all(router: str, streams: int, tokens: int) -> dict[str, int]:
    counts = {"tokens": 0, "messages": 0}

    async def one(stub: pb_grpc.InferenceServiceAsyncStub, number: int) -> None:
        request = pb.InferenceRequest(request_id=f"s{number}", skip_text=True)
        request.token_ids.ids.extend([TOKEN] * 8)
        request.sampling.max_tokens = tokens
        request.sampling.ignore_eos = True
        async for message in stub.Generate(pb.GenerateRequest(request=request), timeout=600):
            counts["tokens"] += len(message.delta.token_ids)
            counts["messages"] += 1

    async with open_channel(router) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        await asyncio.gather(*(one(stub, number) for number in range(streams)))
    return counts


def streams(model: str, count: int, tokens: int, step_s: float) -> dict[str, float]:
    """CPU time of a router process that streams `tokens` tokens to each of `count` clients."""
    address = f"127.0.0.1:{choose_port('127.0.0.1', 0)}"
    command = [sys.executable, "-m", "router", "--listen", address, "--model", model, "--log-level", "error"]
    processes = get_context("spawn")
    answers = processes.Queue()
    router = subprocess.Popen(command)
    instance = processes.Process(target=_run_instance, args=(address, step_s, model))
    clients = processes.Process(target=_run_clients, args=(address, count, tokens, answers))
    try:
        asyncio.run(_until_there(address))
        instance.start()
        asyncio.run(wait_serving(address, 60))
        usage = psutil.Process(router.pid)
        before = usage.cpu_times()
        began = time.monotonic()
        clients.start()
        counts = answers.get(timeout=600)
        wall_s = time.monotonic() - began
        after = usage.cpu_times()
    finally:
        for process in (clients, instance):
            if process.pid is not None:
                process.terminate()
                process.join()
        router.terminate()
        router.wait(20)
    cpu_s = after.user + after.system - before.user - before.system
    return {
        "streams": count,
        "tokens": counts["tokens"],
        "messages": counts["messages"],
        "router_cpu_s": cpu_s,
        "wall_s": wall_s,
        "tokens_per_cpu_s": counts["tokens"] / cpu_s,
        "messages_per_cpu_s": counts["messages"] / cpu_s,
    }


async def _until_there(address: str) -> None:
    async with open_channel(address) as channel, asyncio.timeout(60):
        await channel.channel_ready()


def draw(result: dict[str, Any], path: Path) -> None:
    """What was asked for (dashed) and what one core does."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    decided = result["decisions"]
    for axes, name, title, wanted in (
        (left, "decisions_per_cpu_s", "routing decisions per core and second", 1000),
        (middle, "decision_p99_ms", "p99 of a decision, ms", 5),
    ):
        bars = axes.bar(list(decided), [one[name] for one in decided.values()], color="#3a7ca5")
        axes.bar_label(bars, fmt="%.3g")
        axes.axhline(wanted, color="black", lw=0.8, ls="--")
        axes.set_title(title, fontsize="medium")
    flow = result["streams"]
    bars = right.bar(["tokens", "messages"], [flow["tokens_per_cpu_s"], flow["messages_per_cpu_s"]],
                     color="#d98f4e")  # fmt: skip
    right.bar_label(bars, fmt="%.0f")
    right.axhline(20_000, color="black", lw=0.8, ls="--")
    right.set_title(f"per core and second, {flow['streams']} gRPC streams", fontsize="medium")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print, write and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer the router loads")
    parser.add_argument("--streams", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=400, help="per stream")
    parser.add_argument("--step-ms", type=float, default=20.0, help="time between two tokens of a stream")
    parser.add_argument("--instances", type=int, default=64)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("-o", "--output", type=Path, default=None)
    options = parser.parse_args()
    result = {
        "decisions": {
            policy: decisions(options.instances, options.requests, 100.0, policy)
            for policy in ("padg", "padg-published", "least-loaded", "prefix")
        },
        "decisions_with_prefixes": {
            policy: decisions(options.instances, options.requests, 100.0, policy, held=True)
            for policy in ("padg", "least-loaded", "prefix", "most-hits")
        },
        "streams": streams(options.model, options.streams, options.tokens, options.step_ms / 1000),
    }
    print(json.dumps(result, indent=1))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        draw(result, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
