"""Attention with rules for its scores (soft caps, chunks, sinks), in plain PyTorch on any device."""

from __future__ import annotations

import torch

from stage_worker.attention.backend import AttentionContext, AttentionStep, HeadNorms, ScoreRules
from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.torch_paged import DecodeGroup, TorchStep, gather


class RuledPagedAttention:
    """As `TorchPagedAttention`, with the scores laid out, so that a layer's rules can be applied to them."""

    def __init__(self, context: AttentionContext) -> None:
        self._context = context

    def begin(self, batch: RaggedBatch) -> AttentionStep:
        """Prepare a step."""
        return RuledStep(self._context, batch)


class RuledStep(TorchStep):
    """One step's rows; layers without rules are computed as `TorchStep` does."""

    def __init__(self, context: AttentionContext, batch: RaggedBatch) -> None:
        super().__init__(context, batch)
        self._rules = context.rules
        self._rule: ScoreRules | None = None

    def attend(
        self, layer: int, qkv: torch.Tensor, norms: HeadNorms | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See AttentionStep."""
        self._rule = self._rules.get(layer)
        return super().attend(layer, qkv, norms, out)

    def _decode(
        self,
        group: DecodeGroup,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        window: int | None,
    ) -> torch.Tensor:
        rule = self._rule
        if rule is None:
            return super()._decode(group, query, keys, values, window)
        positions = (group.contexts - 1)[:, None]
        slots = torch.arange(group.tables.shape[1] * self._block_size, device=self._device)
        hidden = ~_seen(positions, slots, window, rule)
        beyond = hidden[:, None, :, None]
        seen_keys = gather(keys, group.tables).masked_fill_(beyond, 0)
        seen_values = gather(values, group.tables).masked_fill_(beyond, 0)
        grouped = query.view(len(query), keys.shape[1], -1, query.shape[2])
        return _attend(grouped, seen_keys, seen_values, hidden[:, None, None], rule).view_as(query)

    def _attend_long(
        self,
        result: torch.Tensor,
        query: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor],
        caches: tuple[torch.Tensor, torch.Tensor],
        window: int | None,
    ) -> None:
        rule = self._rule
        if rule is None:
            super()._attend_long(result, query, fresh, caches, window)
            return
        for row in self._rows:
            tokens = slice(row.start, row.stop)
            context = row.first_position + row.stop - row.start
            keys, values = (gather(cache, row.blocks.unsqueeze(0))[:, :, :context] for cache in caches)
            slots = torch.arange(context, device=self._device)
            hidden = ~_seen(slots[row.first_position :, None], slots, window, rule)
            # [1, key heads, queries of a group one behind the other, head size]
            mine = query[tokens]
            grouped = mine.view(len(mine), keys.shape[1], -1, mine.shape[2]).permute(1, 2, 0, 3)
            group = grouped.shape[1]
            flat = grouped.reshape(1, keys.shape[1], -1, mine.shape[2])
            out = _attend(flat, keys, values, hidden.repeat(group, 1)[None, None], rule)
            result[tokens] = (
                out.view(keys.shape[1], group, len(mine), -1).permute(2, 0, 1, 3).reshape_as(mine)
            )


def _seen(positions: torch.Tensor, slots: torch.Tensor, window: int | None, rule: ScoreRules) -> torch.Tensor:
    seen = slots <= positions
    if window is not None:
        seen &= slots > positions - window
    if rule.chunk is not None:
        seen &= slots >= positions // rule.chunk * rule.chunk
    return seen


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor,
    rule: ScoreRules,
) -> torch.Tensor:
    """query [rows, key heads, queries, head size]; queries of one query head lie together."""
    scores = (query @ keys.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    scores = scores.masked_fill(hidden, -torch.inf)
    if rule.sinks is None:
        plain: torch.Tensor = scores.softmax(-1).to(values.dtype) @ values
        return plain
    kv_heads, queries = query.shape[1], query.shape[2]
    group = len(rule.sinks) // kv_heads
    sinks = rule.sinks.float().view(1, kv_heads, group, 1).expand(len(query), -1, -1, queries // group)
    wide = torch.cat((scores, sinks.reshape(len(query), kv_heads, queries, 1)), dim=-1)
    result: torch.Tensor = wide.softmax(-1)[..., :-1].to(values.dtype) @ values
    return result
