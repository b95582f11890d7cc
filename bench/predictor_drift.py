"""The mix of requests changes at once: how soon does the online service cover again what it says?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.predictor_rivals import Floats
from predictor.evaluation.champion import Champion
from predictor.training.fit import fit
from tidepipe_common.lengths.request import LEVELS, Observation

SPAN = 64
BEFORE = 1000


def measure(first: list[Observation], then: list[Observation], folder: Path) -> dict[str, Any]:
    """Train on `first` but its last answers, serve those, then all of `then`; draws drift.png."""
    online, noticed = _serve(first, then, adapt=True)
    fixed, _ = _serve(first, then, adapt=False)
    p90 = LEVELS.index(0.9)
    _draw(online[:, p90], fixed[:, p90], folder / "drift.png")
    windows = [(-500, 0), (0, 64), (64, 128), (128, 192), (192, 256), (256, len(then))]
    return {
        "answers_before": BEFORE,
        "answers_after": len(then),
        "noticed_after": [index - BEFORE for index in noticed],
        "coverage": {
            f"{begin}..{end}": {
                name: {
                    f"p{100 * level:g}": float(covered[BEFORE + begin : BEFORE + end, column].mean())
                    for column, level in enumerate(LEVELS)
                    if level in (0.5, 0.9, 0.99)
                }
                for name, covered in (("online", online), ("fixed", fixed))
            }
            for begin, end in windows
        },
    }


def _serve(first: list[Observation], then: list[Observation], *, adapt: bool) -> tuple[Floats, list[int]]:
    champion = Champion(window=4096)
    champion.replace(fit(first[:-BEFORE], "hazard/1").model)
    covered, noticed = [], []
    for index, one in enumerate([*first[-BEFORE:], *then]):
        tokens = np.array(champion.predict([one.features])[0].tokens)
        covered.append(one.output_tokens <= tokens)
        before = champion.drifts
        if adapt:
            champion.observe([one])
        if champion.drifts > before:
            noticed.append(index)
    return np.array(covered, dtype=np.float64), noticed


def _draw(online: Floats, fixed: Floats, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
    kernel = np.ones(SPAN) / SPAN
    for values, label in ((online, "online calibration"), (fixed, "calibration of the training")):
        shares = np.convolve(values, kernel, mode="valid")
        axes.plot(np.arange(len(shares)) + SPAN - BEFORE, shares, label=label)
    axes.axhline(0.9, color="black", linewidth=0.8)
    axes.axvline(0, color="grey", linestyle="--", linewidth=0.8)
    axes.set_xlabel("answers after the change of the mix")
    axes.set_ylabel(f"coverage of P90, last {SPAN}")
    axes.set_ylim(0.5, 1.02)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=100)
    plt.close(figure)
