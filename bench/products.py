"""How fast products with packed weights are by number of rows: bfloat16 and int8, weights read from memory.

    python -m bench.products --out products.json

A decoder layer's four products, fourteen layers of the 135M model's sizes one behind the other, on one thread
and its processor time: more weights than caches hold, as in a decode step. Median of the repeats. --packed:
weights of few bits instead of int8, as GGUF's blocks have them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gguf
import torch

from stage_worker.loading.gguf_blocks import PACKED_KINDS
from stage_worker.models.native.library import NativeKernels, load_kernels
from stage_worker.models.native_int8 import Int8Linear
from stage_worker.models.native_ops import NativeLinear, NativeProduct
from stage_worker.models.native_packed import NativePackedLinear

_SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))
_LAYERS = 14
_BLOCKS = ("Q4_0", "Q5_0", "Q8_0")
_ROWS = (1, 2, 3, 5, 7, 12, 21, 64, 128, 192)


def _packed(
    kind: str, kernels: NativeKernels, weight: torch.Tensor, bias: torch.Tensor | None
) -> NativePackedLinear:
    type_ = gguf.GGMLQuantizationType[kind]
    raw = torch.from_numpy(gguf.quants.quantize(weight.float().numpy(), type_))
    return NativePackedLinear(kernels, PACKED_KINDS[type_](raw), bias)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kernels = load_kernels(torch.bfloat16, 1)
    if kernels is None:
        raise SystemExit("error: no native kernels here")
    rates: dict[str, dict[int, float]] = {}
    kinds: dict[str, Callable[..., NativeProduct]] = {"bfloat16": NativeLinear, "int8": Int8Linear}
    if options.packed:
        kinds = {"bfloat16": NativeLinear, **{name: partial(_packed, name) for name in _BLOCKS}}
    for name, kind in kinds.items():
        layers = [
            kind(kernels, (0.02 * torch.randn(*shape)).bfloat16(), None)
            for _ in range(_LAYERS)
            for shape in _SHAPES
        ]
        rates[name] = {}
        for rows in _ROWS:
            inputs = {size: torch.randn(rows, size).bfloat16() for size in (576, 1536)}
            seconds = []
            for _ in range(options.repeats + 1):
                begin = time.thread_time()
                for layer in layers:
                    layer(inputs[int(layer.product.inputs)])
                seconds.append(time.thread_time() - begin)
            flop = 2.0 * rows * _LAYERS * sum(a * b for a, b in _SHAPES)
            rates[name][rows] = round(flop / statistics.median(seconds[1:]) / 1e9, 1)
    result = {"kernels": kernels.variant, "gflop_per_s": rates}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
