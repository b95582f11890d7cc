"""Reads a stage's tensors from a checkpoint, one by one, by the names that the library gives them.

Checkpoints have names of their own, and experts one by one where the library has them merged: which becomes
which is the library's conversion mapping.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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

from stage_worker.loading.checkpoint import Checkpoint
from stage_worker.transformers_code.skeleton import Skeleton
from stage_worker.transformers_code.stage_model import StageModel
from tidepipe_common.errors import ModelError

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
        for stored in sorted(checkpoint.tensors, key=dot_natural_key):
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

    def load(self, stage: StageModel, dtype: torch.dtype, device: torch.device) -> None:
        """Put a stage's tensors in."""
        loaded: dict[str, torch.Tensor] = {}
        for name, tensor in list(stage.own_tensors()):
            group = self._group(name)
            if group is None:
                continue
            source = self._source(name)
            if source not in loaded:
                loaded.update(self._converted(group, dtype, device))
            _put(self._model, name, loaded[source], tensor)

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
            target = torch.empty(self._shapes[group.first].shape, dtype=kind, device=device)
            checkpoint.read_into(group.sources[0][0], target)
            return {group.first: target}
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

    def _joined(
        self, group: _Group, joined: _Joined, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Tensors that lie one behind the other in the model's: each is read where it belongs."""
        checkpoint = self._checkpoint
        shapes = [[checkpoint.tensors[stored].shape for stored in part] for part in joined.parts]
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
        target = torch.empty(checkpoint.tensors[stored].shape, dtype=dtype, device=device)
        checkpoint.read_into(stored, target)
        return target

    return read


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
