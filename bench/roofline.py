"""How close to the hardware: the engine's phases against what one core can compute and read.

    python -m bench.roofline ENGINE.json ... --out docs/images/roofline

ENGINE.json: of `python -m bench.engine`, on the same machine. The peaks are measured first, on processor
time: the product where a panel of weights lies in the first caches, and memory larger than all caches.
Writes OUT.json and OUT.png; prints the share of the floor (the longer of arithmetic and memory) reached.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from stage_worker.models.native.library import load_kernels
from stage_worker.models.native_int8 import Int8Linear
from stage_worker.models.native_ops import NativeLinear

_ROWS, _INPUTS, _OUTPUTS = 192, 256, 1024
_MEMORY = 1 << 28


def measure_peaks() -> dict[str, float]:
    """Per core: GFLOP/s of products in bfloat16 and int8, and GB/s of reading memory."""
    kernels = load_kernels(torch.bfloat16, 1)
    if kernels is None:
        raise SystemExit("error: no native kernels here")
    weight, x = torch.randn(_OUTPUTS, _INPUTS).bfloat16(), torch.randn(_ROWS, _INPUTS).bfloat16()
    flop = 2.0 * _ROWS * _INPUTS * _OUTPUTS / 1e9
    peaks = {}
    for name, linear in (
        ("bfloat16", NativeLinear(kernels, weight, None)),
        ("int8", Int8Linear(kernels, weight, None)),
    ):
        out = torch.empty(_ROWS, _OUTPUTS, dtype=torch.bfloat16)
        peaks[name] = flop / _fastest(lambda linear=linear, out=out: linear(x, out), 300)  # type: ignore[misc]
    memory = np.ones(_MEMORY, dtype=np.float32)
    peaks["memory"] = memory.nbytes / 1e9 / _fastest(memory.max, 5)
    return peaks


def _fastest(call: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        begin = time.thread_time()
        call()
        best = min(best, time.thread_time() - begin)
    return best


def places(engine: dict[str, Any], peaks: dict[str, float]) -> list[dict[str, Any]]:
    """Where the phases of each stage stand."""
    compute = peaks[engine["arithmetic"]]
    result = []
    for stage, phases in engine["seconds"].items():
        for phase, row in phases.items():
            if "gflop" not in row:
                continue
            floor = max(row["gflop"] / compute, row["gbyte"] / peaks["memory"])
            result.append(
                {
                    "name": f"{engine['arithmetic']}, {stage}, {phase}",
                    "flop_per_byte": row["gflop"] / row["gbyte"],
                    "gflop_per_s": row["gflop"] / row["total"],
                    "seconds": row["total"],
                    "floor_s": round(floor, 2),
                    "share_of_floor": round(floor / row["total"], 3),
                }
            )
    return result


def draw(points: list[dict[str, Any]], peaks: dict[str, float], target: Path) -> None:
    """The roofline and the points below it."""
    figure, axis = plt.subplots(figsize=(7, 4.2))
    intensity = np.logspace(-1, 4, 200)
    for name, style in (("bfloat16", "-"), ("int8", "--")):
        roof = np.minimum(peaks[name], intensity * peaks["memory"])
        axis.loglog(intensity, roof, f"k{style}", linewidth=1, label=f"roof, {name}")
    for point in points:
        label = f"{point['name']}: {point['share_of_floor']:.0%}"
        axis.plot(point["flop_per_byte"], point["gflop_per_s"], "o", label=label)
    axis.set_xlabel("FLOP per byte read")
    axis.set_ylabel("GFLOP/s of one core")
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("engines", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    options = parser.parse_args()
    peaks = measure_peaks()
    points = [point for path in options.engines for point in places(json.loads(path.read_text()), peaks)]
    options.out.with_suffix(".json").write_text(json.dumps({"peaks": peaks, "phases": points}, indent=1))
    draw(points, peaks, options.out.with_suffix(".png"))
    print(json.dumps({"peaks": peaks, "phases": points}, indent=1))


if __name__ == "__main__":
    main()
