"""Reads a stage's tensors from a checkpoint, one by one, by the names that the library gives them.

Checkpoints have names of their own, and experts one by one where the library has them merged: which becomes
which is the library's conversion mapping.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.pytorch_utils import Conv1D

from stage_worker.loading.checkpoint import Checkpoint
from stage_worker.models.joined_linear import JoinedLinear
from stage_worker.models.linear import Linear, LinearFactory
from stage_worker.models.packed import PackedWeight, Weight, stacked
from stage_worker.transformers_code.experts import put_products, takes_products
from stage_worker.transformers_code.products import Product, Products
from stage_worker.transformers_code.skeleton import Skeleton
from stage_worker.transformers_code.stage_model import StageModel
from tidepipe_common.errors import ModelError

_log = structlog.get_logger()
_TEXT_MODEL = "language_model."
"""What names have in addition where a checkpoint is of a model that sees or hears, too."""


@dataclass(slots=True)
class _Group:
    """Stored tensors that become one or several of the model's. sources: (stored name, matched pattern)."""

    first: str
    converter: WeightConverter | None
    sources: list[tuple[str, str]] = field(default_factory=list)


class Names:
    """What tensors of checkpoints are called in a model.

    shapes: of the model's own tensors.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.shapes: dict[str, torch.Tensor] = dict(model.state_dict())
        mapping = get_model_conversion_mapping(model)
        self._renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        self._converters = [one for one in mapping if isinstance(one, WeightConverter)]
        self._by_pattern = {pattern: one for one in self._converters for pattern in one.source_patterns}
        self._prefix = model.base_model_prefix

    def of(self, stored: str) -> tuple[str, str | None] | None:
        """A stored tensor's name in the model, and the pattern of the converter that it goes through.

        None for what the model does not have.
        """
        name, pattern = rename_source_key(
            stored, self._renamings, self._converters, self._prefix, self.shapes
        )
        if name not in self.shapes and (own := stored.replace(_TEXT_MODEL, "")) in self.shapes:
            return own, None
        return (name, pattern) if name in self.shapes else None

    def converter(self, pattern: str) -> WeightConverter:
        """A new one, of a pattern that `of` gave."""
        return copy.deepcopy(self._by_pattern[pattern])


class WeightMap:
    """Which stored tensors become which of a model's."""

    def __init__(self, skeleton: Skeleton, checkpoint: Checkpoint) -> None:
        self._model = skeleton.model
        self._checkpoint = checkpoint
        names = Names(skeleton.model)
        self._shapes = names.shapes
        self.groups: dict[str, _Group] = {}
        self.unused: set[str] = set()
        for stored in sorted(checkpoint.weights, key=dot_natural_key):
            found = names.of(stored)
            if found is None:
                self.unused.add(stored)
                continue
            name, pattern = found
            group = self.groups.get(name)
            if group is None:
                converter = names.converter(pattern) if pattern is not None else None
                group = self.groups[name] = _Group(name, converter)
            group.sources.append((stored, stored if pattern is None else pattern))
        self._by_target = {target: group for group in self.groups.values() for target in self._targets(group)}
        self._ties = self._tied()
        self._wide = _wide_pattern(self._model)

    def check(self, wanted: Iterable[str]) -> None:
        """ModelError unless all these tensors are stored, in shape and readable. Reads no values."""
        done: set[str] = set()
        for name in wanted:
            group = self._group(name)
            if group is not None and group.first not in done:
                done.add(group.first)
                self._converted(group, torch.float32, torch.device("meta"))

    def load(self, stage: StageModel, dtype: torch.dtype, device: torch.device, products: Products) -> None:
        """Put a stage's tensors in. products: make those whose weights are kept as codes."""
        loaded: dict[str, torch.Tensor] = {}
        kept: list[tuple[str, _Group]] = []
        unpacked: list[str] = []
        for name, tensor in list(stage.own_tensors()):
            group = self._group(name)
            if group is None:
                continue
            source = self._source(name)
            if source == name and self._stays_packed(group):
                kept.append((name, group))
                continue
            if source not in loaded:
                unpacked += [name] if self._packed(group) else []
                loaded.update(self._converted(group, dtype, device))
            _put(self._model, name, loaded[source], tensor)
        for name, group in kept:  # now that their biases are there
            self._put_product(name, group, dtype, device, products)
        if unpacked:
            _log.warning(
                "quantized weights are kept as numbers, and take the memory of those",
                count=len(unpacked),
                such_as=unpacked[:3],
            )

    def _packed(self, group: _Group) -> bool:
        """Whether some of what a group is made of is stored as codes."""
        checkpoint = self._checkpoint
        return any(stored in checkpoint.packed or stored in checkpoint.stacks for stored, _ in group.sources)

    def _stays_packed(self, group: _Group) -> bool:
        """Whether products can be made of a group's codes as they are."""
        if not self._packed(group):
            return False
        module, last = self._module(group.first)
        joined = None if group.converter is None else _joined(group)
        if group.converter is not None and joined is None:
            return False
        if type(module) in (nn.Linear, Conv1D):
            return last == "weight" and not (joined is not None and joined.stacked)
        if not takes_products(module, last):
            return False
        return group.sources[0][0] in self._checkpoint.stacks if joined is None else joined.stacked

    def _module(self, name: str) -> tuple[nn.Module, str]:
        path, _, last = name.rpartition(".")
        return self._model.get_submodule(path), last

    def _put_product(
        self, name: str, group: _Group, dtype: torch.dtype, device: torch.device, products: Products
    ) -> None:
        """Products in the place of a module, or of its weight if it is that of experts."""
        module, last = self._module(name)
        checkpoint = self._checkpoint
        joined = None if group.converter is None else _joined(group)
        if takes_products(module, last):
            if joined is None:
                read = (one.read().to(device) for one in checkpoint.stacks[group.sources[0][0]])
                put_products(module, last, [products.linear(one, None) for one in read])
                return
            experts = zip(*joined.parts, strict=True)
            put_products(
                module,
                last,
                [self._product(parts, None, dtype, device, products.linear) for parts in experts],
            )
            return
        outputs, inputs = self._outputs_first(name)
        bias = module.bias.data if isinstance(module.bias, torch.Tensor) else None
        parts = [group.sources[0][0]] if joined is None else [part[0] for part in joined.parts]
        make = products.head if module is self._model.get_output_embeddings() else products.linear
        path, _, own = name.rpartition(".")[0].rpartition(".")
        made = self._product(parts, bias, dtype, device, make)
        self._model.get_submodule(path)._modules[own] = Product(
            made, inputs, outputs, torch.empty(0, dtype=dtype, device=device)
        )

    def _outputs_first(self, name: str) -> tuple[int, int]:
        """[outputs, inputs] of a linear module's weight."""
        shape = self._shapes[name].shape
        transposed = isinstance(self._module(name)[0], Conv1D)
        return (shape[1], shape[0]) if transposed else (shape[0], shape[1])

    def _product(
        self,
        parts: Sequence[str],
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
        make: LinearFactory,
    ) -> Linear:
        """One of several weights, one above the other."""
        weights = [self._weight(stored, dtype, device) for stored in parts]
        whole = _stacked(weights)
        if whole is not None:
            return make(whole, bias)
        sizes = [weight.shape[0] for weight in weights]
        biases = [None] * len(weights) if bias is None else torch.split(bias, sizes)
        return JoinedLinear([make(*both) for both in zip(weights, biases, strict=True)], sizes)

    def _weight(self, stored: str, dtype: torch.dtype, device: torch.device) -> Weight:
        packed = self._checkpoint.packed.get(stored)
        if packed is not None:
            return packed.read().to(device)
        target = torch.empty(self._checkpoint.shape_of(stored), dtype=dtype, device=device)
        self._checkpoint.read_into(stored, target)
        return target

    def _group(self, name: str) -> _Group | None:
        """What a tensor is made of; None for a computed one that need not be stored."""
        group = self._by_target.get(self._source(name))
        if group is None:
            tensor = self._shapes[name]
            if isinstance(tensor, torch.Tensor) and _is_buffer(self._model, name):
                return None
            others = ", ".join(sorted(self._checkpoint.tensors)[:3]) or "none"
            raise ModelError(f"{self._checkpoint.path}: tensor {name} is missing (there are {others}, ..)")
        return group

    def _source(self, name: str) -> str:
        """The name under which the values are stored: another one for a tied tensor."""
        return self._ties.get(name, name)

    def _tied(self) -> dict[str, str]:
        ties: dict[str, str] = {}
        for target, source in (getattr(self._model, "all_tied_weights_keys", None) or {}).items():
            if target not in self._by_target:
                ties[target] = source
            elif source not in self._by_target:
                ties[source] = target
        return ties

    def _targets(self, group: _Group) -> list[str]:
        if group.converter is None or len(group.converter.target_patterns) == 1:
            return [group.first]
        return list(self._converted(group, torch.float32, torch.device("meta"), check=False))

    def _converted(
        self, group: _Group, dtype: torch.dtype, device: torch.device, check: bool = True
    ) -> dict[str, torch.Tensor]:
        checkpoint = self._checkpoint
        kind = torch.float32 if self._wide is not None and self._wide.search(group.first) else dtype
        if group.converter is None:
            return {group.first: self._whole(group, kind, device)}
        if (joined := _joined(group)) is not None:
            return {group.first: self._joined(group, joined, kind, device)}
        converter = copy.deepcopy(group.converter)
        for stored, pattern in group.sources:
            converter.add_tensor(group.first, stored, pattern, _reader(checkpoint, stored, kind, device))
        try:
            made = converter.convert(group.first, model=self._model, config=self._model.config)
        except ModelError:
            raise
        except Exception as error:
            names = ", ".join(stored for stored, _ in group.sources[:3])
            raise ModelError(
                f"{checkpoint.path}: tensors {names}, .. do not make {group.first} "
                f"({type(error).__name__}: {error})"
            ) from error
        result = {name: one[0] if isinstance(one, list) else one for name, one in made.items()}
        for name, tensor in result.items() if check else ():
            self._check_shape(group, name, tuple(tensor.shape))
        return result

    def _whole(self, group: _Group, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A tensor that is stored as it is."""
        stored = group.sources[0][0]
        shape = tuple(self._shapes[group.first].shape)
        if stored in self._checkpoint.stacks:
            return self._stack(group, stored, shape, dtype, device)
        if stored in self._checkpoint.packed and isinstance(self._module(group.first)[0], Conv1D):
            # Its numbers would be stored the other way round, its codes are not.
            target = torch.empty(self._outputs_first(group.first), dtype=dtype, device=device)
            self._checkpoint.read_into(stored, target)
            return target.t().contiguous()
        target = torch.empty(shape, dtype=dtype, device=device)
        self._checkpoint.read_into(stored, target)
        return target

    def _stack(
        self, group: _Group, stored: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """All experts' weights that are stored as codes."""
        made = self._checkpoint.shape_of(stored)
        turned = bool(getattr(self._module(group.first)[0], "is_transposed", False))
        if turned:
            made = (made[0], made[2], made[1])
        self._check_shape(group, group.first, made)
        target = torch.empty(shape, dtype=dtype, device=device)
        if not target.is_meta:
            for place, one in zip(target, self._checkpoint.stacks[stored], strict=True):
                numbers = one.read().dequantized(dtype)
                place.copy_(numbers.t() if turned else numbers)
        return target

    def _joined(
        self, group: _Group, joined: _Joined, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Tensors that lie one behind the other in the model's: each is read where it belongs."""
        checkpoint = self._checkpoint
        shapes = [[checkpoint.shape_of(stored) for stored in part] for part in joined.parts]
        alike = all(shape == part[0] for part in shapes for shape in part)
        if not alike or not joined.fits(shapes):
            names = ", ".join(stored for stored, _ in group.sources[:3])
            raise ModelError(f"{checkpoint.path}: tensors {names}, .. of different shapes make {group.first}")
        self._check_shape(group, group.first, joined.shape(shapes))
        target = torch.empty(self._shapes[group.first].shape, dtype=dtype, device=device)
        for stored, place in joined.places(shapes, target):
            checkpoint.read_into(stored, place)
        return target

    def _check_shape(self, group: _Group, name: str, made: tuple[int, ...]) -> None:
        expected = tuple(self._shapes[name].shape) if name in self._shapes else ()
        if made != expected:
            raise ModelError(
                f"{self._checkpoint.path}: {len(group.sources)} tensors such as {group.sources[0][0]} make "
                f"{name} of shape {list(made)}, the configuration asks for {list(expected)}"
            )


@dataclass(frozen=True, slots=True)
class _Joined:
    """Tensors that are put side by side: experts one above the other, then parts of each expert.

    parts: stored names, experts in order, of each part. stacked: there is a dimension of experts.
    """

    parts: list[list[str]]
    stacked: bool

    def fits(self, shapes: list[list[tuple[int, ...]]]) -> bool:
        """Whether these shapes can be joined so."""
        first = shapes[0]
        return all(len(part) == len(first) and part[0][1:] == first[0][1:] and part[0] for part in shapes)

    def shape(self, shapes: list[list[tuple[int, ...]]]) -> tuple[int, ...]:
        """Of all together."""
        rows = sum(part[0][0] for part in shapes)
        whole = (rows, *shapes[0][0][1:])
        return (len(shapes[0]), *whole) if self.stacked else whole

    def places(
        self, shapes: list[list[tuple[int, ...]]], target: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Each stored tensor, and where its values go."""
        begin = 0
        for part, part_shapes in zip(self.parts, shapes, strict=True):
            end = begin + part_shapes[0][0]
            for number, stored in enumerate(part):
                yield stored, (target[number] if self.stacked else target)[begin:end]
            begin = end


def _joined(group: _Group) -> _Joined | None:
    """How a group is joined, if that is all that is done with it."""
    assert group.converter is not None
    steps = group.converter.operations
    merged = [step for step in steps if type(step) is MergeModulelist and step.dim == 0]
    dim = 1 if merged else 0
    put = [step for step in steps if type(step) is Concatenate and step.dim == dim]
    if (
        len(merged) > 1
        or len(put) > 1
        or len(merged) + len(put) != len(steps)
        or steps[: len(merged)] != merged
    ):
        return None
    by_pattern: dict[str, list[str]] = {}
    for stored, pattern in group.sources:
        by_pattern.setdefault(pattern, []).append(stored)
    parts = [by_pattern[pattern] for pattern in group.converter.source_patterns if pattern in by_pattern]
    if not merged and any(len(part) > 1 for part in parts):
        return None
    return _Joined(parts, bool(merged))


def _reader(checkpoint: Checkpoint, stored: str, dtype: torch.dtype, device: torch.device) -> Any:
    def read() -> torch.Tensor:
        target = torch.empty(checkpoint.shape_of(stored), dtype=dtype, device=device)
        checkpoint.read_into(stored, target)
        return target

    return read


def _stacked(weights: Sequence[Weight]) -> Weight | None:
    """Weights one above the other, as one, if they can be."""
    packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
    if len(packed) == len(weights):
        return stacked(packed)
    plain = [weight for weight in weights if isinstance(weight, torch.Tensor)]
    return torch.cat(plain) if len(plain) == len(weights) else None


def _is_buffer(model: nn.Module, name: str) -> bool:
    path, _, last = name.rpartition(".")
    return last in model.get_submodule(path)._buffers


def _put(model: nn.Module, name: str, values: torch.Tensor, before: torch.Tensor) -> None:
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    if last in module._buffers:
        module._buffers[last] = values.to(before.dtype) if not before.dtype.is_floating_point else values
        return
    parameter = nn.Parameter(values, requires_grad=False)
    parameter.__dict__.update(before.__dict__)
    module._parameters[last] = parameter


def _wide_pattern(model: Any) -> re.Pattern[str] | None:
    """Of the tensors that the library keeps in float32."""
    names: Mapping[str, Any] = model._get_dtype_plan(torch.bfloat16)
    return re.compile("|".join(re.escape(name).replace(r"\*", ".*") for name in names)) if names else None
