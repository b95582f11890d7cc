"""Attention by FlashInfer, on CUDA: it reads the KV pool where it lies, which has its "HND" layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stage_worker.attention.backend import AttentionContext, AttentionStep, HeadNorms
from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.page_table import PageTable, page_table
from stage_worker.attention.static_batch import StaticBatch
from stage_worker.attention.stored_heads import StoredHeads
from stage_worker.device_copies import CudaMark, Mark, copies_for

_LAYOUT = "HND"
_LEAST_WORKSPACE = 128 << 20
"""Bytes, what FlashInfer's documentation recommends."""
_WORKSPACE_PER_GROUP = 32 << 20
"""Bytes per query head that shares a key head: partial results of long contexts grow with it."""


class FlashInferAttention:
    """Decode steps by its decode kernels, steps with prompts by its prefill kernels.

    A wrapper plans for one sliding window, so there is one for each window that the stage's layers have.
    """

    def __init__(
        self,
        context: AttentionContext,
        library: Any,
        prefill_backend: str = "auto",
        make_mark: Callable[[], Mark] | None = None,
    ) -> None:
        """library: the module `flashinfer`. prefill_backend: auto (fa3 on Hopper), or fa2 (everywhere)."""
        spec, pool = context.spec, context.pool
        device = pool.keys(0).device
        self._context = context
        self._library = library
        self._copies = copies_for(device)
        self._mark = make_mark() if make_mark is not None else CudaMark(device)
        layers = range(context.first_layer, context.first_layer + pool.geometry.layers)
        self.windows = sorted({window_left(spec.sliding_windows[layer]) for layer in layers})
        group = spec.heads // spec.kv_heads
        self._tensor_cores = group > 1
        # FlashInfer wants zeros in it at first. All wrappers share it: steps run one behind the other.
        self._workspace = torch.zeros(
            max(_LEAST_WORKSPACE, group * _WORKSPACE_PER_GROUP), dtype=torch.uint8, device=device
        )
        self._prefill = {
            window: library.BatchPrefillWithPagedKVCacheWrapper(
                self._workspace, kv_layout=_LAYOUT, backend=prefill_backend
            )
            for window in self.windows
        }
        self._decode = {
            window: library.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace, kv_layout=_LAYOUT, use_tensor_cores=self._tensor_cores
            )
            for window in self.windows
        }
        # Graphs replay one at a time, and each step writes it anew.
        self._indices: torch.Tensor | None = None

    def begin(self, batch: RaggedBatch) -> AttentionStep:
        """Prepare a step."""
        context, copies = self._context, self._copies
        context.rotary.reserve(int(batch.contexts.max(initial=1)))
        heads = StoredHeads(
            context, copies.upload("positions", batch.positions), copies.upload("slots", batch.slots)
        )
        if batch.tokens == batch.rows:
            self.plan_decode(self._decode, page_table(batch))
            return FlashInferStep(context, heads, self._decode)
        pages = page_table(batch)
        spec, geometry = context.spec, context.pool.geometry
        indices = copies.upload("indices", pages.indices)
        self._mark.synchronize()
        for window, wrapper in self._prefill.items():
            wrapper.plan(
                torch.from_numpy(batch.offsets),
                torch.from_numpy(pages.indptr),
                indices,
                torch.from_numpy(pages.last_page_lengths),
                num_qo_heads=spec.heads,
                num_kv_heads=spec.kv_heads,
                head_dim_qk=spec.head_dim,
                page_size=geometry.block_size,
                causal=True,
                window_left=window,
                q_data_type=geometry.dtype,
                kv_data_type=geometry.dtype,
            )
        self._mark.record()
        return FlashInferStep(context, heads, self._prefill)

    def static(self, rows: int) -> FlashInferStatic:
        """Decode steps of exactly so many rows, at fixed addresses, for a CUDA graph."""
        pool = self._context.pool
        device = self._workspace.device
        if self._indices is None or self._indices.numel() < pool.blocks + rows:
            # No two sequences share a block; padding has one page per row.
            self._indices = torch.zeros(pool.blocks + rows, dtype=torch.int32, device=device)
        indptr = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        last = torch.ones(rows, dtype=torch.int32, device=device)
        wrappers = {
            window: self._library.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace,
                kv_layout=_LAYOUT,
                use_cuda_graph=True,
                use_tensor_cores=self._tensor_cores,
                paged_kv_indptr_buffer=indptr,
                paged_kv_indices_buffer=self._indices,
                paged_kv_last_page_len_buffer=last,
            )
            for window in self.windows
        }
        return FlashInferStatic(self, self._context, StaticBatch(rows, device), wrappers, len(self._indices))

    def plan_decode(self, wrappers: dict[int, Any], pages: PageTable) -> None:
        """Let the wrappers of all windows prepare for these pages; one query per row."""
        spec, geometry = self._context.spec, self._context.pool.geometry
        indices = self._copies.upload("indices", pages.indices)
        # Each wrapper plans in a page-locked buffer of its own; the device must have read the last plan.
        self._mark.synchronize()
        for window, wrapper in wrappers.items():
            wrapper.plan(
                torch.from_numpy(pages.indptr),
                indices,
                torch.from_numpy(pages.last_page_lengths),
                num_qo_heads=spec.heads,
                num_kv_heads=spec.kv_heads,
                head_dim=spec.head_dim,
                page_size=geometry.block_size,
                window_left=window,
                q_data_type=geometry.dtype,
                kv_data_type=geometry.dtype,
            )
        self._mark.record()


class FlashInferStep:
    """One planned step. wrappers: by `window_left`."""

    def __init__(self, context: AttentionContext, heads: StoredHeads, wrappers: dict[int, Any]) -> None:
        self._context = context
        self._heads = heads
        self._wrappers = wrappers

    def attend(
        self, layer: int, qkv: torch.Tensor, norms: HeadNorms | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See AttentionStep."""
        query, _, _ = self._heads.store(layer, qkv, norms)
        index, pool = layer - self._context.first_layer, self._context.pool
        wrapper = self._wrappers[window_left(self._context.spec.sliding_windows[layer])]
        result: torch.Tensor = wrapper.run(query.contiguous(), (pool.keys(index), pool.values(index)))
        return result.view(len(qkv), -1)


class FlashInferStatic:
    """Decode steps for a CUDA graph: planning rewrites the buffers that the captured kernels read."""

    def __init__(
        self,
        backend: FlashInferAttention,
        context: AttentionContext,
        batch: StaticBatch,
        wrappers: dict[int, Any],
        most_pages: int,
    ) -> None:
        self._backend = backend
        self._context = context
        self._batch = batch
        self._wrappers = wrappers
        self._most_pages = most_pages

    def load(self, batch: RaggedBatch) -> bool:
        """See StaticDecode."""
        pages = page_table(batch)
        if len(pages.indices) > self._most_pages:
            return False
        self._batch.load(batch)
        self._backend.plan_decode(self._wrappers, pages)
        return True

    def step(self) -> AttentionStep:
        """See StaticDecode."""
        heads = StoredHeads(self._context, self._batch.positions, self._batch.slots)
        return FlashInferStep(self._context, heads, self._wrappers)


def window_left(window: int | None) -> int:
    """Positions before its own that a token sees, as the attention libraries count; -1 for all."""
    return -1 if window is None else window - 1
