"""Batch work beside online work on a live cluster of emulated workers: real processes, RPCs, the batch API.

    python -m bench.batch_in_slack_live --profile L20_LLAMA2_13B.csv -o docs/images/batch-in-slack-live

The live counterpart of `bench.batch_in_slack`. Online requests (Poisson, lengths around ShareGPT's) come over
gRPC with their targets. Alone: nothing beside them. Ordinary: as many requests as the batch has lines come
at once, like all others. In slack: the same as a batch of /v1/batches. Each run has a cluster of its own, and
the ways of a rate run in turn. The batch's tokens count until the last online request has come.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import httpx

from bench.batch_in_slack import WAYS
from bench.live_emulated import Arrival, Outcome, arrivals, ask
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.settings.defaults import TPOT_S, TTFT_S

LINE_TOKENS = 150
"""Of the prompt and of the output of a batch's line."""
BEFORE_S = 3.0
"""The batch is there so long before the first online request."""
SLO = (TTFT_S, TPOT_S)


async def run(options: argparse.Namespace, policy: str, rate: float, way: str) -> dict[str, Any]:
    """One way of one policy at one rate, on a fresh cluster."""
    load = arrivals(rate, options.seconds, options.seed)
    config = ClusterConfig(
        model=options.model,
        executor="emulated",
        hardware=options.hardware,
        profile=options.profile,
        instances=1,
        stages=options.stages,
        policy=policy,
        ttft_ms=1000 * TTFT_S,
        tpot_ms=1000 * TPOT_S,
        log_level="error",
    )
    lines = [Arrival(0.0, LINE_TOKENS, LINE_TOKENS, 10_000 + index) for index in range(options.lines)]
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address, timeout=600) as client:
        start = time.monotonic() + BEFORE_S
        others: list[asyncio.Task[Outcome]] = []
        if way == "ordinary":
            others = [asyncio.create_task(ask(client, one, start - BEFORE_S, SLO)) for one in lines]
        batch = await _begin(cluster.http_address, lines) if way == "in slack" else ""
        asked = [asyncio.create_task(ask(client, one, start, SLO)) for one in load]
        await asyncio.sleep(max(0.0, start + load[-1].at - time.monotonic()))
        done = await _completed(cluster.http_address, batch) if batch else sum(one.done() for one in others)
        seconds = time.monotonic() - start + BEFORE_S
        found = await asyncio.gather(*asked)
        for one in others:
            one.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    good = [one for one in found if not one.error and one.ttft_s <= SLO[0] and one.tpot_s <= SLO[1]]
    return {
        "policy": policy,
        "rate": rate,
        "way": way,
        "requests": len(found),
        "failed": sum(bool(one.error) for one in found),
        "attainment": len(good) / len(found),
        "ttft_p90_s": _p90([one.ttft_s for one in found]),
        "tpot_p90_s": _p90([one.tpot_s for one in found]),
        "batch_tokens_per_s": done * LINE_TOKENS / seconds,
        "load_average": os.getloadavg()[0],
    }


async def _begin(address: str, lines: list[Arrival]) -> str:
    """A batch of these; its id."""
    text = "\n".join(
        json.dumps(
            {
                "custom_id": str(index),
                "method": "POST",
                "url": "/v1/completions",
                "body": {"prompt": [one.token] * one.prompt, "max_tokens": one.output, "ignore_eos": True},
            }
        )
        for index, one in enumerate(lines)
    )
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60, trust_env=False) as http:
        files = {"file": ("lines.jsonl", text.encode(), "application/jsonl")}
        kept = await http.post("/v1/files", data={"purpose": "batch"}, files=files)
        wanted = {
            "input_file_id": kept.raise_for_status().json()["id"],
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        }
        made = await http.post("/v1/batches", json=wanted)
        return str(made.raise_for_status().json()["id"])


async def _completed(address: str, batch: str) -> int:
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60, trust_env=False) as http:
        said = await http.get(f"/v1/batches/{batch}")
        counts = said.raise_for_status().json()["request_counts"]
        if counts["failed"]:
            raise SystemExit(f"{counts['failed']} lines failed")
        return int(counts["completed"])


def _p90(values: list[float]) -> float:
    return sorted(values)[int(0.9 * (len(values) - 1))]


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the rounds of one way."""
    names = ("attainment", "ttft_p90_s", "tpot_p90_s", "batch_tokens_per_s")
    return {**runs[0], **{name: statistics.median(one[name] for one in runs) for name in names}}


def main() -> None:
    """A Markdown table, and all runs as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="tokenizer, and shape without a profile")
    parser.add_argument("--hardware", default="l20")
    parser.add_argument("--profile", type=Path, default=None)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--policies", nargs="+", default=["auto"])
    parser.add_argument("--rates", nargs="+", type=float, default=[2.0, 4.0], help="requests per second")
    parser.add_argument("--lines", type=int, default=400, help="of the batch")
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True, help="path without ending")
    options = parser.parse_args()
    path = options.output.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    print("| policy | rate /s | batch | within both | TTFT P90, s | TPOT P90, ms | batch, tokens/s |")
    print("|---" * 7 + "|")
    for policy in options.policies:
        for rate in options.rates:
            ways: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way in WAYS:
                    ways[way].append(asyncio.run(run(options, policy, rate, way)))
                    runs.append(ways[way][-1])
                    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
            for way, found in ways.items():
                one = medians(found)
                print(
                    f"| {policy} | {rate:g} | {way} | {one['attainment']:.1%} | {one['ttft_p90_s']:.2f} | "
                    f"{1000 * one['tpot_p90_s']:.0f} | {one['batch_tokens_per_s']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
