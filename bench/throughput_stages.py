"""Throughput of one workload over different numbers of stages, measured in turn in one run.

    python bench/throughput_stages.py WORKLOAD.json --model smollm2-135m --stages 1 2 --rounds 3 \\
        --out docs/images/throughput-stages

WORKLOAD.json: [{"prompt": [token ids], "out": n}, ...]; all at once, greedy, end-of-sequence ignored.
Writes OUT.json (every run) and OUT.png (medians).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def measure(workload: Path, model: str, stages: int, dtype: str) -> dict[str, Any]:
    """One run of `tidepipe bench throughput`, with a cluster of its own."""
    command = [sys.executable, "-m", "tidepipe.cli.main", "bench", "throughput", str(workload)]
    options = ["--model", model, "--stages", str(stages), "--dtype", dtype, "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=1800, check=True)
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def draw(runs: dict[int, list[dict[str, Any]]], target: Path) -> None:
    """Bars: tokens per second, busy share and memory of the stages."""
    figure, (speed, busy, memory) = plt.subplots(1, 3, figsize=(11, 3.4))
    names = [f"{stages} stage{'s' * (stages > 1)}" for stages in runs]
    speed.bar(names, [median(reports, "total_tokens_per_s") for reports in runs.values()], color="#3a7ca5")
    speed.set_title("prompt + output tokens per second")
    for axis, key, scale, title in (
        (busy, "busy", 100, "busy share of each stage, %"),
        (memory, "rss_bytes", 2**-20, "resident memory of each stage, MiB"),
    ):
        for place, reports in enumerate(runs.values()):
            count = len(reports[0]["stages"])
            for index in range(count):
                values = [report["stages"][index][key] * scale for report in reports]
                offset = (index - (count - 1) / 2) * 0.8 / count
                axis.bar(place + offset, statistics.median(values), width=0.75 / count, color="#81a4cd")
        axis.set_xticks(range(len(names)), names)
        axis.set_title(title)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def median(reports: list[dict[str, Any]], key: str) -> float:
    """Median of one figure over the rounds."""
    return statistics.median(report[key] for report in reports)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workload", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    options = parser.parse_args()
    runs: dict[int, list[dict[str, Any]]] = {stages: [] for stages in options.stages}
    for _ in range(options.rounds):
        for stages, reports in runs.items():
            reports.append(measure(options.workload, options.model, stages, options.dtype))
    options.out.with_suffix(".json").write_text(json.dumps(runs, indent=1))
    draw(runs, options.out.with_suffix(".png"))
    for stages, reports in runs.items():
        speeds = [report["total_tokens_per_s"] for report in reports]
        busy = [round(statistics.median(r["stages"][i]["busy"] for r in reports), 3) for i in range(stages)]
        rss = [statistics.median(r["stages"][i]["rss_bytes"] for r in reports) / 2**20 for i in range(stages)]
        print(
            f"{stages} stage(s): {median(reports, 'seconds'):.1f} s, "
            f"{median(reports, 'output_tokens_per_s'):.0f} output tok/s, "
            f"{statistics.median(speeds):.0f} total tok/s ({min(speeds):.0f} to {max(speeds):.0f}), "
            f"busy {busy}, MiB {[round(value) for value in rss]}"
        )


if __name__ == "__main__":
    main()
