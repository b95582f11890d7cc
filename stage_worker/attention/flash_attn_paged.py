"""Attention by flash-attn 2, on CUDA: it reads the KV pool through block tables, in blocks of 256 tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stage_worker.attention.backend import AttentionContext, AttentionStep, HeadNorms
from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.flashinfer_paged import window_left
from stage_worker.attention.static_batch import StaticBatch
from stage_worker.attention.stored_heads import StoredHeads
from stage_worker.device_copies import copies_for

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int]], torch.Tensor]
"""Attention of query [tokens, heads, head_dim] over cached keys and values, within a window (left, right)."""


class FlashAttnAttention:
    """Decode steps by `flash_attn_with_kvcache`, steps with prompts by `flash_attn_varlen_func`."""

    def __init__(self, context: AttentionContext, library: Any) -> None:
        """library: the module `flash_attn`."""
        self._context = context
        self._library = library
        self._device = context.pool.keys(0).device
        self._copies = copies_for(self._device)

    def begin(self, batch: RaggedBatch) -> AttentionStep:
        """Prepare a step."""
        context, copies = self._context, self._copies
        context.rotary.reserve(int(batch.contexts.max(initial=1)))
        heads = StoredHeads(
            context, copies.upload("positions", batch.positions), copies.upload("slots", batch.slots)
        )
        tables = copies.upload("tables", batch.tables)
        if batch.tokens == batch.rows:
            decode = DecodeCall(self._library, tables, copies.upload("contexts", batch.contexts))
            return FlashAttnStep(context, heads, decode)
        ends = np.zeros(batch.rows + 1, dtype=np.int32)
        np.cumsum(batch.contexts, out=ends[1:])
        prompts = PromptCall(
            self._library,
            tables,
            query_ends=copies.upload("offsets", batch.offsets),
            key_ends=copies.upload("ends", ends),
            most_queries=int(batch.counts.max()),
            most_keys=int(batch.contexts.max()),
        )
        return FlashAttnStep(context, heads, prompts)

    def static(self, rows: int) -> FlashAttnStatic:
        """Decode steps of exactly so many rows, at fixed addresses, for a CUDA graph."""
        context = self._context
        width = -(-context.spec.context_length // context.pool.geometry.block_size)
        tables = torch.zeros(rows, width, dtype=torch.int32, device=self._device)
        contexts = torch.ones(rows, dtype=torch.int32, device=self._device)
        call = DecodeCall(self._library, tables, contexts)
        return FlashAttnStatic(context, StaticBatch(rows, self._device), call)


@dataclass(frozen=True, slots=True)
class DecodeCall:
    """One query per row. tables: int32 [rows, blocks]. contexts: tokens of each row, int32 [rows]."""

    library: Any
    tables: torch.Tensor
    contexts: torch.Tensor

    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: tuple[int, int]
    ) -> torch.Tensor:
        """See Attend."""
        result: torch.Tensor = self.library.flash_attn_with_kvcache(
            query.unsqueeze(1),
            keys,
            values,
            cache_seqlens=self.contexts,
            block_table=self.tables,
            causal=True,
            window_size=window,
        )
        return result


@dataclass(frozen=True, slots=True)
class PromptCall:
    """Rows of any length. query_ends, key_ends: cumulated over the rows, int32 [rows + 1], zero first."""

    library: Any
    tables: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    most_queries: int
    most_keys: int

    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: tuple[int, int]
    ) -> torch.Tensor:
        """See Attend."""
        result: torch.Tensor = self.library.flash_attn_varlen_func(
            query,
            keys,
            values,
            cu_seqlens_q=self.query_ends,
            cu_seqlens_k=self.key_ends,
            max_seqlen_q=self.most_queries,
            max_seqlen_k=self.most_keys,
            causal=True,
            window_size=window,
            block_table=self.tables,
        )
        return result


class FlashAttnStep:
    """One step, by one of the two calls."""

    def __init__(self, context: AttentionContext, heads: StoredHeads, call: Attend) -> None:
        self._context = context
        self._heads = heads
        self._call = call

    def attend(
        self, layer: int, qkv: torch.Tensor, norms: HeadNorms | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See AttentionStep."""
        query, _, _ = self._heads.store(layer, qkv, norms)
        index, pool = layer - self._context.first_layer, self._context.pool
        left = window_left(self._context.spec.sliding_windows[layer])
        # [blocks, block_size, kv_heads, head_dim]: it reads by strides, so a view of the pool will do.
        keys, values = pool.keys(index).transpose(1, 2), pool.values(index).transpose(1, 2)
        window = (-1, -1) if left < 0 else (left, 0)
        return self._call(query.contiguous(), keys, values, window).reshape(len(qkv), -1)


class FlashAttnStatic:
    """Decode steps for a CUDA graph, with block tables as wide as the model's context."""

    def __init__(self, context: AttentionContext, batch: StaticBatch, call: DecodeCall) -> None:
        self._context = context
        self._batch = batch
        self._call = call
        self._copies = copies_for(call.tables.device)

    def load(self, batch: RaggedBatch) -> bool:
        """See StaticDecode."""
        width = batch.tables.shape[1]
        if width > self._call.tables.shape[1]:
            return False
        self._batch.load(batch)
        self._call.tables[:, :width].copy_(self._copies.upload("tables", batch.tables))
        self._call.contexts.copy_(self._copies.upload("contexts", batch.contexts))
        return True

    def step(self) -> AttentionStep:
        """See StaticDecode."""
        heads = StoredHeads(self._context, self._batch.positions, self._batch.slots)
        return FlashAttnStep(self._context, heads, self._call)
