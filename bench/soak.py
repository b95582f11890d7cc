"""Minutes of load on an emulated cluster while any of its processes is killed, again and again.

    python -m bench.soak --minutes 20 --rate 8 --model smollm2-135m -o docs/images/soak

Emulated stages give each place of a sequence a token of its own, so every answer can be checked token by
token: whatever is missing, repeated or out of place shows. Two processes are spared, for a leak needs time
to show; `--spare router` or others for more. Ends with a verdict, JSON and a picture; exit
code 1 if anything was lost or something grows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.soak_samples import KV_USED, RUNNING, WAITING, Sample, draw, sample, scraped, slope
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.errors import OverloadedError, TidePipeError

SAMPLE_S = 1.0
DRAIN_S = 180.0
IDLE_S = 5.0
PROMPT_TOKENS, ANSWER_TOKENS = (8, 400), (16, 200)
MOST_RSS_PER_MINUTE = 1.0 * 2**20
MOST_FDS_PER_MINUTE = 0.5
SUPERVISOR = "supervisor and load"


class Soak:
    """One run. Counts outcomes: complete, wrong, failed, refused (not accepted: over a limit)."""

    def __init__(self, cluster: LocalCluster, options: argparse.Namespace) -> None:
        self._cluster = cluster
        self.options = options
        self._chance = random.Random(options.seed)
        self._tokens: tuple[int, ...] = ()
        self.began = time.time()
        self.outcomes: Counter[str] = Counter()
        self.problems: list[str] = []
        self.samples: list[Sample] = []
        self.kills: list[dict[str, Any]] = []

    async def run(self, client: AsyncClient) -> dict[str, dict[str, float]]:
        """Until the load is over and answered; what the idle cluster's metrics say then."""
        most = PROMPT_TOKENS[1] + ANSWER_TOKENS[1]
        reference = await client.generate([1], temperature=0, max_tokens=most, ignore_eos=True)
        self._tokens = reference.token_ids
        self.began = time.time()
        sampler = asyncio.create_task(self._sample())
        killer = asyncio.create_task(self._kill())
        try:
            requests = await self._load(client)
            killer.cancel()
            _, late = await asyncio.wait(requests, timeout=DRAIN_S)
            for task in late:
                task.cancel()
                self._note("failed", f"no answer {DRAIN_S:g} s after the load was over")
            await asyncio.sleep(IDLE_S)
            return await scraped(self._cluster.children, (KV_USED, RUNNING, WAITING))
        finally:
            sampler.cancel()
            killer.cancel()
            outcomes = await asyncio.gather(sampler, killer, return_exceptions=True)
            for outcome in outcomes:
                if not isinstance(outcome, asyncio.CancelledError) and outcome is not None:
                    raise outcome

    async def _load(self, client: AsyncClient) -> list[asyncio.Task[None]]:
        """Open loop: Poisson arrivals, whatever becomes of them."""
        end = time.time() + 60 * self.options.minutes
        requests = []
        while time.time() < end:
            await asyncio.sleep(self._chance.expovariate(self.options.rate))
            prompt, answer = self._chance.randint(*PROMPT_TOKENS), self._chance.randint(*ANSWER_TOKENS)
            requests.append(asyncio.create_task(self._one(client, prompt, answer)))
        return requests

    async def _one(self, client: AsyncClient, prompt: int, answer: int) -> None:
        try:
            result = await client.generate(
                [1] * prompt, temperature=0, max_tokens=answer, ignore_eos=True, timeout=DRAIN_S
            )
        except OverloadedError:
            self.outcomes["refused"] += 1
        except TidePipeError as error:
            self._note("failed", f"{type(error).__name__}: {error}")
        else:
            # The reference begins behind one token of prompt.
            expected = self._tokens[prompt - 1 : prompt - 1 + answer]
            if result.token_ids == expected:
                self.outcomes["complete"] += 1
            else:
                self._note("wrong", f"{len(result.token_ids)} tokens for {answer}, prompt of {prompt}")

    def _note(self, outcome: str, problem: str) -> None:
        self.outcomes[outcome] += 1
        self.problems.append(problem)

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(self.options.kill_every)
            spared = self.options.spare.split(",")
            child = self._chance.choice([one for one in self._cluster.children if one.name not in spared])
            if child.pid is not None:
                self.kills.append({"at": time.time() - self.began, "process": child.name})
                os.kill(child.pid, signal.SIGKILL)

    async def _sample(self) -> None:
        while True:
            pids = {child.name: child.pid for child in self._cluster.children} | {SUPERVISOR: os.getpid()}
            taken = [sample(name, pid, self.began) for name, pid in pids.items() if pid is not None]
            self.samples += [one for one in taken if one is not None]
            await asyncio.sleep(SAMPLE_S)


