"""Pictures of load runs. matplotlib is needed only here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tidepipe_common.errors import ConfigError
from workloads.loadgen.figures import Figures


def draw_rates(
    runs: Sequence[Figures], ttft_ms: float, tpot_ms: float, attainment: float, folder: Path
) -> Path:
    """Attainment, and TTFT and TPOT at P50 and P90, over the request rate. ConfigError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs = sorted(runs, key=lambda one: one.rate)
    rates = [one.rate for one in runs]
    figure, (share, ttft, tpot) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    share.plot(rates, [100 * one.attainment for one in runs], marker=".", label="classical TTFT")
    share.plot(
        rates, [100 * one.attainment_switch_wait for one in runs], marker=".", label="with phase-switch wait"
    )
    share.axhline(100 * attainment, color="black", lw=0.8)
    share.set(ylabel="requests within both targets, %", ylim=(0, 102))
    share.legend(fontsize="small", frameon=False)
    for axes, name, target in ((ttft, "ttft_ms", ttft_ms), (tpot, "tpot_ms", tpot_ms)):
        for quantile in ("p50", "p90"):
            points = [(one.rate, values[quantile]) for one in runs if (values := getattr(one, name))]
            axes.plot([x for x, _ in points], [y for _, y in points], marker=".", label=quantile)
        axes.axhline(target, color="black", lw=0.8)
        axes.set(ylabel=f"{name[:4].upper()}, ms", ylim=(0, None))
        axes.legend(fontsize="small", frameon=False)
    for axes in (share, ttft, tpot):
        axes.set_xlabel("requests/s")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "serve.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
