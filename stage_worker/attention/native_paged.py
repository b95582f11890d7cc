"""Attention by the C kernels, on CPU: rotation, KV pool and softmax without temporaries."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import structlog
import torch

from stage_worker.attention.backend import AttentionBackend, AttentionContext, HeadNorms
from stage_worker.attention.batch import Int32Array, RaggedBatch
from stage_worker.attention.torch_paged import TorchPagedAttention
from stage_worker.attention.units import IndexArray, Units, units
from stage_worker.kv_pool import KvGeometry
from stage_worker.models.native.library import NativeKernels
from stage_worker.models.native.structures import (
    GROUP,
    MOST_HEAD_DIM,
    MOST_QUERY_ROWS,
    PANEL,
    SCALE_BYTES,
    Attention,
)
from stage_worker.models.spec import ModelSpec

_log = structlog.get_logger()

_LEAST_TOKENS = 16
"""Tokens to rotate and store that a thread must have to be worth waking."""
_ROWS_TOGETHER = 12
"""Query rows that read a key head's tile together: rows that begin alike, times query heads per key head.

More gain nothing, and leave less room for key heads, which lie side by side.
"""


class NativePagedAttention:
    """Reads keys and values where they lie, in a layout of its own within each block.

    A pool of `int8_geometry` holds rounded keys and values, one scale each.
    A sequence's result does not depend on the rest of the batch, nor on how its tokens came in chunks.
    """

    def __init__(self, kernels: NativeKernels, context: AttentionContext) -> None:
        self._kernels = kernels
        self._context = context

    @staticmethod
    def fits(spec: ModelSpec, block_size: int) -> bool:
        """True if the kernels can compute this model's attention over blocks of this size."""
        return (
            spec.head_dim % GROUP == 0
            and spec.head_dim <= MOST_HEAD_DIM
            and spec.heads // spec.kv_heads <= MOST_QUERY_ROWS
            and block_size % GROUP == 0
        )

    @staticmethod
    def int8_geometry(geometry: KvGeometry) -> KvGeometry:
        """Of a pool that holds the same in int8."""
        return replace(geometry, head_dim=geometry.head_dim + SCALE_BYTES, dtype=torch.uint8)

    def begin(self, batch: RaggedBatch) -> NativeStep:
        """Prepare a step."""
        return NativeStep(self._kernels, self._context, batch)


def paged_attention(kernels: NativeKernels, context: AttentionContext) -> AttentionBackend:
    """Attention by the kernels, or by PyTorch where they do not fit."""
    block_size = context.pool.geometry.block_size
    if NativePagedAttention.fits(context.spec, block_size):
        return NativePagedAttention(kernels, context)
    _log.warning(
        "attention without native kernels (several times slower): they want block sizes and head sizes "
        "that are multiples of 16",
        block_size=block_size,
        head_dim=context.spec.head_dim,
    )
    return TorchPagedAttention(context)


