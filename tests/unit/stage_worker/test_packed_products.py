"""Products with weights of few bits: to the last bit what the same weights, unpacked, would give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from stage_worker.loading.gguf_blocks import PACKED_KINDS
from stage_worker.models.joined_linear import JoinedLinear
from stage_worker.models.native.build import VARIANTS, Variant
from stage_worker.models.native_ops import NativeLinear
from stage_worker.models.native_packed import NativePackedLinear
from stage_worker.models.packed import Code, PackedWeight, packed, stacked
from stage_worker.models.packed_linear import PackedLinear
from tests.unit.stage_worker.test_models_native import kernels, random

DTYPES = [torch.float32, torch.bfloat16]
KINDS = sorted(PACKED_KINDS, key=lambda kind: kind.name)


def blocks(kind: gguf.GGMLQuantizationType, outputs: int, each: int = 3, seed: int = 0) -> np.ndarray:
    """Rows of `each` blocks with any bits in them, but scales that are small numbers."""
    random = np.random.default_rng(seed)
    size = gguf.constants.GGML_QUANT_SIZES[kind][1]
    raw = random.integers(0, 256, (outputs, each, size), dtype=np.uint8)
    places = {"Q6_K": [208]}.get(kind.name, [0, 2] if kind.name[-1] in "1K" else [0])
    for place in places:
        scales = (random.standard_normal((outputs, each, 1)) * 0.01).astype(np.float16)
        raw[:, :, place : place + 2] = scales.view(np.uint8)
    return raw.reshape(outputs, -1)


def weight(code: Code, outputs: int, inputs: int, group: int, **options: Any) -> PackedWeight:
    generator = torch.Generator().manual_seed(outputs)
    codes = torch.randint(0, 1 << code.bits, (outputs, inputs), generator=generator, dtype=torch.uint8)
    if code is Code.E4M3:
        codes[codes & 127 == 127] = 0  # no numbers
    groups = -(-inputs // group)
    scales = torch.rand(outputs, groups, generator=generator).to(options.pop("scales", torch.float16))
    return PackedWeight(code, packed(codes, code.bits), scales, group, **options)


def zeros(outputs: int, groups: int) -> torch.Tensor:
    return torch.randint(0, 17, (outputs, groups)).half()


WEIGHTS = {
    "fours": weight(Code.TABLE, 100, 128, 32, zero=8.0),
    "fours with zeros": weight(Code.TABLE, 64, 1536, 128, scales=torch.bfloat16, zero=3.0),
    "a table": weight(Code.TABLE, 70, 704, 64, table=tuple(np.linspace(-1.7, 1.3, 16).tolist())),
    "zero points": replace(weight(Code.TABLE, 64, 256, 64), zeros=zeros(64, 4)),
    "groups in any order": replace(
        weight(Code.TABLE, 64, 256, 64), zeros=zeros(64, 4), group_of=torch.randperm(256).int() % 4
    ),
    "bytes": weight(Code.BITS_8, 70, 160, 160, scales=torch.float32, zero=128.0),
    "floats": weight(Code.E4M3, 70, 320, 320, scales=torch.float32),
    "floats in blocks, the last one narrower": weight(Code.E4M3, 70, 192, 128, scales=torch.float32),
    **{kind.name: PACKED_KINDS[kind](torch.from_numpy(blocks(kind, 70))) for kind in KINDS},
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("each", [1, 3])
def test_blocks_stand_for_what_gguf_says(kind: gguf.GGMLQuantizationType, each: int) -> None:
    raw = blocks(kind, 10, each)
    made = PACKED_KINDS[kind](torch.from_numpy(raw))
    np.testing.assert_array_equal(made.dequantized(torch.float32), gguf.quants.dequantize(raw, kind))
    assert made.nbytes <= 1.03 * raw.nbytes
    x = random(2, made.shape[1], dtype=torch.float32)
    expected = x @ made.dequantized(torch.float32).T
    product = NativePackedLinear(kernels(torch.float32), made, None)(x)
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype: torch.dtype, variant: Variant) -> None:
    used = kernels(dtype, variant)
    for name, one in WEIGHTS.items():
        outputs, inputs = one.shape
        bias = random(outputs, dtype=dtype, seed=1)
        numbers = one.dequantized(dtype)
        made = NativePackedLinear(used, one, bias, float_out=True)
        plain = NativeLinear(used, numbers, bias, float_out=True)
        ids = torch.tensor([0, outputs - 1, 3])
        assert torch.equal(made.rows(ids), numbers[ids]), name
        for rows in (1, 2, 3, 4, 5, 13, 30, 200):
            x = random(rows, inputs, dtype=dtype, seed=rows)
            assert torch.equal(made(x), plain(x)), (name, rows)


def test_products_by_pytorch() -> None:
    for name, one in WEIGHTS.items():
        linear = PackedLinear(one, None, torch.float32)
        x = random(3, one.shape[1], dtype=torch.float32)
        expected = x @ one.dequantized(torch.float32).T
        torch.testing.assert_close(linear(x), expected, msg=name)
        assert torch.equal(linear.rows(torch.tensor([1])), one.dequantized(torch.float32)[1:2])


def test_like_weights_are_stacked_others_joined() -> None:
    one, other = (weight(Code.TABLE, 64, 128, 32, zero=8.0) for _ in range(2))
    both = stacked([one, other])
    assert both is not None
    assert torch.equal(both.dequantized(torch.float32)[64:], other.dequantized(torch.float32))
    assert stacked([one, weight(Code.BITS_8, 64, 128, 32)]) is None
    assert stacked([one, weight(Code.TABLE, 64, 128, 32)]) is None
    parts = [PackedLinear(one, None, torch.float32), PackedLinear(WEIGHTS["fours"], None, torch.float32)]
    x = random(3, 128, dtype=torch.float32)
    assert torch.equal(JoinedLinear(parts, [64, 100])(x), torch.cat([part(x) for part in parts], dim=1))