def verdict(soak: Soak, idle: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Everything that was found, and whether it is good.

    Slopes: per minute of life, after the warm-up; null where nobody lived long enough for it to be told.
    """
    slopes: dict[str, dict[str, float | None]] = {}
    for name in sorted({one.name for one in soak.samples}):
        mine = [one for one in soak.samples if one.name == name]
        warm_up = soak.options.warm_up
        slopes[name] = {quantity: slope(mine, quantity, warm_up) for quantity in ("rss", "fds", "threads")}
    most = {"rss": MOST_RSS_PER_MINUTE, "fds": MOST_FDS_PER_MINUTE, "threads": MOST_FDS_PER_MINUTE}
    growing = [
        f"{name}: {quantity} by {value:.3g} a minute"
        for name, quantities in slopes.items()
        for quantity, value in quantities.items()
        # The load generator keeps its own records.
        if value is not None and value > most[quantity] and not (name == SUPERVISOR and quantity == "rss")
    ]
    left = [
        f"{name}: {metric} is {value:g}"
        for name, values in idle.items()
        for metric, value in values.items()
        if value > 0
    ]
    lost = soak.outcomes["failed"] + soak.outcomes["wrong"]
    return {
        "good": not (lost or growing or left),
        "requests": dict(soak.outcomes),
        "problems": soak.problems[:20],
        "kills": soak.kills,
        "growing": growing,
        "lived_too_short_to_tell": [name for name, found in slopes.items() if found["rss"] is None],
        "left_when_idle": left,
        "slopes_per_minute": slopes,
    }


async def run(options: argparse.Namespace) -> tuple[dict[str, Any], Soak]:
    """The whole soak."""
    config = ClusterConfig(
        model=options.model,
        stages=options.stages,
        instances=options.instances,
        executor="emulated",
        metrics=True,
    )
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address) as client:
        soak = Soak(cluster, options)
        watch = asyncio.create_task(cluster.wait())
        work = asyncio.create_task(soak.run(client))
        await asyncio.wait([watch, work], return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await watch
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        return verdict(soak, await work), soak


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", default="smollm2-135m", help="whose tokenizer and shape; computes nothing")
    add("--minutes", type=float, default=20.0)
    add("--rate", type=float, default=8.0, help="requests per second")
    add("--kill-every", type=float, default=15.0, metavar="S")
    add("--stages", type=int, default=2)
    add("--instances", type=int, default=2)
    add("--spare", default="controller-0,stage-worker-0-0", metavar="NAME,...",
        help="never killed: who lives long shows whether it leaks")  # fmt: skip
    add("--warm-up", type=float, default=300.0, metavar="S", help="of each life, before a leak is sought")
    add("--seed", type=int, default=1)
    add("-o", "--output", type=Path, default=Path("soak"), metavar="STEM", help="STEM.json, STEM.png")
    options = parser.parse_args()
    result, soak = asyncio.run(run(options))
    settings = {name: str(value) for name, value in vars(options).items() if name != "output"}
    content = {"settings": settings, **result, "samples": [asdict(one) for one in soak.samples]}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(content) + "\n")
    draw(soak.samples, soak.kills, options.output.with_suffix(".png"))
    print(json.dumps(result, indent=1))
    return 0 if result["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
