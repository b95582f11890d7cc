"""Table and bar chart of a comparison."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def tokens_per_s(run: Mapping[str, Any]) -> float:
    """Prompt and output tokens together."""
    return float((run["prompt_tokens"] + run["output_tokens"]) / run["seconds"])


def table(runs: Runs) -> str:
    """Markdown: seconds of each run, and medians."""
    best = max(
        (_speed(some) for name, some in runs.items() if some and not name.startswith("tidepipe")), default=0.0
    )
    lines = [
        "| | seconds, each run | output tok/s | total tok/s | against the best peer |",
        "|---|---|---|---|---|",
    ]
    for name, some in runs.items():
        if not some:
            continue
        seconds = ", ".join(f"{run['seconds']:.1f}" for run in some)
        output = statistics.median(run["output_tokens"] / run["seconds"] for run in some)
        ratio = f"{_speed(some) / best:.2f}" if best else "-"
        lines.append(f"| {name} | {seconds} | {output:.0f} | {_speed(some):.0f} | {ratio} |")
    return "\n".join(lines)


def _speed(runs: Sequence[Mapping[str, Any]]) -> float:
    return statistics.median(tokens_per_s(run) for run in runs)


def draw(runs: Runs, target: Path) -> None:
    """Bars: total tokens per second, the runs as dots."""
    names = [name for name, some in runs.items() if some]
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(names) + 1.2))
    for place, name in enumerate(reversed(names)):
        color = "#3a7ca5" if name.startswith("tidepipe") else "#b0b8c1"
        axis.barh(place, _speed(runs[name]), color=color)
        speeds = [tokens_per_s(run) for run in runs[name]]
        axis.plot(speeds, [place] * len(speeds), "k.", markersize=4)
    axis.set_yticks(range(len(names)), list(reversed(names)))
    axis.set_xlabel("prompt + output tokens per second (median; dots: single runs)")
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    plt.close(figure)
