"""How close to the hardware: the engine's phases against what one core can compute and read.

    python -m bench.roofline ENGINE.json ... --out docs/images/roofline

ENGINE.json: of `python -m bench.engine`, on the same machine. The peaks are measured first, on processor
time: multiplications of registers only (bench/peaks.c), and reading memory larger than all caches.
Writes OUT.json and OUT.png; prints the share of the floor (the longer of arithmetic and memory) reached.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from stage_worker.models.native import build
from stage_worker.models.native.build import Source, usable_variants

_TURNS = 200_000
_MEMORY = 1 << 28


def measure_peaks() -> dict[str, float]:
    """Per core: GFLOP/s of multiplying bfloat16 and int8 as well as it can, GB/s of reading."""
    variant = usable_variants(bfloat16=True)[0]
    options = Source.of(variant, bfloat16=True).options
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "peaks.so"
        headers = Path(build.__file__).parent
        source = Path(__file__).with_name("peaks.c")
        command = ["cc", *options, f"-I{headers}", str(source), "-o", str(built)]
        subprocess.run(command, check=True, timeout=120)
        library = ctypes.CDLL(str(built))
    sums = np.zeros(512, dtype=np.float32)
    peaks = {}
    for name in ("bfloat16", "int8"):
        function = library.peak_products if name == "bfloat16" else library.peak_byte_products
        function.argtypes, function.restype = (ctypes.c_long, ctypes.c_void_p), ctypes.c_double
        flop = function(_TURNS, sums.ctypes.data)
        peaks[name] = flop / 1e9 / _fastest(lambda call=function: call(_TURNS, sums.ctypes.data), 50)  # type: ignore[misc]
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
