"""Which tensors of a quantized folder belong together, and whether they fit each other and config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch

from stage_worker.loading.checkpoint import StoredTensor, StoredWeight
from stage_worker.loading.packed_layouts import check_groups, packed_weight
from stage_worker.loading.quantization_config import QUANTIZATION_KEY, Layout, Quantization, Scheme
from stage_worker.models.packed import PackedWeight
from tidepipe_common.errors import ModelError

_SCALES = ("F32", "F16", "BF16")
_BYTE_KINDS: Mapping[str, bool] = {"I8": False, "F8_E4M3": True}
_MARKS: Mapping[str, tuple[Layout, ...]] = {
    ".qweight": (Layout.GPTQ, Layout.AWQ),
    ".weight_packed": (Layout.WORDS,),
}
_DTYPES: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
}
_BLOCKS, _BLOCK_SCALES = "_blocks", "_scales"
_OLD_FORMATS = (".absmax", ".SCB", ".quant_map")


def find_packed(
    tensors: Mapping[str, StoredTensor], quantization: Quantization | None, source: str
) -> dict[str, StoredWeight]:
    """The quantized weights by Hugging Face name, X.weight; ModelError where tensors do not fit together."""
    found = {}
    for name, stored in tensors.items():
        module = _module(name, stored)
        if module is None:
            continue
        if quantization is None:
            raise ModelError(
                f"{stored.file}: tensor {name} is quantized, but {source} has no {QUANTIZATION_KEY}; "
                "fetch the checkpoint's config.json again"
            )
        found[f"{module}.weight"] = _Module(module, tensors, quantization).weight()
    if quantization is not None:
        _refuse_plain(tensors, found, quantization)
    return found


def find_stacks(
    tensors: Mapping[str, StoredTensor], quantization: Quantization | None
) -> dict[str, list[StoredWeight]]:
    """Quantized weights of all experts of a layer, expert by expert, by Hugging Face name."""
    schemes = () if quantization is None else quantization.schemes
    scheme = next((one for one in schemes if one.layout is Layout.MXFP4), None)
    if scheme is None:
        return {}
    found = {}
    for name, blocks in tensors.items():
        weight = name.removesuffix(_BLOCKS)
        if weight != name:
            found[weight] = _stack(weight, blocks, tensors.get(weight + _BLOCK_SCALES), scheme)
    if not found:
        raise ModelError(f"{QUANTIZATION_KEY} says mxfp4, but no tensor's name ends with {_BLOCKS}")
    return found


def _stack(
    weight: str, blocks: StoredTensor, scales: StoredTensor | None, scheme: Scheme
) -> list[StoredWeight]:
    if scales is None:
        raise _missing(blocks, weight + _BLOCK_SCALES)
    each = (scheme.group_size or 0) * scheme.bits // 8
    for stored, shape in ((blocks, (*scales.shape, each)), (scales, blocks.shape[:-1])):
        if stored.kind != "U8" or stored.shape != shape or len(blocks.shape) != 4 or 0 in stored.shape:
            raise ModelError(
                f"{stored.file}: tensor {stored.name} is {stored.kind} {list(stored.shape)}, but must be U8 "
                f"of experts, outputs, blocks and, but for scales, {each} bytes of a block"
            )
    experts, outputs, count, _ = blocks.shape
    names = frozenset((blocks.name, scales.name))
    return [
        StoredWeight(
            {"blocks": _slice(blocks, number), "scales": _slice(scales, number)},
            (outputs, count * each * 8 // scheme.bits),
            names,
            partial(_read, scheme),
        )
        for number in range(experts)
    ]


def _missing(beside: StoredTensor, name: str) -> ModelError:
    return ModelError(
        f"{beside.file}: tensor {name} is missing, which the quantized weight beside it needs; fetch the "
        "checkpoint again"
    )


def _slice(stored: StoredTensor, number: int) -> StoredTensor:
    """One of a tensor's first dimension."""
    nbytes = stored.nbytes // stored.shape[0]
    return replace(stored, shape=stored.shape[1:], offset=stored.offset + number * nbytes, nbytes=nbytes)


def _module(name: str, stored: StoredTensor) -> str | None:
    """The module whose quantized weight this tensor holds."""
    for mark in _MARKS:
        if name.endswith(mark):
            return name.removesuffix(mark)
    if name.endswith(".weight") and stored.kind in _BYTE_KINDS and len(stored.shape) == 2:
        return name.removesuffix(".weight")
    return None


