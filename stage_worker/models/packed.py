"""Weights of few bits: codes with scales, as quantized checkpoints have them, in one layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

_PIECE = 1 << 20
"""Numbers that are unpacked at once."""


class Code(Enum):
    """What a code means. bits: of each; low, more: of these, how many are kept where."""

    TABLE = "4 bits, by a table"
    BITS_5 = "5 bits"
    BITS_6 = "6 bits"
    BITS_8 = "8 bits"
    E4M3 = "8-bit float"

    @property
    def bits(self) -> int:
        """Of each code."""
        return _BITS[self]

    @property
    def low(self) -> int:
        """Bits of each code in `PackedWeight.codes`."""
        return 8 if self.bits == 8 else 4

    @property
    def more(self) -> int:
        """Bits of each code in `PackedWeight.more`."""
        return self.bits - self.low


_BITS = {Code.TABLE: 4, Code.BITS_5: 5, Code.BITS_6: 6, Code.BITS_8: 8, Code.E4M3: 8}

WHOLE = tuple(float(number) for number in range(16))
"""The table of codes that are numbers themselves."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [outputs, inputs] as (number of the code - zero) * scale + least, in groups of inputs.

    codes: uint8 [outputs, inputs * low bits / 8], the first code in the lowest bits of the first byte. more:
    likewise the other bits of codes of 5 and 6. inputs: a multiple of 8. scales: [outputs, groups], float32,
    float16 or bfloat16; with `units` int8. zeros, least: likewise, or None for `zero` and 0. units,
    least_units: float16 [outputs, some], what scales and least are multiples of. group: inputs in a row that
    share a scale, the last ones of a row may be fewer; with group_of, int32 [inputs], of no meaning.
    """

    code: Code
    codes: torch.Tensor
    scales: torch.Tensor
    group: int
    more: torch.Tensor | None = None
    zero: float = 0.0
    zeros: torch.Tensor | None = None
    least: torch.Tensor | None = None
    units: torch.Tensor | None = None
    least_units: torch.Tensor | None = None
    group_of: torch.Tensor | None = None
    table: tuple[float, ...] = WHOLE

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        outputs, width = self.codes.shape
        return outputs, width * 8 // self.code.low

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""
        parts = [getattr(self, name) for name in (*_ROW_PARTS, "group_of")]
        return sum(part.nbytes for part in parts if part is not None)

    def taken(self, which: slice | torch.Tensor) -> PackedWeight:
        """Some outputs, or all in another order."""
        parts = {name: getattr(self, name) for name in _ROW_PARTS}
        taken: dict[str, Any] = {name: None if part is None else part[which] for name, part in parts.items()}
        return replace(self, **taken)

    def to(self, device: torch.device) -> PackedWeight:
        """The same on a device."""
        parts = {name: getattr(self, name) for name in (*_ROW_PARTS, "group_of")}
        moved: dict[str, Any] = {
            name: None if part is None else part.to(device) for name, part in parts.items()
        }
        return replace(self, **moved)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [outputs, inputs] as plain numbers, computed in float32."""
        outputs, inputs = self.shape
        target = torch.empty(outputs, inputs, dtype=dtype, device=self.codes.device)
        step = max(1, _PIECE // inputs)
        for row in range(0, outputs, step):
            target[row : row + step] = self.taken(slice(row, row + step))._numbers()
        return target

    def _numbers(self) -> torch.Tensor:
        outputs, inputs = self.shape
        codes = unpacked(self.codes, self.code.low)
        if self.more is not None:
            codes = codes | unpacked(self.more, self.code.more) << self.code.low
        if self.code is Code.E4M3:
            numbers = codes.view(torch.float8_e4m3fn).float()
        elif self.code is Code.TABLE and self.table != WHOLE:
            numbers = torch.tensor(self.table, device=codes.device)[codes.long()]
        else:
            numbers = codes.float()
        scales = _times_units(self.scales.float(), self.units)
        least = None if self.least is None else _times_units(self.least.float(), self.least_units)
        zeros = self.zeros.float() if self.zeros is not None else None
        if self.group_of is not None:
            places = self.group_of.long()
        elif self.group * scales.shape[1] == inputs:
            numbers = numbers.view(outputs, scales.shape[1], self.group)
            numbers = numbers - (self.zero if zeros is None else zeros.unsqueeze(2))
            numbers = numbers * scales.unsqueeze(2)
            if least is not None:
                numbers = numbers + least.unsqueeze(2)
            return numbers.view(outputs, inputs)
        else:
            places = torch.arange(inputs, device=codes.device) // self.group
        numbers = numbers - (self.zero if zeros is None else zeros[:, places])
        numbers = numbers * scales[:, places]
        return numbers if least is None else numbers + least[:, places]


_ROW_PARTS = ("codes", "more", "scales", "zeros", "least", "units", "least_units")

Weight = torch.Tensor | PackedWeight
"""What a product can be made of: numbers [outputs, inputs], or codes."""


def _times_units(scales: torch.Tensor, units: torch.Tensor | None) -> torch.Tensor:
    if units is None:
        return scales
    return scales * units.float().repeat_interleave(scales.shape[1] // units.shape[1], dim=1)


def stacked(weights: Sequence[PackedWeight]) -> PackedWeight | None:
    """The weights one below the other, as one; None where their codes or groups differ."""
    first = weights[0]
    if any(not _alike(first, other) for other in weights[1:]):
        return None
    if len(weights) == 1:
        return first
    parts = {name: [getattr(weight, name) for weight in weights] for name in _ROW_PARTS}
    joined: dict[str, Any] = {
        name: None if several[0] is None else torch.cat(several) for name, several in parts.items()
    }
    return replace(first, **joined)


def _alike(one: PackedWeight, other: PackedWeight) -> bool:
    """Whether two weights differ in their numbers only."""
    fixed = [(of.code, of.group, of.zero, of.table, of.shape[1]) for of in (one, other)]
    if fixed[0] != fixed[1]:
        return False
    for name in _ROW_PARTS:
        mine, theirs = getattr(one, name), getattr(other, name)
        if (mine is None) != (theirs is None):
            return False
        if mine is not None and (mine.dtype, mine.shape[1:]) != (theirs.dtype, theirs.shape[1:]):
            return False
    if one.group_of is None or other.group_of is None:
        return one.group_of is other.group_of
    return torch.equal(one.group_of, other.group_of)


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of 1, 2, 4 or 8 bits, uint8 [rows, n], as bytes, the first in the lowest bits of the first."""
    while bits < 8:  # two and two become one of twice the bits
        codes, bits = codes[:, ::2] | codes[:, 1::2] << bits, 2 * bits
    return codes.contiguous()


def unpacked(parts: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `packed`."""
    if bits == 8:
        return parts
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=parts.device)
    return (parts.unsqueeze(2) >> shifts & (1 << bits) - 1).flatten(1)
