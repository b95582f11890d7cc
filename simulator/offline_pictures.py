"""Pictures of a simulated run: stages by phase, KV memory against its forecast, batch sizes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.record import Recording, StepRecord
from tidepipe_common.errors import ConfigError
from tidepipe_common.types.plan import Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {Phase.PREFILL: "tab:orange", Phase.DECODE: "tab:blue", Phase.MIXED: "tab:green"}
ZOOM_STEPS = 48


def draw_run(name: str, recording: Recording, folder: Path) -> list[Path]:
    """Write NAME-gantt.png, NAME-kv.png and NAME-batches.png; returns their paths."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ConfigError("pictures need matplotlib: pip install matplotlib") from error
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, draw in (("gantt", _gantt), ("kv", _memory), ("batches", _batches)):
        figure, axes = plt.subplots(2 if kind == "gantt" else 1, figsize=(10, 4.5), layout="constrained")
        draw(axes, recording)
        figure.suptitle(f"{name}: {_TITLES[kind]}")
        path = folder / f"{name}-{kind}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        written.append(path)
    return written


_TITLES = {
    "gantt": "stages by phase (gaps are bubbles)",
    "kv": "KV memory, in use and forecast",
    "batches": "tokens of each step",
}


def _gantt(axes: Any, recording: Recording) -> None:
    whole, zoom = axes
    middle = len(recording.steps) // 2
    _stages(whole, recording.steps)
    _stages(zoom, recording.steps[middle : middle + ZOOM_STEPS], edge="white")
    zoom.set_xlabel("seconds")
    handles = [_patch(colour, phase.value) for phase, colour in COLOURS.items()]
    whole.legend(handles=handles, ncols=3, loc="upper right", fontsize="small")


def _stages(axes: Axes, steps: list[StepRecord], edge: str = "none") -> None:
    if not steps:
        return
    stages = len(steps[0].spans)
    merge = edge == "none"
    for stage in range(stages):
        for phase, colour in COLOURS.items():
            spans = [step.spans[stage] for step in steps if step.phase is phase]
            bars = [(start, end - start) for start, end in (_merged(spans) if merge else spans)]
            axes.broken_barh(bars, (stage - 0.4, 0.8), facecolors=colour, edgecolors=edge)
    axes.set_yticks(range(stages), [f"stage {stage}" for stage in range(stages)])
    axes.invert_yaxis()


def _merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Neighbours without a visible gap become one bar: a run has tens of thousands of steps."""
    merged: list[tuple[float, float]] = []
    for start, end in spans:
        if merged and start - merged[-1][1] < 0.005:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _memory(axes: Axes, recording: Recording) -> None:
    times = [one.time_s for one in recording.memory]
    axes.plot(times, [one.used for one in recording.memory], label="in use", linewidth=1.0)
    axes.plot(times, [one.forecast for one in recording.memory], label="forecast peak", linewidth=0.8)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel("share of the KV blocks")
    axes.set_xlabel("seconds")
    axes.set_ylim(0, 1.15)
    axes.legend(loc="lower right")


def _batches(axes: Axes, recording: Recording) -> None:
    times = [step.spans[0][0] for step in recording.steps]
    axes.plot(times, [step.tokens for step in recording.steps], ".", markersize=1.0, label="all tokens")
    axes.plot(times, [step.decode_rows for step in recording.steps], ".", markersize=1.0, label="decode rows")
    axes.set_ylabel("tokens")
    axes.set_xlabel("seconds")
    axes.legend(loc="upper right", markerscale=8)
