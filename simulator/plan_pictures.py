"""The picture of a plan. matplotlib is needed only here."""

from __future__ import annotations

from pathlib import Path

from simulator.planner import Plan
from tidepipe_common.errors import ConfigError


def draw_frontier(plan: Plan, folder: Path) -> Path:
    """Goodput over devices: each cluster that was measured, and the frontier."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for layout in sorted({one.choice.layout for one in plan.points}):
        points = sorted((one.devices, one.outcome.rate) for one in plan.points if one.choice.layout == layout)
        axes.plot(*zip(*points, strict=True), ".", label=f"{layout.stages} stages x {layout.tensor} tensor")
    frontier = [(one.devices, one.outcome.rate) for one in plan.frontier]
    if frontier:
        axes.step(*zip(*frontier, strict=True), where="post", color="black", lw=0.8, label="frontier")
    axes.axhline(plan.rate, color="black", lw=0.8, ls="--")
    axes.annotate("wanted", (0, plan.rate), xycoords=("axes fraction", "data"), va="bottom", fontsize="small")
    if plan.best is not None and plan.goodput is not None:
        axes.plot([plan.best.devices], [plan.goodput.rate], "o", mfc="none", ms=12, color="black")
    axes.set(xlabel="devices", ylabel="goodput, requests/s", xlim=(0, None), ylim=(0, None))
    if plan.points:
        axes.legend(frameon=False, fontsize="small")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "frontier.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
