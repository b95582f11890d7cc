"""Pictures of a model's quality: calibration, loss, and what its trees look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from predictor.evaluation.figures import Figures
from tidepipe_common.errors import ConfigError
from tidepipe_common.lengths.hazard import COLUMNS
from tidepipe_common.lengths.request import LEVELS
from tidepipe_common.lengths.trained import TrainedLengths

SHOWN_COLUMNS = 15


def draw_report(model: TrainedLengths, rows: dict[str, Figures], folder: Path) -> list[Path]:
    """Write calibration.png, pinball.png and importance.png; rows: figures by name, the model's own first.

    ConfigError without matplotlib.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ConfigError("pictures need matplotlib: pip install matplotlib") from error

    calibration, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    for name, figures in rows.items():
        axes.plot(LEVELS, list(figures.coverage.values()), marker="o", label=name)
    axes.set_xlabel("level asked for")
    axes.set_ylabel("share of answers not longer")
    axes.legend()

    losses, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    width = 0.8 / len(rows)
    for index, (name, figures) in enumerate(rows.items()):
        places = np.arange(len(LEVELS)) + index * width
        axes.bar(places, list(figures.pinball_by_level.values()), width, label=name)
    axes.set_xticks(np.arange(len(LEVELS)) + 0.4 - width / 2, [f"{level:g}" for level in LEVELS])
    axes.set_xlabel("level")
    axes.set_ylabel("pinball loss, tokens")
    axes.legend()

    importance, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    names, gains = important_columns(model)
    axes.barh(names[::-1], gains[::-1])
    axes.set_xlabel("share of the trees' gain (bin left out)")

    written = []
    for name, figure in (("calibration", calibration), ("pinball", losses), ("importance", importance)):
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=100)
        plt.close(figure)
        written.append(path)
    return written


def important_columns(model: TrainedLengths, most: int = SHOWN_COLUMNS) -> tuple[Sequence[str], list[float]]:
    """Columns by their share of the trees' gain, greatest first, without the bin itself."""
    gains = dict(zip(COLUMNS, model.hazard.booster.feature_importance("gain").tolist(), strict=True))
    gains.pop("bin")
    whole = sum(gains.values()) or 1.0
    best = sorted(gains, key=lambda name: -gains[name])[:most]
    return best, [gains[name] / whole for name in best]
