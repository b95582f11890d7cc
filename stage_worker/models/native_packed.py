"""Products with weights of few bits by the C kernels, which unpack a block at a time."""

from __future__ import annotations

from ctypes import addressof, c_float

import torch
from torch.nn import functional as F

from stage_worker.models.native.library import NativeKernels
from stage_worker.models.native.structures import PANEL, Packed
from stage_worker.models.native_ops import NativeProduct, panels_of
from stage_worker.models.packed import WHOLE, Code, PackedWeight

_TOGETHER = 32
"""Inputs that blocks of the kernel are a multiple of."""
_LEAST_GROUP = 16
_CODES = {Code.TABLE: 4, Code.BITS_5: 5, Code.BITS_6: 6, Code.BITS_8: 8, Code.E4M3: 9}
_BY_TABLE = 10
_SCALES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}


class NativePackedLinear(NativeProduct):
    """Weights of few bits, multiplied as NativeLinear would multiply them unpacked: bit for bit the same."""

    def __init__(
        self,
        kernels: NativeKernels,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        *,
        float_out: bool = False,
    ) -> None:
        groups = weight.scales.shape[1]
        self._fixed = (weight.code, weight.group, weight.zero, weight.table)
        parts = {
            "codes": weight.codes.view(torch.int32),
            "more": None if weight.more is None else weight.more.view(torch.int32),
            **{name: getattr(weight, name) for name in _SCALE_PARTS},
        }
        self._parts = {
            name: None if part is None else _panelled(part, kernels) for name, part in parts.items()
        }
        self._group_of = None if weight.group_of is None else weight.group_of.to(torch.int32).contiguous()
        # Of weights with one zero for all, it is in the table's entries.
        zero = weight.zero if weight.zeros is None else 0.0
        self._entries = (c_float * 16)(*(entry - zero for entry in weight.table))
        unit_count = 0 if weight.units is None else weight.units.shape[1]
        self._packed = Packed(
            **{name: None if part is None else part.data_ptr() for name, part in self._parts.items()},
            group_of=None if self._group_of is None else self._group_of.data_ptr(),
            table=addressof(self._entries),
            code=_CODES[weight.code] if weight.table == WHOLE else _BY_TABLE,
            scale_kind=_SCALES[weight.scales.dtype],
            group=weight.group,
            groups=groups,
            unit_count=unit_count,
            groups_per_unit=groups // unit_count if unit_count else 1,
            zero=weight.zero,
        )
        super().__init__(kernels, weight.shape, bias, float_out, packed=addressof(self._packed))

    @staticmethod
    def fits(weight: PackedWeight) -> bool:
        """True if the kernel can multiply with this weight."""
        if weight.shape[1] % _TOGETHER:
            return False
        has_zero = weight.zeros is not None or weight.zero != 0
        # A product of a code and a scale that it adds something to must not have been rounded.
        exact = weight.scales.dtype != torch.float32
        if weight.least is not None and (has_zero or not exact or weight.group_of is not None):
            return False
        if weight.table != WHOLE or weight.code is Code.E4M3:
            if weight.zeros is not None or weight.least is not None or weight.group_of is not None:
                return False
        elif weight.code in (Code.BITS_5, Code.BITS_6) and (not exact or weight.group_of is not None):
            return False
        return weight.group_of is not None or weight.group % _LEAST_GROUP == 0

    @property
    def nbytes(self) -> int:
        """Memory of codes, scales and bias, bytes."""
        parts = (*self._parts.values(), self._group_of, self._bias)
        return sum(part.nbytes for part in parts if part is not None)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight [len(ids), inputs]."""
        panel, place = ids // PANEL, ids % PANEL
        code, group, zero, table = self._fixed
        parts = {
            name: None if part is None else part[panel, :, place].contiguous()
            for name, part in self._parts.items()
        }
        for name in ("codes", "more"):
            if (part := parts[name]) is not None:
                parts[name] = part.view(torch.uint8)
        codes, scales = parts.pop("codes"), parts.pop("scales")
        assert codes is not None
        assert scales is not None
        weight = PackedWeight(
            code, codes, scales, group, zero=zero, table=table, group_of=self._group_of, **parts
        )
        return weight.dequantized(self._kernels.dtype)


def _panelled(part: torch.Tensor, kernels: NativeKernels) -> torch.Tensor:
    """[outputs, n] as [panels, n, 64], with zeros behind the last output."""
    outputs, columns = part.shape
    panels, whole = panels_of(outputs), outputs // PANEL
    result = kernels.arena.empty((panels, columns, PANEL), part.dtype)
    result[:whole] = part[: whole * PANEL].view(whole, PANEL, columns).transpose(1, 2)
    if whole < panels:
        result[whole] = F.pad(part[whole * PANEL :], (0, 0, 0, panels * PANEL - outputs)).T
    return result


_SCALE_PARTS = ("scales", "zeros", "least", "units", "least_units")
