"""Policies compared on a live cluster of emulated workers: real processes, real RPCs, no model.

    python -m bench.live_emulated --instances 8 --stages 4 --rate 6 --seconds 60 -o docs/images/live-emulated
    python -m bench.live_emulated --instances 4 --stages 1 --rate 10 --regroup -o docs/images/regroup

Each policy gets a cluster of its own and the same arrivals (Poisson, lengths drawn around ShareGPT's). A
request meets its SLO if both targets hold. --regroup scales out, splits, merges and scales in while the load
runs, and counts requests that failed or came back incomplete: there must be none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.admin import AdminClient
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.errors import TidePipeError

POLICIES = {
    "padg": ("padg", "padg"),
    "hybrid, round robin": ("hybrid", "round-robin"),
    "separate, round robin": ("separate", "round-robin"),
    "hybrid, least loaded": ("hybrid", "least-loaded"),
}
"""Name: policy of the instances, and routing."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """at: seconds from the start. Lengths in tokens. token: all of the prompt, so that no two begin alike."""

    at: float
    prompt: int
    output: int
    token: int


FIRST = 5
"""Messages; a sequence that goes on elsewhere when its prompt is done does so within them."""


@dataclass(slots=True)
class Outcome:
    """ttft_s, tpot_s: as the client saw them. error: why it failed.

    pause_s: the longest time between two of its first messages with tokens (FIRST of them).
    """

    ttft_s: float = 0.0
    tpot_s: float = 0.0
    tokens: int = 0
    wanted: int = 0
    error: str = ""
    pause_s: float = 0.0


def arrivals(rate: float, seconds: float, seed: int) -> list[Arrival]:
    """Poisson; lengths log-normal with ShareGPT's medians."""
    chance = random.Random(seed)
    found: list[Arrival] = []
    now = chance.expovariate(rate)
    while now < seconds:
        prompt = min(1500, max(8, int(chance.lognormvariate(5.0, 1.0))))
        output = min(800, max(4, int(chance.lognormvariate(5.0, 0.8))))
        found.append(Arrival(now, prompt, output, 100 + len(found)))
        now += chance.expovariate(rate)
    return found


async def ask(client: AsyncClient, arrival: Arrival, start: float, slo: tuple[float, float]) -> Outcome:
    await asyncio.sleep(max(0.0, start + arrival.at - time.monotonic()))
    outcome = Outcome(wanted=arrival.output)
    began = time.monotonic()
    first = last = 0.0
    pieces = 0
    try:
        stream = client.stream(
            [arrival.token] * arrival.prompt,
            max_tokens=arrival.output,
            ignore_eos=True,
            skip_text=True,
            ttft_ms=1000 * slo[0],
            tpot_ms=1000 * slo[1],
        )
        async for piece in stream:
            before, last = last, time.monotonic()
            first = first or last
            pieces += 1
            if 1 < pieces <= FIRST:
                outcome.pause_s = max(outcome.pause_s, last - before)
            outcome.tokens += len(piece.token_ids)
    except TidePipeError as error:
        outcome.error = str(error)
    outcome.ttft_s = first - began
    outcome.tpot_s = (last - first) / max(1, outcome.tokens - 1)
    return outcome