def _refuse_plain(
    tensors: Mapping[str, StoredTensor], found: Mapping[str, StoredWeight], quantization: Quantization
) -> None:
    for name, stored in tensors.items():
        module, _, end = name.rpartition(".")
        if end in ("weight_scale", "scales") and f"{module}.weight" in tensors.keys() - found.keys():
            raise ModelError(
                f"{stored.file}: tensor {name}: its weight is not compressed; save the checkpoint compressed"
            )
        if name.endswith(_OLD_FORMATS):
            raise ModelError(f"{stored.file}: tensor {name} is none of {quantization.method}'s")


def _read(scheme: Scheme, parts: Mapping[str, StoredTensor]) -> PackedWeight:
    return packed_weight({end: part.values(_DTYPES[part.kind]) for end, part in parts.items()}, scheme)


class _Module:
    """The tensors of one quantized weight."""

    def __init__(self, module: str, tensors: Mapping[str, StoredTensor], quantization: Quantization) -> None:
        self._module = module
        self._tensors = tensors
        self._quantization = quantization
        self._parts: dict[str, StoredTensor] = {}

    def weight(self) -> StoredWeight:
        """Its weight, checked as far as that goes without reading more values than its inputs' groups."""
        kinds: Mapping[Layout, Callable[[tuple[Scheme, ...]], tuple[Scheme, tuple[int, int]]]] = {
            Layout.GPTQ: self._gptq,
            Layout.AWQ: self._awq,
            Layout.WORDS: self._words,
            Layout.BYTES: self._bytes,
        }
        for layout, read in kinds.items():
            schemes = tuple(scheme for scheme in self._quantization.schemes if scheme.layout is layout)
            if schemes and self._has(layout):
                scheme, shape = read(schemes)
                names = {f"{self._module}.{end}" for end in _ENDS} & self._tensors.keys()
                return StoredWeight(self._parts, shape, frozenset(names), partial(_read, scheme))
        raise ModelError(
            f"{self._first().file}: the weight of {self._module} is stored in a way that "
            f"{QUANTIZATION_KEY} ({self._quantization.method}) does not name"
        )

    def _has(self, layout: Layout) -> bool:
        mark = next((mark for mark, layouts in _MARKS.items() if layout in layouts), ".weight")
        return self._module + mark in self._tensors

    def _first(self) -> StoredTensor:
        return next(stored for name, stored in self._tensors.items() if name.startswith(f"{self._module}."))

    def _gptq(self, schemes: tuple[Scheme, ...]) -> tuple[Scheme, tuple[int, int]]:
        (scheme,) = schemes
        rows, outputs = self._part("qweight", ("I32",), 2).shape
        inputs = rows * 32 // scheme.bits
        groups = self._groups(inputs, scheme.group_size)
        self._fixed("scales", _SCALES, (groups, outputs))
        self._fixed("qzeros", ("I32",), (groups, -(-outputs * scheme.bits // 32)))
        if f"{self._module}.g_idx" in self._tensors:
            self._fixed("g_idx", ("I32",), (inputs,))
            self._check_groups("g_idx", groups)
        return scheme, (outputs, inputs)

    def _awq(self, schemes: tuple[Scheme, ...]) -> tuple[Scheme, tuple[int, int]]:
        (scheme,) = schemes
        inputs, width = self._part("qweight", ("I32",), 2).shape
        self._eights(inputs)
        groups = self._groups(inputs, scheme.group_size)
        self._fixed("scales", _SCALES, (groups, width * 8))
        self._fixed("qzeros", ("I32",), (groups, width))
        return scheme, (width * 8, inputs)

    def _words(self, schemes: tuple[Scheme, ...]) -> tuple[Scheme, tuple[int, int]]:
        stored = self._part("weight_packed", ("I32",), 2)
        outputs, width = stored.shape
        said = self._part("weight_shape", ("I64", "I32"), 1)
        shape = [int(size) for size in said.values(_DTYPES[said.kind])]
        # What says how many inputs there are says how many bits each has.
        fitting = [s for s in schemes if len(shape) == 2 and shape == [outputs, width * 32 // s.bits]]
        if not fitting:
            raise ModelError(
                f"{stored.file}: tensor {stored.name} has shape {list(stored.shape)}, which does not fit "
                f"{' or '.join(str(scheme.bits) for scheme in schemes)} bits of a weight {shape}"
            )
        self._eights(shape[1])
        scheme = self._scaled(fitting, "weight_scale", (outputs, shape[1]))
        if f"{self._module}.weight_zero_point" in self._tensors:
            groups = self._parts["weight_scale"].shape[-1]
            rows = -(-outputs * scheme.bits // 32)
            zeros = self._part("weight_zero_point", ("I32", "I8"), 2)
            if zeros.shape != ((rows if zeros.kind == "I32" else outputs), groups):
                self._misshapen(zeros, (rows, groups))
        if f"{self._module}.weight_g_idx" in self._tensors:
            self._fixed("weight_g_idx", ("I32",), (shape[1],))
            scales = self._parts["weight_scale"].shape
            self._check_groups("weight_g_idx", scales[1] if len(scales) > 1 else 1)
        return scheme, (outputs, shape[1])

    def _bytes(self, schemes: tuple[Scheme, ...]) -> tuple[Scheme, tuple[int, int]]:
        stored = self._part("weight", tuple(_BYTE_KINDS), 2)
        outputs, inputs = stored.shape
        self._eights(inputs)
        fitting = [scheme for scheme in schemes if scheme.floating == _BYTE_KINDS[stored.kind]]
        if not fitting:
            raise ModelError(
                f"{stored.file}: tensor {stored.name} is {stored.kind}; the configuration says else"
            )
        # transformers calls it weight_scale_inv, though it multiplies.
        name = next(
            (
                name
                for name in ("weight_scale_inv", "weight_scale")
                if f"{self._module}.{name}" in self._tensors
            ),
            "weight_scale",
        )
        scheme = self._scaled(fitting, name, (outputs, inputs))
        self._parts["scale"] = self._parts.pop(name)
        if f"{self._module}.weight_zero_point" in self._tensors and not scheme.floating:
            zeros = self._part("weight_zero_point", ("I8",), None)
            if zeros.shape != self._parts["scale"].shape:
                self._misshapen(zeros, self._parts["scale"].shape)
        return scheme, (outputs, inputs)

    def _scaled(self, schemes: list[Scheme], name: str, shape: tuple[int, int]) -> Scheme:
        """The first scheme that the scales fit."""
        scales = self._part(name, _SCALES, None)
        wanted: tuple[int, ...] = ()
        for scheme in schemes:
            for wanted in self._scale_shapes(scheme, *shape):
                if scales.shape == wanted:
                    return scheme
        self._misshapen(scales, wanted)
        raise AssertionError

    def _scale_shapes(self, scheme: Scheme, outputs: int, inputs: int) -> tuple[tuple[int, ...], ...]:
        if scheme.block is not None:
            rows, columns = scheme.block
            return ((-(-outputs // rows), -(-inputs // columns)),)
        if scheme.group_size is not None:
            return ((outputs, self._groups(inputs, scheme.group_size)),)
        return (), (1,), (1, 1), (outputs,), (outputs, 1)

    def _groups(self, inputs: int, group_size: int | None) -> int:
        if group_size is None:
            return 1
        if inputs % group_size:
            raise ModelError(
                f"{self._first().file}: {self._module} has {inputs} inputs, which groups of {group_size} "
                "do not divide evenly; quantize it with another group size"
            )
        return inputs // group_size

    def _eights(self, inputs: int) -> None:
        if inputs % 8:
            raise ModelError(
                f"{self._first().file}: {self._module} has {inputs} inputs; quantized weights need a "
                "multiple of 8"
            )

    def _fixed(self, end: str, kinds: tuple[str, ...], shape: tuple[int, ...]) -> None:
        stored = self._part(end, kinds, len(shape))
        if stored.shape != shape:
            self._misshapen(stored, shape)

    def _check_groups(self, end: str, groups: int) -> None:
        stored = self._parts[end]
        try:
            check_groups(stored.values(torch.int32), groups)
        except ValueError as error:
            raise ModelError(f"{stored.file}: tensor {stored.name} makes no sense: {error}") from error

    def _misshapen(self, stored: StoredTensor, shape: tuple[int, ...]) -> None:
        raise ModelError(
            f"{stored.file}: tensor {stored.name} has shape {list(stored.shape)}, its weight and "
            f"{QUANTIZATION_KEY} ask for {list(shape)}"
        )

    def _part(self, end: str, kinds: tuple[str, ...], dimensions: int | None) -> StoredTensor:
        name = f"{self._module}.{end}"
        stored = self._tensors.get(name)
        if stored is None:
            raise _missing(self._first(), name)
        if stored.kind not in kinds or (dimensions is not None and len(stored.shape) != dimensions):
            raise ModelError(
                f"{stored.file}: tensor {name} is {stored.kind} {list(stored.shape)}, but must be "
                f"{' or '.join(kinds)}" + (f" of {dimensions} dimensions" if dimensions else "")
            )
        if 0 in stored.shape:
            raise ModelError(f"{stored.file}: tensor {name} is empty")
        self._parts[end] = stored
        return stored


_ENDS = (
    *("weight", "qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_scale_inv"),
    *("weight_zero_point", "weight_shape", "weight_g_idx", "input_scale", "input_zero_point", "output_scale"),
)
"""Ends of names of what belongs to a quantized weight. Activations are not rounded, whatever is stored."""
