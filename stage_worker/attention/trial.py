"""A back end's trial before it serves: a few steps of random heads, compared with plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from stage_worker.attention.backend import AttentionBackend, AttentionContext, HeadNorms
from stage_worker.attention.batch import RaggedBatch

_SEQUENCES = 3
_TOKENS = 400
"""Of each sequence (but at least three blocks), if the pool has room: several pages, several tiles."""
_SHORT = 24
"""Tokens of a prompt that is shorter than any tile."""
_TOLERANCE = 3e-2
"""Absolute and relative, for outputs of about 1 in bfloat16."""


@runtime_checkable
class TriedBackend(Protocol):
    """A back end that behaves otherwise once it has passed."""

    def passed(self) -> None:
        """The trial is over: from now on a failure of the library must not cost a step."""
        ...


def disagreement(
    backend: AttentionBackend, reference: AttentionBackend, context: AttentionContext
) -> str | None:
    """Why the back end's results cannot be trusted, or None. Overwrites some of the pool, which must be free.

    What a library raises for a geometry that it does not know passes through.
    """
    spec, pool = context.spec, context.pool
    device, dtype = pool.keys(0).device, pool.geometry.dtype
    generator = torch.Generator().manual_seed(7)
    columns = spec.query_size + 2 * spec.kv_size
    norms = None
    if spec.qk_norm:
        norms = HeadNorms(*(torch.ones(spec.head_dim, dtype=dtype, device=device) for _ in range(2)))
    for layer in _distinct_layers(context):
        for batch in trial_batches(pool.blocks, pool.geometry.block_size, spec.context_length):
            qkv = torch.randn(batch.tokens, columns, generator=generator).to(device, dtype)
            expected = reference.begin(batch).attend(layer, qkv.clone(), norms).float()
            got = backend.begin(batch).attend(layer, qkv.clone(), norms).float()
            if not torch.allclose(got, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
                worst = float((got - expected).abs().max())
                return f"differs from plain PyTorch by {worst:.3g} in layer {layer}, {_describe(batch)}"
    return None


def trial_batches(blocks: int, block_size: int, context_length: int) -> list[RaggedBatch]:
    """Prompts, chunks of prompts and decode steps, each alone and together, as far as the pool has room."""
    width = min(max(3, -(-_TOKENS // block_size)), blocks // _SEQUENCES)
    sequences = _SEQUENCES if width else 1
    width = max(width, 1)
    capacity = min(width * block_size, context_length)
    # The last sequence gets the first blocks, so that tables do not simply count up.
    tables = np.arange(sequences * width, dtype=np.int32).reshape(sequences, width)[::-1]
    most = max(1, capacity // 2)
    few = min(_SHORT, most)
    steps: Sequence[dict[int, int]] = (
        # Short ones are other shapes to a compiler than what takes several of its tiles.
        {0: few},
        {0: max(1, most - few)},
        {0: 1, 1: most},
        {0: max(2, capacity // 3), 1: 1, 2: most + 1},
        {0: 1, 1: 1, 2: 1},
        {1: few},
    )
    lengths = [0] * sequences
    batches = []
    for step in steps:
        counts = {row: min(n, capacity - lengths[row]) for row, n in step.items() if row < sequences}
        rows = [row for row, count in counts.items() if count > 0]
        if not rows:
            continue
        batches.append(
            RaggedBatch(
                np.array([lengths[row] for row in rows], dtype=np.int32),
                np.array([counts[row] for row in rows], dtype=np.int32),
                np.ascontiguousarray(tables[rows]),
                block_size,
            )
        )
        for row in rows:
            lengths[row] += counts[row]
    return batches


def _distinct_layers(context: AttentionContext) -> list[int]:
    """One of the stage's layers for each kind that there is."""
    spec, first = context.spec, context.first_layer
    kinds: dict[tuple[int | None, bool], int] = {}
    for layer in range(first, first + context.pool.geometry.layers):
        kinds.setdefault((spec.sliding_windows[layer], spec.rope_layers[layer]), layer)
    return list(kinds.values())


def _describe(batch: RaggedBatch) -> str:
    return f"rows of {batch.counts.tolist()} tokens behind {batch.first_positions.tolist()}"
