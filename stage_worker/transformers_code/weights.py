"""Reads a stage's tensors from a checkpoint, one by one, by the names that the library gives them.

Checkpoints have names of their own, and experts one by one where the library has them merged: which becomes
which is the library's conversion mapping.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from stage_worker.loading.checkpoint import Checkpoint
from stage_worker.transformers_code.skeleton import Skeleton
from stage_worker.transformers_code.stage_model import StageModel
from tidepipe_common.errors import ModelError


@dataclass(slots=True)
class _Group:
    """Stored tensors that become one or several of the model's. sources: (stored name, matched pattern)."""

    first: str
    converter: WeightConverter | None
    sources: list[tuple[str, str]] = field(default_factory=list)


class WeightMap:
    """Which stored tensors become which of a model's."""

    def __init__(self, skeleton: Skeleton, checkpoint: Checkpoint) -> None:
        self._model = skeleton.model
        self._checkpoint = checkpoint
        self._shapes: dict[str, torch.Tensor] = dict(skeleton.model.state_dict())
        self.groups: dict[str, _Group] = {}
        self.unused: set[str] = set()
        mapping = get_model_conversion_mapping(self._model)
        renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in mapping if isinstance(one, WeightConverter)]
        by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        prefix = self._model.base_model_prefix
        for stored in sorted(checkpoint.tensors, key=dot_natural_key):
            name, pattern = rename_source_key(stored, renamings, converters, prefix, self._shapes)
            if name not in self._shapes and stored in self._shapes:
                name, pattern = stored, None
            if name not in self._shapes:
                self.unused.add(stored)
                continue
            group = self.groups.get(name)
            if group is None:
                converter = copy.deepcopy(by_pattern[pattern]) if pattern is not None else None
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

    def load(self, stage: StageModel, dtype: torch.dtype, device: torch.device) -> int:
        """Put a stage's tensors in; the bytes they take."""
        loaded: dict[str, torch.Tensor] = {}
        nbytes = 0
        for name, tensor in list(stage.own_tensors()):
            group = self._group(name)
            if group is None:
                continue
            source = self._source(name)
            if source not in loaded:
                made = self._converted(group, dtype, device)
                nbytes += sum(one.nbytes for one in made.values())
                loaded.update(made)
            _put(self._model, name, loaded[source], tensor)
        return nbytes

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
            expected = tuple(self._shapes[name].shape) if name in self._shapes else ()
            if tuple(tensor.shape) != expected:
                raise ModelError(
                    f"{checkpoint.path}: {len(group.sources)} tensors such as {group.sources[0][0]} make "
                    f"{name} of shape {list(tensor.shape)}, the configuration asks for {list(expected)}"
                )
        return result


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
