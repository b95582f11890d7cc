"""The attention of one stage's layers, whatever shapes their heads have, over one KV pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from stage_worker.attention.backend import (
    AttentionBackend,
    AttentionContext,
    AttentionStep,
    MakeAttention,
    ScoreRules,
)
from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.torch_paged import TorchPagedAttention
from stage_worker.kv_pool import KvPool
from stage_worker.models.rope import NoRotaryTable
from stage_worker.models.spec import ModelSpec
from stage_worker.transformers_code.attention_calls import AttentionCall

_LOW = 256
"""A position is a multiple of this and a rest: both are exact with 8 bits of mantissa."""

_Group = tuple[int, int, bool]
"""Numbers of heads and key heads, and whether there are rules for scores."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """group: of layers computed alike. factor: of the query, beside what attention scales by itself.

    slopes: query values that meet a key's position, [heads, POSITION_VALUES].
    """

    group: _Group
    factor: float
    rules: dict[int, ScoreRules]
    slopes: torch.Tensor | None


class StageAttention:
    """Attends layer by layer; layers with the same numbers of heads share a back end.

    Those with rules for their scores have one of their own, in plain PyTorch.

    Heads narrower than the pool's are padded with zeros, which change no score and no sum. Where a key's
    position is added to its score (ALiBi), it is values of the key, and its slope values of the query: no
    back end has to know of it.
    """

    def __init__(
        self,
        spec: ModelSpec,
        calls: Mapping[int, AttentionCall],
        first_layer: int,
        pool: KvPool,
        make: MakeAttention,
    ) -> None:
        self._head_dim = spec.head_dim
        self._backends: dict[_Group, AttentionBackend] = {}
        self._layers: dict[int, _Layer] = {}
        self._batch: RaggedBatch | None = None
        self._positions = torch.empty(0, dtype=torch.int64)
        self._steps: dict[_Group, AttentionStep] = {}
        windows = [calls[layer].window if layer in calls else None for layer in range(spec.layers)]
        for group in sorted({_group(call) for call in calls.values()}):
            mine = {layer: call for layer, call in calls.items() if _group(call) == group}
            ruled = group[2]
            rules = {layer: ScoreRules(call.softcap, call.chunk) for layer, call in mine.items() if ruled}
            context = AttentionContext(
                spec=replace(
                    spec,
                    heads=group[0],
                    kv_heads=group[1],
                    sliding_windows=tuple(windows),
                    rope_layers=(False,) * spec.layers,
                    qk_norm=False,
                ),
                first_layer=first_layer,
                pool=pool.with_heads(group[1]),
                rotary=NoRotaryTable(),
                rules=rules,
            )
            self._backends[group] = TorchPagedAttention(context) if ruled else make(context)
            for layer, call in mine.items():
                wide = spec.head_dim**0.5
                slopes = None if call.slopes is None else _slope_values(call.slopes, wide, pool)
                self._layers[layer] = _Layer(group, call.scaling * wide, rules, slopes)

    def begin(self, batch: RaggedBatch, positions: torch.Tensor) -> None:
        """All calls are of this batch from now on. positions: of its tokens, int64 on the device."""
        self._batch = batch
        self._positions = positions
        self._steps = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """See LayerAttention."""
        known = self._layers[layer]
        if sinks is not None and known.rules[layer].sinks is None:
            known.rules[layer] = replace(known.rules[layer], sinks=sinks)
        if abs(known.factor - 1) > 1e-6:
            query = query * known.factor
        if known.slopes is not None:
            query, key = self._with_positions(known.slopes, query, key)
        step = self._steps.get(known.group)
        if step is None:
            assert self._batch is not None
            step = self._steps[known.group] = self._backends[known.group].begin(self._batch)
        wide = self._head_dim
        heads = [
            one if one.shape[2] == wide else F.pad(one, (0, wide - one.shape[2]))
            for one in (query, key, value)
        ]
        out = step.attend(layer, torch.cat(heads, dim=1).view(len(query), -1), None)
        attended = out.view(len(query), -1, wide)
        return attended if value.shape[2] == wide else attended[:, :, : value.shape[2]]

    def _with_positions(
        self, slopes: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts = (self._positions // _LOW, self._positions % _LOW)
        where = torch.stack(parts, dim=-1).to(key.dtype)[:, None].expand(-1, key.shape[1], -1)
        return torch.cat((query, slopes.expand(len(query), -1, -1)), dim=2), torch.cat((key, where), dim=2)


def _group(call: AttentionCall) -> _Group:
    return call.heads, call.kv_heads, call.ruled


def _slope_values(slopes: tuple[float, ...], wide: float, pool: KvPool) -> torch.Tensor:
    keys = pool.keys(0)
    one = torch.tensor(slopes, dtype=torch.float32) * wide
    return torch.stack((one * _LOW, one), dim=-1).to(keys.device, pool.geometry.dtype)
