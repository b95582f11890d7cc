"""A cluster that grows and shrinks: the request rate rises from 20 to 50 per second and falls again.

    python -m bench.online_scaling -o results/

Macro instances have 6 to 11 instances, so that the twelfth splits the first one. Writes online-scaling.json
and online-scaling.png: attainment of 5-second windows, instances, and what scaling did.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.online_studies import CHAT, MAX_TOTAL, STUDY, cluster
from router.scheduler.mitosis import Bounds
from router.scheduler.routing_scheduler import OverallConfig
from router.scheduler.scaling import ScalingRules
from simulator.cluster import ClusterRules, VirtualCluster
from simulator.fast_forward_instance import FastForwardInstance, InstanceRules
from simulator.job import Job
from tidepipe_common.settings.defaults import ROUTING_POLICIES
from workloads.arrivals import MIXES

WINDOW_S = 5.0
LEVEL_S = 60.0
RATES = (20.0, 30.0, 40.0, 50.0, 50.0, 50.0, 20.0, 20.0, 20.0, 20.0)
"""Requests per second, each for LEVEL_S."""


def demand(seed: int) -> list[Job]:
    """Poisson arrivals at the rates above, ShareGPT-like lengths."""
    chance = np.random.default_rng([seed, 17])
    times: list[float] = []
    for level, rate in enumerate(RATES):
        count = chance.poisson(rate * LEVEL_S)
        times += [float(t) for t in np.sort(chance.uniform(0, LEVEL_S, count)) + level * LEVEL_S]
    lengths = MIXES["sharegpt-like"](len(times), seed).within(MAX_TOTAL, MAX_TOTAL).requests
    wrong = np.exp(chance.normal(0.0, 0.3, len(times)))
    return [
        Job(i, one.prompt_tokens, one.output_tokens, at, CHAT, max(1, round(one.output_tokens * float(off))))
        for i, (one, at, off) in enumerate(zip(lengths, times, wrong, strict=True))
    ]


def run(instances: int, start_s: float, expand_at: float, seed: int, policy: str) -> dict[str, Any]:
    """start_s: from asking for an instance to its first request. expand_at: share of the TTFT target."""
    spec = cluster("l20", STUDY, instances)
    cost, kv_tokens = spec.latency(), spec.kv_tokens()
    rules = InstanceRules(mixed=policy == "padg", budget=256 if policy == "padg" else 2048)

    def make(name: str, born: float) -> FastForwardInstance:
        return FastForwardInstance(name, rules, cost, spec.stages, kv_tokens, born)

    scaling = ScalingRules(
        CHAT, window_s=5.0, expand_at=expand_at, least=instances, most=24, calm_s=10.0, lasting_s=15.0
    )
    config = OverallConfig(policy=policy, bounds=Bounds(6, 11), max_pending=100_000, scaling=scaling)
    scaled = VirtualCluster(
        ClusterRules(config, start_s=start_s),
        make,
        cost,
        stages=spec.stages,
        context=spec.context,
        step_tokens=rules.budget,
    )
    scaled.start(instances)
    jobs = demand(seed)
    scaled.run(jobs)
    log = scaled.log
    return {
        "start_s": start_s,
        "expand_at": expand_at,
        "policy": policy,
        "attainment": sum(job.met(switch_wait=True) for job in jobs) / len(jobs),
        "windows": windows(jobs),
        "instances": log.instances,
        "scaling": [[note.time_s, note.what, list(note.sizes)] for note in log.scaling],
        "splits": [note.time_s for note in log.scaling if note.what == "split"],
    }


def windows(jobs: Sequence[Job]) -> list[list[float]]:
    """Start, requests, and attainment of each window of arrivals."""
    found = []
    for start in np.arange(0.0, len(RATES) * LEVEL_S, WINDOW_S):
        inside = [job for job in jobs if start <= job.arrival < start + WINDOW_S]
        if inside:
            met = sum(job.met(switch_wait=True) for job in inside) / len(inside)
            found.append([float(start), len(inside), met])
    return found


def draw(report: dict[str, Any], path: Path) -> None:
    """Rate and instances above, attainment below; a line where a macro instance split."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, len(report["runs"]), figsize=(6 * len(report["runs"]), 5), sharex=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for column, one in enumerate(report["runs"]):
        above, below = axes[0][column], axes[1][column]
        at, requests, met = zip(*one["windows"], strict=True)
        above.step(at, [count / WINDOW_S for count in requests], where="post", label="requests/s")
        times, counts = zip(*one["instances"], strict=True)
        end = [len(RATES) * LEVEL_S]
        above.step([*times, *end], [*counts, counts[-1]], where="post", label="instances", lw=2)
        above.set_title(f"expand at {one['expand_at']:g} x TTFT target, start in {one['start_s']:g} s")
        below.plot(at, [100 * share for share in met], color="tab:green")
        below.axhline(90, color="black", lw=0.8)
        below.set(ylim=(0, 102), xlabel="seconds", ylabel="requests within both targets, %")
        for split in one["splits"]:
            for each in (above, below):
                each.axvline(split, color="tab:red", lw=0.8, ls="--")
        above.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--instances", type=int, default=6, help="at the beginning, and at least")
    parser.add_argument(
        "--runs", default="1:0,0.3:0,0.3:30", help="expand at (share of the TTFT target):start (s), several"
    )
    parser.add_argument("--policy", default="padg", help="where requests go", choices=ROUTING_POLICIES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, default=Path())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = []
    for text in options.runs.split(","):
        expand_at, start_s = (float(part) for part in text.split(":"))
        runs.append(run(options.instances, start_s, expand_at, options.seed, options.policy))
    report = {"rates": RATES, "level_s": LEVEL_S, "seed": options.seed, "runs": runs}
    (options.out / "online-scaling.json").write_text(json.dumps(report, indent=1))
    draw(report, options.out / "online-scaling.png")
    for one in runs:
        most = max(count for _, count in one["instances"])
        settings = f"expand at {one['expand_at']:g}, start {one['start_s']:g} s"
        print(f"{settings}: {one['attainment']:.1%} attained, up to {most} instances")
        for time, what, sizes in one["scaling"]:
            print(f"  {time:7.1f} s  {what}  {sizes}")


if __name__ == "__main__":
    main()
