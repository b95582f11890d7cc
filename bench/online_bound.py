"""How much of what an instance can do at all do the systems reach? The fluid bound beside measured goodput.

    python -m bench.online_bound results/ -o docs/images

The bound: requests flow evenly, all rounds of an instance are alike and take the TPOT target (or less,
if memory is short), prompts are computed as fast as they come, and nobody queues. No interference is left in
it, and nothing is lost to chance, so no schedule of these steps does better while it serves everybody; as one
request in ten may miss its targets, goodput can lie a little above it. results/: online-headline.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from bench.online_pictures import cells
from bench.online_studies import cluster, question
from simulator.cluster_spec import ClusterSpec
from simulator.goodput import Question
from tidepipe_common.latency.work import StepWork, chunk_pairs
from workloads.mixes import Workload

CHUNKS = (0, 128, 256, 512, 1024)
"""Tokens of a step that prompts ride on; 0: in every round as many prompt tokens as come in a round."""
SHOWN = ("padg", "hybrid", "separate")


class Flow:
    """One instance's share of evenly flowing requests."""

    def __init__(self, spec: ClusterSpec, workload: Workload) -> None:
        requests = workload.requests
        count = len(requests)
        self._cost, self._kv = spec.latency(), spec.kv_tokens()
        self._prompt = sum(one.prompt_tokens for one in requests) / count
        self._output = sum(one.output_tokens - 1 for one in requests) / count
        self._pairs = sum(chunk_pairs(0, one.prompt_tokens) for one in requests) / count
        # A sequence holds its prompt and what it has so far, for as many rounds as it has tokens to come.
        self._held = (
            sum((one.output_tokens - 1) * (one.prompt_tokens + one.output_tokens / 2) for one in requests)
            / count
        )

    def bears(self, rate: float, round_s: float, chunk: int | None) -> bool:
        """Can rounds be so short at this rate? chunk: see CHUNKS; None: prompts in steps of their own."""
        decoding, held = rate * self._output * round_s, rate * self._held * round_s
        prompts = rate * self._prompt * round_s
        if held > 0.99 * self._kv:
            return False
        attention = self._cost.attention_s(int(held), rate * round_s * self._pairs)
        if chunk is None:
            spent = prompts / 2048 * self._step_s(2048) + self._step_s(decoding)
        elif chunk == 0:
            spent = self._step_s(decoding + prompts)
        elif decoding + prompts > chunk:
            return False
        else:
            ridden = prompts / max(1.0, chunk - decoding)
            spent = ridden * self._step_s(chunk) + (1 - ridden) * self._step_s(decoding)
        return spent + attention <= round_s

    def _step_s(self, tokens: float) -> float:
        rows = max(1, round(tokens))
        return self._cost.step_s(StepWork(rows, 0, 0.0, rows, rows))


def bound(spec: ClusterSpec, asked: Question) -> float:
    """Requests per second of the whole cluster, in the best way to compute prompts."""
    flow = Flow(spec, asked.workload)
    rounds = [asked.slo.tpot_s * part / 10 for part in range(1, 11)]

    def some(rate: float) -> bool:
        return any(flow.bears(rate, length, chunk) for length in rounds for chunk in (None, *CHUNKS))

    low, high = 0.0, 1.0
    while some(high):
        low, high = high, 2 * high
    while high - low > 0.002 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if some(middle) else (low, middle)
    return low * spec.instances


def draw(rows: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Shares of the bound, a group of bars per cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(2 + 1.2 * len(rows), 4), layout="constrained")
    for i, name in enumerate(SHOWN):
        heights = [100 * row[name] / row["bound"] for row in rows.values()]
        axes.bar([x + 0.26 * (i - 1) for x in range(len(rows))], heights, 0.26, label=name)
    axes.axhline(100, color="black", lw=0.8)
    axes.set_xticks(range(len(rows)), [cell.replace("/", "\n") for cell in rows], fontsize="small")
    axes.set(ylabel="P90 goodput, % of the fluid bound", ylim=(0, 135))
    axes.legend(frameon=False, ncols=len(SHOWN), loc="upper left")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Reckon, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--device", default="l20")
    parser.add_argument("-o", "--out", type=Path, default=Path())
    options = parser.parse_args()
    report = json.loads((options.results / "online-headline.json").read_text())
    seed = report["settings"]["seed"]
    rows: dict[str, dict[str, float]] = {}
    for cell, row in cells(report["trials"]).items():
        device, model, mix = cell.split("/")
        if device == options.device:
            rows[cell] = {"bound": bound(cluster(device, model), question(mix, seed, 120.0)), **row}
    print(f"| cell | bound | {' | '.join(SHOWN)} |\n|---|---|{'---|' * len(SHOWN)}")
    for cell, row in rows.items():
        shares = [f"{row[name]:.2f} ({row[name] / row['bound']:.0%})" for name in SHOWN]
        print(f"| {cell.replace('/', ' / ')} | {row['bound']:.2f} | {' | '.join(shares)} |")
    options.out.mkdir(parents=True, exist_ok=True)
    draw(rows, options.out / f"online-bound-{options.device}.png")


if __name__ == "__main__":
    main()
