"""Writes a model in the formats of quantized checkpoints, by plain rounding, and what it then stands for.

    python -m bench.quantized_checkpoints smollm2-135m gptq /tmp/gptq
    python -m bench.quantized_checkpoints smollm2-135m gptq /tmp/gptq-as-numbers --numbers

Better quantizers choose what they round to with more care; the formats, and what computes with them, are the
same. --numbers: a plain checkpoint of the numbers that the codes stand for, to compare answers with.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tidepipe_common.model_source import resolve_model

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_LARGEST_E4M3 = 448.0


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight [outputs, inputs] as codes. scales, zeros: [outputs, groups]; group_of: of each input."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    group_of: torch.Tensor

    def numbers(self) -> torch.Tensor:
        """What the codes stand for, in float32."""
        places = self.group_of.long()
        return (self.codes.float() - self.zeros.float()[:, places]) * self.scales.float()[:, places]


def rounded(
    weight: torch.Tensor,
    bits: int,
    group: int,
    *,
    symmetric: bool,
    scale_dtype: torch.dtype,
    shuffled: bool = False,
) -> Rounded:
    """The nearest codes. shuffled: groups are not of inputs in a row, as GPTQ leaves them with desc_act."""
    outputs, inputs = weight.shape
    most, half = (1 << bits) - 1, 1 << (bits - 1)
    group_of = torch.arange(inputs) // group
    if shuffled:
        group_of = group_of[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
    order = group_of.argsort(stable=True)
    grouped = weight.float()[:, order].view(outputs, -1, group)
    if symmetric:
        scales = grouped.abs().amax(2) / (half - 1)
        zeros = torch.full_like(scales, half)
    else:
        least, largest = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
        scales = (largest - least) / most
        zeros = (-least / scales.clamp(min=1e-8)).round().clamp(0, most)
    scales = scales.clamp(min=1e-6).to(scale_dtype)
    codes = weight.float() / scales.float()[:, group_of] + zeros[:, group_of]
    return Rounded(codes.round().clamp(0, most).to(torch.int32), scales, zeros.to(torch.int32), group_of)


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [n, m * bits / 32] of codes [n, m], the first in the lowest bits."""
    each = 32 // bits
    parts = codes.to(torch.int32).contiguous().view(codes.shape[0], -1, each)
    joined = torch.zeros(parts.shape[:2], dtype=torch.int32)
    for place in range(each):
        joined |= parts[:, :, place] << bits * place
    return joined


Parts = dict[str, torch.Tensor]
Written = tuple[Parts, torch.Tensor]
"""The tensors of a weight by the ends of their names, and the numbers that they stand for."""


def _gptq(bits: int, group: int, *, symmetric: bool, shuffled: bool = False, shift: int = 1) -> _Writer:
    def write(weight: torch.Tensor) -> Written:
        made = rounded(weight, bits, group, symmetric=symmetric, scale_dtype=torch.float16, shuffled=shuffled)
        zeros = (made.zeros.t() - shift) % (1 << bits)
        parts = {
            "qweight": words(made.codes, bits).t(),
            "qzeros": words(zeros, bits),
            "scales": made.scales.t(),
            "g_idx": made.group_of.to(torch.int32),
        }
        return parts, made.numbers()

    return write


def _awq(weight: torch.Tensor) -> Written:
    made = rounded(weight, 4, 32, symmetric=False, scale_dtype=torch.float16)

    def ordered(codes: torch.Tensor) -> torch.Tensor:
        return words(codes.reshape(codes.shape[0], -1, 8)[:, :, list(_AWQ_ORDER)].flatten(1), 4)

    parts = {"qweight": ordered(made.codes.t()), "qzeros": ordered(made.zeros.t()), "scales": made.scales.t()}
    return parts, made.numbers()


