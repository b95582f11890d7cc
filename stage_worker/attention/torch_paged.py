"""Attention in plain PyTorch, on any device: the reference, and the fallback where there is no kernel.

It alone knows rules for scores (soft caps, chunks, sinks); their layers have the scores laid out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F

from stage_worker.attention.backend import NO_RULES, AttentionContext, AttentionStep, HeadNorms, ScoreRules
from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.stored_heads import StoredHeads


class TorchPagedAttention:
    """Decode rows are gathered and padded in groups of similar context; longer rows go one by one."""

    def __init__(self, context: AttentionContext) -> None:
        self._context = context

    def begin(self, batch: RaggedBatch) -> AttentionStep:
        """Prepare a step."""
        return TorchStep(self._context, batch)


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows with one token each. tokens: their packed indices. tables: [rows, blocks]. contexts: [rows]."""

    tokens: torch.Tensor
    tables: torch.Tensor
    contexts: torch.Tensor


@dataclass(frozen=True, slots=True)
class _LongRow:
    """A row with several tokens: packed tokens start .. stop - 1. blocks: its table as far as it is used."""

    start: int
    stop: int
    first_position: int
    blocks: torch.Tensor


class TorchStep:
    """One step's rows. How rows with several tokens are computed may be replaced."""

    def __init__(self, context: AttentionContext, batch: RaggedBatch) -> None:
        self._batch = batch
        self._spec = context.spec
        self._rules = context.rules
        self._first_layer = context.first_layer
        self._pool = context.pool
        self._block_size = batch.block_size
        self._device = context.pool.keys(0).device
        context.rotary.reserve(int(batch.contexts.max(initial=1)))
        self._heads = StoredHeads(
            context,
            torch.from_numpy(batch.positions).to(self._device),
            torch.from_numpy(batch.slots).to(self._device),
        )
        self._groups = self._decode_groups(batch)

    @cached_property
    def _rows(self) -> list[_LongRow]:
        batch = self._batch
        return [
            _LongRow(
                start=int(batch.offsets[row]),
                stop=int(batch.offsets[row + 1]),
                first_position=int(batch.first_positions[row]),
                blocks=torch.from_numpy(batch.tables[row, : -(-batch.contexts[row] // batch.block_size)]).to(
                    self._device
                ),
            )
            for row in np.flatnonzero(batch.counts > 1)
        ]

    def _decode_groups(self, batch: RaggedBatch) -> list[DecodeGroup]:
        rows = np.flatnonzero(batch.counts == 1)
        rows = rows[np.argsort(-batch.contexts[rows], kind="stable")]
        groups = []
        while len(rows):
            longest = int(batch.contexts[rows[0]])
            # At most half of what is gathered is padding.
            size = int(np.count_nonzero(2 * batch.contexts[rows] >= longest))
            chosen, rows = rows[:size], rows[size:]
            width = -(-longest // batch.block_size)
            groups.append(
                DecodeGroup(
                    tokens=torch.from_numpy(batch.offsets[chosen].astype(np.int64)).to(self._device),
                    tables=torch.from_numpy(batch.tables[chosen, :width]).to(self._device),
                    contexts=torch.from_numpy(batch.contexts[chosen]).to(self._device),
                )
            )
        return groups

    def attend(
        self, layer: int, qkv: torch.Tensor, norms: HeadNorms | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See AttentionStep."""
        spec = self._spec
        query, key, value = self._heads.store(layer, qkv, norms)
        keys = self._pool.keys(layer - self._first_layer)
        values = self._pool.values(layer - self._first_layer)
        window, rules = spec.sliding_windows[layer], self._rules.get(layer, NO_RULES)
        result = torch.empty(len(qkv), spec.heads, spec.head_dim, dtype=qkv.dtype, device=qkv.device)
        for group in self._groups:
            result[group.tokens] = self._decode(group, query[group.tokens], keys, values, window, rules)
        if rules is NO_RULES:
            self._attend_long(result, query, (key, value), (keys, values), window)
        else:
            self._attend_rows(result, query, (key, value), (keys, values), window, rules)
        return result.view(len(qkv), -1)

    def _attend_long(
        self,
        result: torch.Tensor,
        query: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor],
        caches: tuple[torch.Tensor, torch.Tensor],
        window: int | None,
    ) -> None:
        """Rows with several tokens, into `result`. fresh: this step's keys, values. caches: the layer's."""
        self._attend_rows(result, query, fresh, caches, window, NO_RULES)

    def _attend_rows(
        self,
        result: torch.Tensor,
        query: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor],
        caches: tuple[torch.Tensor, torch.Tensor],
        window: int | None,
        rules: ScoreRules,
    ) -> None:
        for row in self._rows:
            packed = slice(row.start, row.stop)
            if row.first_position == 0:
                row_keys, row_values = (x[packed].transpose(0, 1) for x in fresh)
            else:
                context = row.first_position + row.stop - row.start
                row_keys = gather(caches[0], row.blocks.unsqueeze(0))[0, :, :context]
                row_values = gather(caches[1], row.blocks.unsqueeze(0))[0, :, :context]
            result[packed] = _attend_row(
                query[packed], row_keys, row_values, row.first_position, window, rules
            )

    def _decode(
        self,
        group: DecodeGroup,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        window: int | None,
        rules: ScoreRules,
    ) -> torch.Tensor:
        spec = self._spec
        slots = torch.arange(group.tables.shape[1] * self._block_size, device=self._device)
        hidden = ~_seen(group.contexts[:, None] - 1, slots, window, rules)
        # Slots behind a context may hold what another sequence left there; even infinities must not show.
        beyond = hidden[:, None, :, None]
        group_keys = gather(keys, group.tables).masked_fill_(beyond, 0)
        group_values = gather(values, group.tables).masked_fill_(beyond, 0)
        # The query heads that share a key head stand where a longer query would have its positions.
        grouped = query.view(len(query), spec.kv_heads, -1, spec.head_dim)
        mask = ~hidden[:, None, None, :]
        return _attended(grouped, group_keys, group_values, mask, rules).view_as(query)


def gather(cache: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Blocks [rows, blocks] of a cache -> [rows, kv_heads, blocks x block_size, head_dim], a copy."""
    picked = cache[tables].transpose(1, 2)
    rows, kv_heads, blocks, block_size, head_dim = picked.shape
    return picked.reshape(rows, kv_heads, blocks * block_size, head_dim)


def _attend_row(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    first_position: int,
    window: int | None,
    rules: ScoreRules,
) -> torch.Tensor:
    """One sequence: query [tokens, heads, head_dim], keys and values [kv_heads, context, head_dim]."""
    tokens, context = len(query), keys.shape[1]
    mask = None
    if first_position or (window is not None and window < context) or rules is not NO_RULES:
        position = torch.arange(first_position, context, device=query.device)[:, None]
        mask = _seen(position, torch.arange(context, device=query.device), window, rules)
    if rules.laid_out:
        # The query heads that share a key head one behind the other, each with all its positions.
        group = query.shape[1] // len(keys)
        grouped = query.view(tokens, len(keys), group, -1).permute(1, 2, 0, 3).flatten(1, 2)
        assert mask is not None
        out = _attended(grouped[None], keys[None], values[None], mask.repeat(group, 1)[None, None], rules)
        return out.view(len(keys), group, tokens, -1).permute(2, 0, 1, 3).flatten(1, 2)
    out = F.scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0),
        keys.unsqueeze(0),
        values.unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=True,
    )
    if mask is None and query.device.type == "cpu":
        # PyTorch's kernel for this case takes scores that are NaN for hidden ones, and answers zeros.
        out = out + (query * 0).sum(-1).T[None, :, :, None] + (keys * 0).sum()
    return out[0].transpose(0, 1).reshape(tokens, -1, query.shape[2])


def _seen(
    positions: torch.Tensor, slots: torch.Tensor, window: int | None, rules: ScoreRules
) -> torch.Tensor:
    """Which slots a query at a position sees."""
    seen = slots <= positions
    if window is not None:
        seen &= slots > positions - window
    if rules.chunk is not None:
        seen &= slots >= positions // rules.chunk * rules.chunk
    return seen


def _attended(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, rules: ScoreRules
) -> torch.Tensor:
    """query: [rows, key heads, queries, head_dim], those of one head together. mask: what is seen."""
    if not rules.laid_out:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    scores = (query @ keys.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    scores = scores.masked_fill(~mask, -torch.inf)
    if rules.sinks is not None:
        rows, kv_heads, queries = query.shape[:3]
        group = len(rules.sinks) // kv_heads
        sinks = rules.sinks.float().view(1, kv_heads, group, 1).expand(rows, -1, -1, queries // group)
        scores = torch.cat((scores, sinks.reshape(rows, kv_heads, queries, 1)), dim=-1)
    shares = scores.softmax(-1)[..., : keys.shape[2]].to(values.dtype)
    result: torch.Tensor = shares @ values
    return result
