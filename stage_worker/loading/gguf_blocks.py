"""Blocks of GGUF made into PackedWeight: codes put in order, none unpacked to numbers.

The layouts are those of ggml-quants.h; the `gguf` package, which decodes all of them, says what they mean
(and is what the tests compare with).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from stage_worker.models.packed import Code, PackedWeight, packed

BlockReader = Callable[[torch.Tensor], PackedWeight]
"""Makes a weight of raw rows, uint8 [outputs, row bytes]."""

_SMALL = 32
_PIECE_BYTES = 1 << 22
_TYPE = GGMLQuantizationType


def _fields(raw: torch.Tensor, kind: GGMLQuantizationType, *sizes: int) -> list[torch.Tensor]:
    """Parts of the blocks, [outputs, blocks, size] each."""
    blocks = raw.view(raw.shape[0], -1, GGML_QUANT_SIZES[kind][1])
    return list(torch.split(blocks, list(sizes), dim=2))


def _halves(field: torch.Tensor) -> torch.Tensor:
    """float16 [outputs, blocks] of two bytes each."""
    return field.contiguous().view(torch.float16).flatten(1)


def _in_order(field: torch.Tensor, bits: int, together: int) -> torch.Tensor:
    """Bytes of parts that stand one behind the other, where a file has them beside each other.

    Of each `together` bytes all lowest `bits` bits come first, then those above, and so on.
    """
    outputs = field.shape[0]
    result = torch.empty(outputs, field[0].numel(), dtype=torch.uint8)
    step = max(1, _PIECE_BYTES // result.shape[1])
    for row in range(0, outputs, step):
        part = field[row : row + step].reshape(-1, together)
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8).view(1, -1, 1)
        codes = part.unsqueeze(1) >> shifts & (1 << bits) - 1
        result[row : row + step] = packed(codes.flatten(1), bits).view(-1, result.shape[1])
    return result


def _q4_0(raw: torch.Tensor) -> PackedWeight:
    unit, codes = _fields(raw, _TYPE.Q4_0, 2, 16)
    return PackedWeight(Code.TABLE, _in_order(codes, 4, 16), _halves(unit), _SMALL, zero=8.0)


def _q4_1(raw: torch.Tensor) -> PackedWeight:
    unit, least, codes = _fields(raw, _TYPE.Q4_1, 2, 2, 16)
    return PackedWeight(Code.TABLE, _in_order(codes, 4, 16), _halves(unit), _SMALL, least=_halves(least))


def _q5_0(raw: torch.Tensor) -> PackedWeight:
    unit, high, codes = _fields(raw, _TYPE.Q5_0, 2, 4, 16)
    low, more = _in_order(codes, 4, 16), high.contiguous().flatten(1)
    return PackedWeight(Code.BITS_5, low, _halves(unit), _SMALL, more=more, zero=16.0)


def _q5_1(raw: torch.Tensor) -> PackedWeight:
    unit, least, high, codes = _fields(raw, _TYPE.Q5_1, 2, 2, 4, 16)
    low, more = _in_order(codes, 4, 16), high.contiguous().flatten(1)
    return PackedWeight(Code.BITS_5, low, _halves(unit), _SMALL, more=more, least=_halves(least))


def _q8_0(raw: torch.Tensor) -> PackedWeight:
    unit, codes = _fields(raw, _TYPE.Q8_0, 2, 32)
    return PackedWeight(
        Code.BITS_8, codes.contiguous().flatten(1).bitwise_xor_(128), _halves(unit), _SMALL, zero=128.0
    )


def _six_bits(packs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and negative minima, int8 [outputs, blocks * 8], of eight in 12 bytes, six bits each."""
    low, high, both = torch.split(packs, 4, dim=2)
    scales = torch.cat((low & 63, (both & 15) | (low >> 6) << 4), dim=2)
    least = torch.cat((high & 63, both >> 4 | (high >> 6) << 4), dim=2)
    return scales.flatten(1).view(torch.int8), -least.flatten(1).view(torch.int8)


def _q4_k(raw: torch.Tensor) -> PackedWeight:
    unit, least_unit, packs, codes = _fields(raw, _TYPE.Q4_K, 2, 2, 12, 128)
    scales, least = _six_bits(packs)
    return PackedWeight(
        Code.TABLE,
        _in_order(codes, 4, 32),
        scales,
        _SMALL,
        least=least,
        units=_halves(unit),
        least_units=_halves(least_unit),
    )


def _q5_k(raw: torch.Tensor) -> PackedWeight:
    unit, least_unit, packs, high, codes = _fields(raw, _TYPE.Q5_K, 2, 2, 12, 32, 128)
    scales, least = _six_bits(packs)
    return PackedWeight(
        Code.BITS_5,
        _in_order(codes, 4, 32),
        scales,
        _SMALL,
        more=_in_order(high, 1, 32),
        least=least,
        units=_halves(unit),
        least_units=_halves(least_unit),
    )


def _q6_k(raw: torch.Tensor) -> PackedWeight:
    codes, high, scales, unit = _fields(raw, _TYPE.Q6_K, 128, 64, 16, 2)
    return PackedWeight(
        Code.BITS_6,
        _in_order(codes, 4, 64),
        scales.flatten(1).view(torch.int8),
        16,
        more=_in_order(high, 2, 32),
        zero=32.0,
        units=_halves(unit),
    )


PACKED_KINDS: Mapping[GGMLQuantizationType, BlockReader] = {
    _TYPE.Q4_0: _q4_0,
    _TYPE.Q4_1: _q4_1,
    _TYPE.Q5_0: _q5_0,
    _TYPE.Q5_1: _q5_1,
    _TYPE.Q8_0: _q8_0,
    _TYPE.Q4_K: _q4_k,
    _TYPE.Q5_K: _q5_k,
    _TYPE.Q6_K: _q6_k,
}
"""Blocks that are kept as codes; others become numbers as they are read."""