async def _regroup(admin: AdminClient, instances: int, seconds: float) -> list[str]:
    """Out, split, merge, in; evenly over the run. Returns what was done."""
    pause = seconds / 5
    done = []

    async def step(name: str, answer: dict[str, Any]) -> None:
        groups = answer.get("groups", answer)
        sizes = {macro["macro_id"]: len(macro["members"]) for macro in groups.get("macros", [])}
        done.append(f"{name}: {sizes or 'wanted ' + str(answer.get('wanted'))}")
        await asyncio.sleep(pause)

    await asyncio.sleep(pause)
    await step("scale out", await admin.scale("add", 1))
    macro = (await admin.groups())["macros"][0]["macro_id"]
    split = await admin.split(macro, max(1, instances // 2))
    await step("split", split)
    names = [entry["macro_id"] for entry in split["macros"]]
    await step("merge", await admin.merge(macro, names[-1]))
    await step("scale in", await admin.scale("remove", 1))
    return done


async def run(options: argparse.Namespace, policy: str, load: list[Arrival]) -> dict[str, Any]:
    """One policy on one fresh cluster."""
    instance_policy, routing = POLICIES[policy]
    slo = (options.ttft_ms / 1000, options.tpot_ms / 1000)
    config = ClusterConfig(
        model=options.model,
        executor="emulated",
        hardware=options.hardware,
        profile=str(options.profile) if options.profile else None,
        instances=options.instances,
        stages=options.stages,
        policy=instance_policy,
        routing=routing,
        ttft_ms=options.ttft_ms,
        tpot_ms=options.tpot_ms,
        macro_min=max(1, (options.instances + 2) // 2),
        macro_max=options.instances + 2,
        log_level="warning",
    )
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address, timeout=120) as client:
        start = time.monotonic() + 0.5
        async with AdminClient(cluster.grpc_address) as admin, asyncio.TaskGroup() as group:
            asks = [group.create_task(ask(client, one, start, slo)) for one in load]
            regroup = (
                group.create_task(_regroup(admin, options.instances, options.seconds))
                if options.regroup
                else None
            )
        outcomes = [ask.result() for ask in asks]
    good = [one for one in outcomes if not one.error and one.ttft_s <= slo[0] and one.tpot_s <= slo[1]]
    ttfts = sorted(one.ttft_s for one in outcomes if not one.error)
    return {
        "policy": policy,
        "requests": len(outcomes),
        "failed": sum(bool(one.error) for one in outcomes),
        "incomplete": sum(not one.error and one.tokens != one.wanted for one in outcomes),
        "attainment": len(good) / max(1, len(outcomes)),
        "ttft_p50_s": ttfts[len(ttfts) // 2] if ttfts else None,
        "ttft_p90_s": ttfts[int(0.9 * len(ttfts))] if ttfts else None,
        "regrouped": regroup.result() if regroup else [],
        "errors": sorted({one.error for one in outcomes if one.error})[:5],
        "outcomes": [asdict(one) for one in outcomes],
    }


def draw(results: list[dict[str, Any]], slo: tuple[float, float], path: Path) -> None:
    """Attainment, and every request against both targets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    bars = left.barh([one["policy"] for one in results], [100 * one["attainment"] for one in results])
    left.bar_label(bars, fmt="%.1f")
    left.invert_yaxis()
    left.set(xlabel="requests within both targets, %", xlim=(0, 110))
    for one in results:
        told = [outcome for outcome in one["outcomes"] if not outcome["error"]]
        right.scatter([each["ttft_s"] for each in told], [1000 * each["tpot_s"] for each in told],
                      s=6, label=one["policy"])  # fmt: skip
    right.axvline(slo[0], color="black", lw=0.8, ls="--")
    right.axhline(1000 * slo[1], color="black", lw=0.8, ls="--")
    right.set(xlabel="TTFT, s", ylabel="TPOT, ms")
    right.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print, write and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="shape and tokenizer")
    parser.add_argument("--hardware", default="l20")
    parser.add_argument("--profile", type=Path, default=None)
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--rate", type=float, default=6.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--ttft-ms", type=float, default=5000.0)
    parser.add_argument("--tpot-ms", type=float, default=100.0)
    parser.add_argument("--policy", action="append", choices=POLICIES, help="default: all")
    parser.add_argument("--regroup", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write every request's outcome as well")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=None)
    options = parser.parse_args()
    load = arrivals(options.rate, options.seconds, options.seed)
    results = [asyncio.run(run(options, policy, load)) for policy in options.policy or POLICIES]
    print(json.dumps([{**one, "outcomes": []} for one in results], indent=1))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        slo = (options.ttft_ms / 1000, options.tpot_ms / 1000)
        draw(results, slo, options.output.with_suffix(".png"))
        if not options.keep:
            results = [{**one, "outcomes": []} for one in results]
        options.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
