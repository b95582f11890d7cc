"""Up to ten times the load that a cluster bears: who is admitted keeps the targets, others are told at once.

    python -m bench.overload virtual -o results/     # 8 x 4 L20 in virtual time
    python -m bench.overload live -o results/        # real processes, emulated workers; about three minutes

Loads are multiples of --rate, which the cluster bears. Writes overload-WORLD.json and overload-WORLD.png:
attainment of those admitted, admitted and offered rates, and how long it takes to be refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.online_studies import CHAT, STUDY, cluster, question
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from simulator.goodput import COOL_DOWN, WARM_UP
from simulator.job import NOT_YET, Job
from simulator.systems import cluster_of

MULTIPLES = (0.5, 1.0, 2.0, 5.0, 10.0)
PROFILE = "tokens,ms\n1,30\n32,60\n64,90\n256,190\n1024,640\n"
"""Batches of 64 decode at 90 ms a token."""
LONGEST = 1200
TIMEOUT_S = 400


def virtual(rate: float, seconds: float, seed: int, mix: str, steps: str) -> dict[str, Any]:
    """One load in virtual time."""
    spec = cluster("l20", STUDY)
    jobs = question(mix, seed, seconds).jobs(rate)
    knobs = {"steps": steps, "budget": 256 if steps == "mixed" else 2048}
    cluster_of("padg", knobs, spec, len(jobs), shed=True).run(jobs)
    end = jobs[-1].arrival
    counted = [job for job in jobs if WARM_UP * end <= job.arrival <= COOL_DOWN * end]
    admitted = [job for job in counted if job.refused == NOT_YET]
    refused = [job.refused - job.arrival for job in counted if job.refused != NOT_YET]
    span = (COOL_DOWN - WARM_UP) * end
    return {
        "rate": rate,
        "requests": len(counted),
        "admitted_rps": len(admitted) / span,
        "attained": _share(admitted),
        "ttft_p90_s": _quantile([job.ttft(switch_wait=False) for job in admitted], 90),
        "tpot_p90_ms": 1000 * _quantile([job.tpot(switch_wait=False) for job in admitted], 90),
        "refusal_p50_s": _quantile(refused, 50),
        "refusal_p99_s": _quantile(refused, 99),
    }


def _share(jobs: Sequence[Job]) -> float:
    return sum(job.met(switch_wait=False) for job in jobs) / max(1, len(jobs))


def _quantile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else 0.0


async def live(rates: Sequence[float], seconds: float, seed: int, mix: str) -> list[dict[str, Any]]:
    """`tidepipe bench serve` against a cluster with PaDG, one rate after the other."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile.csv"
        profile.write_text(PROFILE)
        config = ClusterConfig(
            model="smollm2-135m",
            executor="emulated",
            profile=str(profile),
            instances=2,
            policy="padg",
            routing="padg",
            log_level="warning",
        )
        async with LocalCluster(config) as one:
            return [await _serve(one.grpc_address, rate, seconds, seed, mix) for rate in rates]


async def _serve(endpoint: str, rate: float, seconds: float, seed: int, mix: str) -> dict[str, Any]:
    flags = ["--workload", mix, "--endpoint", endpoint, "--rate", str(rate), "--seconds", str(seconds)]
    flags += ["--seed", str(seed), "--max-total", str(LONGEST), "--send-targets", "--json"]
    command = (sys.executable, "-m", "tidepipe.cli.main", "bench", "serve", *flags)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    (run,) = json.loads(out)["runs"]
    admitted = run["requests"] - run["rejected"]
    refusal = run["rejection_ms"]
    return {
        "rate": rate,
        "requests": run["requests"],
        "failed": run["failed"],
        "admitted_rps": admitted / seconds,
        "attained": run["attainment"] * run["requests"] / max(1, admitted),
        "ttft_p90_s": run["ttft_ms"]["p90"] / 1000,
        "tpot_p90_ms": run["tpot_ms"]["p90"],
        "refusal_p50_s": refusal.get("p50", 0.0) / 1000,
        "refusal_p99_s": refusal.get("p99", 0.0) / 1000,
        "output_tokens_per_s": run["output_tokens_per_s"],
    }


def draw(runs: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Attainment of those admitted; rates; waits for a refusal."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    rates = [one["rate"] for one in runs]
    left.plot(rates, [100 * one["attained"] for one in runs], marker="o", color="tab:green")
    left.axhline(90, color="black", lw=0.8)
    left.set(ylim=(0, 102), ylabel="admitted within both targets, %")
    middle.plot(rates, [one["admitted_rps"] for one in runs], marker="o", label="admitted")
    within = [one["admitted_rps"] * one["attained"] for one in runs]
    middle.plot(rates, within, marker="o", label="within both targets")
    middle.set(ylim=(0, None), ylabel="requests/s")
    middle.legend(frameon=False, fontsize="small")
    for name, label in (("refusal_p50_s", "median"), ("refusal_p99_s", "p99")):
        right.plot(rates, [one[name] for one in runs], marker="o", label=label)
    right.set(ylim=(0, None), ylabel="seconds until refused")
    right.legend(frameon=False, fontsize="small")
    for axes in (left, middle, right):
        axes.set(xscale="log", xlabel="offered requests/s")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("world", choices=("virtual", "live"))
    parser.add_argument("--rate", type=float, default=None, help="borne; default: 32 virtual, 2.4 live")
    parser.add_argument("--multiples", default=",".join(f"{one:g}" for one in MULTIPLES))
    parser.add_argument("--mix", default="sharegpt-like")
    parser.add_argument("--steps", default="mixed", choices=("mixed", "apart"), help="virtual: of instances")
    parser.add_argument("--seconds", type=float, default=None, help="of load; default: 60 virtual, 25 live")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, default=Path())
    options = parser.parse_args()
    is_live = options.world == "live"
    borne = options.rate or (2.4 if is_live else 32.0)
    seconds = options.seconds or (25.0 if is_live else 60.0)
    rates = [borne * float(part) for part in options.multiples.split(",")]
    if is_live:
        runs = asyncio.run(live(rates, seconds, options.seed, options.mix))
    else:
        runs = [virtual(rate, seconds, options.seed, options.mix, options.steps) for rate in rates]
    settings = {"world": options.world, "borne_rps": borne, "seconds": seconds, "mix": options.mix,
                "seed": options.seed, "targets": [CHAT.ttft_s, CHAT.tpot_s]}  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"overload-{options.world}.json"
    target.write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n")
    title = "virtual time, 8 x 4 L20" if not is_live else "live, two emulated instances"
    draw(runs, f"{options.mix}, {title}", options.out / f"overload-{options.world}.png")
    for one in runs:
        print(
            f"{one['rate']:6.1f} req/s: {one['admitted_rps']:.2f} admitted, {one['attained']:.1%} of them "
            f"within both targets; TTFT p90 {one['ttft_p90_s']:.2f} s, TPOT p90 {one['tpot_p90_ms']:.0f} ms; "
            f"refused after {one['refusal_p50_s']:.2f} s (p99 {one['refusal_p99_s']:.2f} s)"
        )


if __name__ == "__main__":
    main()
