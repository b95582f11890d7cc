"""The layouts in which quantized safetensors hold their codes, made into PackedWeight as they are read.

Codes are never unpacked to numbers here; where a file has them in our order, they are taken as they lie.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from stage_worker.loading.quantization_config import Layout, Scheme
from stage_worker.models.packed import Code, PackedWeight, packed, unpacked

Parts = Mapping[str, torch.Tensor]
"""The tensors of one weight, by the ends of their names."""

_E2M1 = tuple(sign * number for sign in (1.0, -1.0) for number in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))
# AWQ's order of the eight codes of a word.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
_PIECE_WORDS = 1 << 18
"""Words whose codes are put into another order at once."""


def packed_weight(parts: Parts, scheme: Scheme) -> PackedWeight:
    """The weight whose tensors these are; ValueError for values that cannot be."""
    if scheme.layout is Layout.GPTQ:
        return _gptq(parts, scheme)
    if scheme.layout is Layout.AWQ:
        return _awq(parts, scheme)
    if scheme.layout is Layout.WORDS:
        return _words(parts, scheme)
    if scheme.layout is Layout.MXFP4:
        return _mxfp4(parts)
    return _bytes(parts, scheme)


def _gptq(parts: Parts, scheme: Scheme) -> PackedWeight:
    """The layout of GPTQ.

    qweight: int32 [inputs * bits / 32, outputs]. qzeros: int32 [groups, outputs * bits / 32]. scales:
    [groups, outputs]. g_idx: of each input its group.
    """
    bits = scheme.bits
    words = parts["qweight"].t().contiguous()
    scales = parts["scales"].t().contiguous()
    zeros = unpacked(parts["qzeros"].view(torch.uint8), bits).to(torch.int16) + scheme.zero_shift
    zeros &= (1 << bits) - 1  # the format adds with wrapping
    inputs = words.shape[1] * 32 // bits
    return _whole(words, bits, scales, zeros.t(), inputs, parts.get("g_idx"))


def _awq(parts: Parts, scheme: Scheme) -> PackedWeight:
    """The layout of AWQ.

    qweight: int32 [inputs, outputs / 8]. qzeros: int32 [groups, outputs / 8]. scales: [groups, outputs].
    """
    stored = parts["qweight"]
    inputs, width = stored.shape
    words = torch.empty(width * 8, inputs // 8, dtype=torch.int32)
    step = max(1, _PIECE_WORDS // inputs)
    for column in range(0, width, step):
        codes = _awq_codes(stored[:, column : column + step])
        words[column * 8 : (column + step) * 8] = packed(codes.t().contiguous(), 4).view(torch.int32)
    zeros = _awq_codes(parts["qzeros"]).to(torch.int16)
    return _whole(words, 4, parts["scales"].t().contiguous(), zeros.t(), inputs, None)


def _awq_codes(words: torch.Tensor) -> torch.Tensor:
    """Codes uint8 [rows, outputs] of words [rows, outputs / 8]."""
    codes = unpacked(words.contiguous().view(torch.uint8), 4)
    rows = codes.shape[0]
    return codes.view(rows, -1, 8)[:, :, list(_AWQ_ORDER)].view(rows, -1)


def _words(parts: Parts, scheme: Scheme) -> PackedWeight:
    """The packed layout of compressed-tensors.

    weight_packed: int32 [outputs, inputs * bits / 32], of numbers raised by half their range.
    """
    bits, words, scales = scheme.bits, parts["weight_packed"], parts["weight_scale"]
    outputs, inputs = words.shape[0], words.shape[1] * 32 // bits
    scales = scales.view(-1, scales.shape[-1] if scales.ndim > 1 else 1).expand(outputs, -1).contiguous()
    zeros = None
    if "weight_zero_point" in parts:
        stored = parts["weight_zero_point"]
        if stored.dtype == torch.int32:  # packed along the outputs
            zeros = unpacked(stored.t().contiguous().view(torch.uint8), bits)[:, :outputs].t().to(torch.int16)
        else:
            zeros = _signed_zeros(stored, bits)
    return _whole(words, bits, scales, zeros, inputs, parts.get("weight_g_idx"))


def _signed_zeros(stored: torch.Tensor, bits: int) -> torch.Tensor:
    zeros = stored.to(torch.int16) + (1 << (bits - 1))
    return zeros if zeros.ndim > 1 else zeros.view(-1, 1)


def _whole(
    words: torch.Tensor,
    bits: int,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    inputs: int,
    group_of: torch.Tensor | None,
) -> PackedWeight:
    """Codes that are numbers. words: int32 [outputs, inputs * bits / 32]. zeros: int16 [outputs, groups]."""
    groups = scales.shape[1]
    group = inputs // groups
    zero = float(1 << (bits - 1))
    if zeros is not None:
        zeros = zeros.expand(scales.shape)
        if bool((zeros == zeros[0, 0]).all()):
            zero, zeros = float(zeros[0, 0]), None
        else:
            zeros = zeros.to(scales.dtype).contiguous()
    if group_of is not None:
        check_groups(group_of, groups)
        if torch.equal(group_of.long(), torch.arange(inputs) // group):
            group_of = None
    return PackedWeight(
        Code.TABLE if bits == 4 else Code.BITS_8,
        words.view(torch.uint8),
        scales,
        group,
        zero=0.0 if zeros is not None else zero,
        zeros=zeros,
        group_of=None if group_of is None else group_of.to(torch.int32),
    )


def check_groups(group_of: torch.Tensor, groups: int) -> None:
    """ValueError if an input is said to be of a group that is not there."""
    least, most = int(group_of.min()), int(group_of.max())
    if least < 0 or most >= groups:
        raise ValueError(f"a group of inputs is {least if least < 0 else most}, not one of 0 to {groups - 1}")


def _bytes(parts: Parts, scheme: Scheme) -> PackedWeight:
    """A byte for each code; a scale for all, for each output, group or block.

    weight: int8 or e4m3 [outputs, inputs].
    """
    weight = parts["weight"]
    outputs, inputs = weight.shape
    scales = parts["scale"]
    group = inputs
    if scheme.block is not None:
        scales = scales.repeat_interleave(scheme.block[0], dim=0)[:outputs]
        group = scheme.block[1]
    elif scales.ndim > 1 and scales.shape[1] > 1:
        group = inputs // scales.shape[1]
    scales = scales.reshape(-1, scales.shape[-1] if scales.ndim > 1 else 1).expand(outputs, -1).contiguous()
    if scheme.floating:
        return PackedWeight(Code.E4M3, weight.view(torch.uint8), scales, group)
    zeros = None
    if "weight_zero_point" in parts:
        zeros = _signed_zeros(parts["weight_zero_point"], 8)
    words = (weight.view(torch.uint8) ^ 128).view(torch.int32)
    return _whole(words, 8, scales, zeros, inputs, None)


def _mxfp4(parts: Parts) -> PackedWeight:
    """The layout of MXFP4: 4-bit floats in blocks of 32 inputs, each times a power of two.

    blocks: uint8 [outputs, blocks, 16]. scales: uint8 [outputs, blocks], exponents.
    """
    blocks, exponents = parts["blocks"], parts["scales"]
    # A bfloat16 has the same exponents, and is twice as small as a float32.
    scales = torch.ldexp(torch.ones(exponents.shape), exponents.to(torch.int32) - 127).to(torch.bfloat16)
    return PackedWeight(Code.TABLE, blocks.flatten(1), scales, 2 * blocks.shape[2], table=_E2M1)
