"""Tables and pictures of what `bench.online_goodput` measured.

python -m bench.online_pictures results/ -o docs/images
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simulator.systems import SYSTEMS

Trials = Mapping[str, Mapping[str, Any]]
SHIPPED = ("separate-as-shipped", "hybrid-as-shipped")
BASELINES = ("separate", "hybrid", "fudg-intra", "fudg-inter")
PAPER = {"separate": 1.96, "hybrid": 1.99, "fudg-intra": 2.51, "fudg-inter": 2.40}
"""EcoServe's headline: P90 goodput over vLLM, Sarathi, DistServe and MoonCake on 32 L20."""


def cells(trials: Trials) -> dict[str, dict[str, float]]:
    """Goodput by cell and system."""
    found: dict[str, dict[str, float]] = {}
    for key, trial in trials.items():
        cell, _, name = key.rpartition("/")
        found.setdefault(cell, {})[name] = float(trial["goodput_rps"])
    return found


def mean_ratio(table: Mapping[str, Mapping[str, float]], ours: str, theirs: str) -> float | None:
    """Geometric mean over the cells in which both serve anything."""
    product, count = 1.0, 0
    for row in table.values():
        if row.get(ours, 0.0) > 0 and row.get(theirs, 0.0) > 0:
            product, count = product * row[ours] / row[theirs], count + 1
    return product ** (1 / count) if count else None


def print_table(table: Mapping[str, Mapping[str, float]]) -> None:
    """Markdown."""
    names = [name for name in (*SYSTEMS, *SHIPPED) if any(name in row for row in table.values())]
    print(f"| cell | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for cell, row in table.items():
        values = [f"{row[name]:.2f}" if name in row else "" for name in names]
        print(f"| {cell.replace('/', ' / ')} | {' | '.join(values)} |")


def print_ratios(table: Mapping[str, Mapping[str, float]]) -> None:
    """PaDG over the others, per device kind, beside the paper's."""
    print("\n| device | PaDG over | " + " | ".join((*BASELINES, *SHIPPED)) + " |")
    print("|---|---|" + "---|" * (len(BASELINES) + len(SHIPPED)))
    for device in dict.fromkeys(cell.split("/")[0] for cell in table):
        rows = {cell: row for cell, row in table.items() if cell.startswith(device)}
        for ours in ("padg", "padg-published"):
            ratios = [mean_ratio(rows, ours, theirs) for theirs in (*BASELINES, *SHIPPED)]
            texts = [f"{ratio:.2f}" if ratio else "-" for ratio in ratios]
            print(f"| {device} | {ours} | {' | '.join(texts)} |")


def draw_bars(title: str, table: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Goodput relative to `separate`, a group per cell."""
    plt = pyplot()
    names = [name for name in SYSTEMS if any(name in row for row in table.values())]
    figure, axes = plt.subplots(figsize=(2 + 1.5 * len(table), 4), layout="constrained")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        heights = [row.get(name, 0.0) / max(1e-9, row.get("separate", 0.0)) for row in table.values()]
        places = [x + (i - len(names) / 2 + 0.5) * width for x in range(len(table))]
        axes.bar(places, heights, width, label=name)
    labels = [cell.split("/", 1)[-1].replace("/", "\n") for cell in table]
    axes.set_xticks(range(len(table)), labels, fontsize="small")
    axes.set(ylabel="P90 goodput over that of separate", title=title)
    axes.axhline(1, color="black", lw=0.6)
    axes.legend(fontsize="small", ncols=len(names), frameon=False, loc="upper left")
    figure.savefig(path, dpi=130)


def draw_lines(label: str, table: Mapping[str, Mapping[str, float]], path: Path, *, each: bool) -> None:
    """Goodput over the cells' parameter; each: per instance (the parameter)."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    places = range(len(table))
    for name in SYSTEMS:
        if any(name in row for row in table.values()):
            values = [row.get(name, 0.0) / (float(cell) if each else 1.0) for cell, row in table.items()]
            axes.plot(places, values, marker="o", label=name)
    axes.set_xticks(places, list(table))
    axes.set(xlabel=label, ylabel=f"P90 goodput{' per instance' if each else ''}, req/s", ylim=(0, None))
    axes.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=130)


def draw_panels(table: Mapping[str, Mapping[str, float]], label: str, path: Path) -> None:
    """A panel per cell, a bar per system or router."""
    plt = pyplot()
    figure, panels = plt.subplots(
        1, len(table), figsize=(5 * len(table), 4), layout="constrained", squeeze=False
    )
    for axes, (cell, row) in zip(panels[0], table.items(), strict=True):
        axes.barh(list(row), list(row.values()))
        axes.invert_yaxis()
        axes.set(title=cell, xlabel=label)
    figure.savefig(path, dpi=130)


def pyplot() -> Any:
    """Matplotlib, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def main() -> None:
    """Whatever there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines: dict[str, Callable[[dict[str, dict[str, float]], Path], None]] = {
        "slo": lambda table, path: draw_lines("TTFT, TPOT target", table, path, each=False),
        "burst": lambda table, path: draw_lines("CV of the gaps", table, path, each=False),
        "instances": lambda table, path: draw_lines("instances", table, path, each=True),
        "ablation": lambda table, path: draw_panels(table, "P90 goodput, req/s", path),
    }
    for study in ("headline", *lines):
        source = options.results / f"online-{study}.json"
        if not source.exists():
            continue
        table = cells(json.loads(source.read_text())["trials"])
        print(f"\n## {study}")
        if study == "ablation":
            for cell, row in table.items():
                print(
                    f"| {cell} | " + " | ".join(f"{name} {value:.2f}" for name, value in row.items()) + " |"
                )
        else:
            print_table(table)
        if study == "headline":
            print_ratios(table)
            print(f"\nthe paper, 32 L20: {PAPER}")
            for device in dict.fromkeys(cell.split("/")[0] for cell in table):
                rows = {cell: row for cell, row in table.items() if cell.startswith(device)}
                draw_bars(device, rows, options.out / f"online-headline-{device}.png")
        else:
            lines[study](table, options.out / f"online-{study}.png")


if __name__ == "__main__":
    main()