class NativeStep:
    """One step's arguments for the kernels.

    arguments: without what differs from layer to layer. bounds: items of each thread; fewer than threads
    where there is little to do.
    """

    def __init__(self, kernels: NativeKernels, context: AttentionContext, batch: RaggedBatch) -> None:
        spec, stored = context.spec, context.pool.geometry
        self._kernels = kernels
        self._context = context
        self._tokens = batch.tokens
        rotary = context.rotary
        rotary.reserve(int(batch.contexts.max(initial=1)))
        items = _items(batch, spec.heads, spec.kv_heads)
        self.bounds = _bounds(batch, items, kernels.threads)
        arrays: dict[str, npt.NDArray[np.integer]] = {
            "positions": batch.positions,
            "slots": np.pad(batch.slots, (0, 1), constant_values=-1),
            "offsets": batch.offsets,
            "first_positions": batch.first_positions,
            "tables": np.ascontiguousarray(batch.tables),
            "order": items.units.order.astype(np.int32),
            "item_first": items.units.first[items.unit].astype(np.int32),
            "item_rows": items.units.rows[items.unit].astype(np.int32),
            "item_shared": items.units.shared[items.unit].astype(np.int32),
            "item_begin": items.begin,
            "item_end": items.end,
            "item_head_begin": items.head_begin,
            "item_head_end": items.head_end,
        }
        self._alive = (arrays, rotary.cos, rotary.sin)  # the kernels see only their addresses
        self.arguments = Attention(
            **{name: array.ctypes.data for name, array in arrays.items()},
            cos=rotary.cos.data_ptr(),
            sin=rotary.sin.data_ptr(),
            table_width=batch.tables.shape[1],
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            block_size=batch.block_size,
            block_stride=context.pool.keys(0).stride(0) * stored.dtype.itemsize,
            slot_bytes=stored.head_dim * stored.dtype.itemsize,
            kv_int8=stored.dtype == torch.uint8,
            norm_eps=spec.rms_eps,
            # The kernel's exponential has base 2.
            scale=spec.head_dim**-0.5 / np.log(2.0),
        )
        self._reference = byref(self.arguments)

    def attend(
        self, layer: int, qkv: torch.Tensor, norms: HeadNorms | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See AttentionStep."""
        spec, pool = self._context.spec, self._context.pool
        index = layer - self._context.first_layer
        if out is None:
            out = torch.empty(qkv.shape[0], spec.query_size, dtype=qkv.dtype)
        arguments = self.arguments
        arguments.qkv, arguments.out = qkv.data_ptr(), out.data_ptr()
        arguments.keys, arguments.values = pool.keys(index).data_ptr(), pool.values(index).data_ptr()
        arguments.q_norm = norms.query.data_ptr() if norms is not None else None
        arguments.k_norm = norms.key.data_ptr() if norms is not None else None
        arguments.window = spec.sliding_windows[layer] or 0
        arguments.rope = spec.rope_layers[layer]
        self._kernels.run(self._kernels.store_kv, self._reference, self._tokens, _LEAST_TOKENS)
        self._kernels.run_parts(self._kernels.attend, self._reference, self.bounds)
        return out


@dataclass(frozen=True, slots=True)
class _Items:
    """What the kernel computes at a time: queries begin .. end - 1 of a unit's rows, and some key heads.

    units: of the batch. unit: of each item.
    """

    units: Units
    unit: IndexArray
    begin: Int32Array
    end: Int32Array
    head_begin: Int32Array
    head_end: Int32Array


def _items(batch: RaggedBatch, heads: int, kv_heads: int) -> _Items:
    """Cut the batch's work into items.

    A single query goes with as many key heads as fit: a block's heads lie side by side, and reading them in
    one go is faster. Several queries go with one key head, whose keys and values then stay in the cache. Rows
    that begin alike are something between: several rows, and the more key heads the fewer rows they are.
    """
    group = heads // kv_heads
    found = units(batch, PANEL, min(MOST_QUERY_ROWS // group, max(2, -(-_ROWS_TOGETHER // group))))
    counts = batch.counts[found.order[found.first]]
    single = counts == 1
    queries = np.where(single, 1, max(1, MOST_QUERY_ROWS // group))
    span = np.where(single, np.clip(MOST_QUERY_ROWS // (group * found.rows), 1, kv_heads), 1)
    cuts, head_cuts = -(-counts // queries), -(-kv_heads // span)
    unit = np.repeat(np.arange(len(counts)), cuts * head_cuts)
    number = np.arange(len(unit)) - (np.cumsum(cuts * head_cuts) - cuts * head_cuts)[unit]
    begin = number // head_cuts[unit] * queries[unit]
    head_begin = number % head_cuts[unit] * span[unit]
    return _Items(
        units=found,
        unit=unit,
        begin=begin.astype(np.int32),
        end=np.minimum(begin + queries[unit], counts[unit]).astype(np.int32),
        head_begin=head_begin.astype(np.int32),
        head_end=np.minimum(head_begin + span[unit], kv_heads).astype(np.int32),
    )


def _bounds(batch: RaggedBatch, items: _Items, threads: int) -> list[int]:
    """Cut the items into about equal parts, one per thread."""
    total = len(items.unit)
    if threads == 1 or total < 2:
        return [0, total]
    found, unit = items.units, items.unit
    before = np.add.reduceat(batch.first_positions[found.order], found.first)[unit]
    rows, shared = found.rows[unit], found.shared[unit]
    own = before + rows * (items.end - shared)
    # A slot costs a read even for a single query, and arithmetic for each.
    cost = own * (2 + items.end - items.begin) + shared * (2 + rows)
    done = np.cumsum(cost * (items.head_end - items.head_begin))
    cuts = np.searchsorted(done, done[-1] * np.arange(1, threads) / threads)
    return [0, *sorted({int(cut) for cut in cuts} - {0, total}), total]
