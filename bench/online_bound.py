"""How much of what an instance can do at all do the systems reach? The fluid bound beside measured goodput.

    python -m bench.online_bound docs/images/online-auto.json -o docs/images

The bound is that of `simulator.fluid_bound`; the report is one of `bench.online_goodput headline`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from bench.online_pictures import cells
from bench.online_studies import cluster, question
from simulator.fluid_bound import bound

SHOWN = ("auto", "padg", "hybrid", "separate")


def draw(rows: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Shares of the bound, a group of bars per cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(2 + 1.2 * len(rows), 4), layout="constrained")
    for i, name in enumerate(SHOWN):
        heights = [100 * row.get(name, 0.0) / row["bound"] for row in rows.values()]
        axes.bar([x + 0.2 * (i - 1.5) for x in range(len(rows))], heights, 0.2, label=name)
    axes.axhline(100, color="black", lw=0.8)
    axes.set_xticks(range(len(rows)), [cell.replace("/", "\n") for cell in rows], fontsize="small")
    axes.set(ylabel="P90 goodput, % of the fluid bound", ylim=(0, 135))
    axes.legend(frameon=False, ncols=len(SHOWN), loc="upper left")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Reckon, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--device", default="l20")
    parser.add_argument("-o", "--out", type=Path, default=Path())
    options = parser.parse_args()
    report = json.loads(options.report.read_text())
    seed = report["settings"]["seed"]
    rows: dict[str, dict[str, float]] = {}
    for cell, row in cells(report["trials"]).items():
        device, model, mix = cell.split("/")
        if device == options.device:
            rows[cell] = {"bound": bound(cluster(device, model), question(mix, seed, 120.0)), **row}
    print(f"| cell | bound | {' | '.join(SHOWN)} |\n|---|---|{'---|' * len(SHOWN)}")
    for cell, row in rows.items():
        shares = [
            f"{row[name]:.2f} ({row[name] / row['bound']:.0%})" if name in row else "" for name in SHOWN
        ]
        print(f"| {cell.replace('/', ' / ')} | {row['bound']:.2f} | {' | '.join(shares)} |")
    options.out.mkdir(parents=True, exist_ok=True)
    draw(rows, options.out / f"online-bound-{options.device}.png")


if __name__ == "__main__":
    main()