def _packed(group: int, *, symmetric: bool) -> _Writer:
    def write(weight: torch.Tensor) -> Written:
        made = rounded(weight, 4, group, symmetric=symmetric, scale_dtype=torch.bfloat16)
        parts = {
            "weight_packed": words(made.codes, 4),
            "weight_scale": made.scales,
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            parts["weight_zero_point"] = words(made.zeros.t(), 4).t()
        return parts, made.numbers()

    return write


def _int8(weight: torch.Tensor) -> Written:
    made = rounded(weight, 8, weight.shape[1], symmetric=True, scale_dtype=torch.bfloat16)
    return {"weight": (made.codes - 128).to(torch.int8), "weight_scale": made.scales}, made.numbers()


def _float8(weight: torch.Tensor) -> Written:
    scale = (weight.float().abs().amax() / _LARGEST_E4M3).to(torch.bfloat16)
    codes = (weight.float() / scale.float()).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale.view(1)}, codes.float() * scale.float()


def _float8_blocks(weight: torch.Tensor) -> Written:
    rows, columns = (-(-size // _BLOCK) for size in weight.shape)
    scales = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            block = weight[row * _BLOCK : (row + 1) * _BLOCK, column * _BLOCK : (column + 1) * _BLOCK]
            scales[row, column] = block.float().abs().amax() / _LARGEST_E4M3
    spread = scales.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)
    spread = spread[: weight.shape[0], : weight.shape[1]]
    codes = (weight.float() / spread).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scales}, codes.float() * spread


_BLOCK = 128
_Writer = Callable[[torch.Tensor], Written]


def _group(bits: int, strategy: str, **options: Any) -> Mapping[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, **options}
    return {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}


def _compressed(form: str, groups: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": groups,
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


def _gptq_config(bits: int, group: int, **options: Any) -> Mapping[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": False,
        "sym": True,
        **options,
    }


FORMATS: Mapping[str, tuple[_Writer, Mapping[str, Any]]] = {
    "gptq": (_gptq(4, 32, symmetric=True), _gptq_config(4, 32)),
    "gptq-8": (_gptq(8, 32, symmetric=False), _gptq_config(8, 32, sym=False)),
    "gptq-act-order": (
        _gptq(4, 32, symmetric=False, shuffled=True, shift=0),
        _gptq_config(4, 32, desc_act=True, sym=False, checkpoint_format="gptq_v2"),
    ),
    "awq": (
        _awq,
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    ),
    "int4": (_packed(32, symmetric=True), _compressed("pack-quantized", _group(4, "group", group_size=32))),
    "int4-zeros": (
        _packed(32, symmetric=False),
        _compressed("pack-quantized", _group(4, "group", group_size=32, symmetric=False)),
    ),
    "int8": (_int8, _compressed("int-quantized", _group(8, "channel"))),
    "fp8": (_float8, _compressed("float-quantized", _group(8, "tensor", type="float"))),
    "fp8-blocks": (
        _float8_blocks,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [_BLOCK, _BLOCK]},
    ),
}
"""By name: what writes a weight, and what config.json says of it."""


def write_quantized(source: Path, folder: Path, name: str, *, numbers: bool = False) -> Path:
    """The model of a Hugging Face folder with one file of weights, its layers' products in a format."""
    write, config = FORMATS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model") and file.name != "config.json":
            shutil.copy2(file, folder / file.name)
    tensors: dict[str, torch.Tensor] = {}
    for tensor, values in load_file(source / "model.safetensors").items():
        module = tensor.removesuffix(".weight")
        if values.ndim != 2 or not module.endswith("_proj"):
            tensors[tensor] = values
            continue
        parts, stands_for = write(values)
        if numbers:
            tensors[tensor] = stands_for.to(values.dtype)
        else:
            tensors |= {f"{module}.{end}": part.contiguous() for end, part in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((source / "config.json").read_text())
    if not numbers:
        said["quantization_config"] = config
    (folder / "config.json").write_text(json.dumps(said, indent=1))
    return folder


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="as for tidepipe up; a folder with one file of weights")
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--numbers", action="store_true")
    options = parser.parse_args()
    source = resolve_model(options.model, allow_download=False)
    print(write_quantized(source, options.folder, options.format, numbers=options.numbers))


if __name__ == "__main__":
    main()
