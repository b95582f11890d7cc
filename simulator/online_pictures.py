"""Pictures of online runs. matplotlib is needed only here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tidepipe_common.errors import ConfigError

if TYPE_CHECKING:
    from simulator.goodput import Figures, Question


def draw_rates(curves: Mapping[str, Sequence[Figures]], question: Question, folder: Path) -> Path:
    """Attainment and the P90 latencies of each system over the request rate."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (share, ttft, tpot) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, points in curves.items():
        rates = [point.rate for point in points]
        share.plot(rates, [100 * point.attainment for point in points], marker=".", label=name)
        ttft.plot(rates, [point.ttft_ms["p90"] / 1000 for point in points], marker=".")
        tpot.plot(rates, [point.tpot_ms["p90"] for point in points], marker=".")
    share.axhline(100 * question.attainment, color="black", lw=0.8)
    ttft.axhline(question.slo.ttft_s, color="black", lw=0.8)
    tpot.axhline(question.slo.tpot_s * 1000, color="black", lw=0.8)
    share.set(ylabel="requests within both targets, %", ylim=(0, 102))
    ttft.set(ylabel="TTFT P90, s", ylim=(0, 3 * question.slo.ttft_s))
    tpot.set(ylabel="TPOT P90, ms", ylim=(0, 3000 * question.slo.tpot_s))
    for axes in (share, ttft, tpot):
        axes.set_xlabel("requests/s")
    share.legend(fontsize="small", frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "online-rates.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
