"""Which captured graph a decode step takes, and how its batch is padded to it. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from stage_worker.attention.batch import RaggedBatch

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows of the graphs: half of the rows at most are padding, a third from 24 on. Each graph costs start-up
time and some megabytes, and beyond 256 rows launching kernels costs little beside running them."""


def graph_sizes(most_rows: int) -> tuple[int, ...]:
    """Rows of the graphs for steps of at most `most_rows` rows, ascending."""
    largest = min(most_rows, _SIZES[-1])
    return (*(size for size in _SIZES if size < largest), largest)


def graph_for(batch: RaggedBatch, sizes: Sequence[int]) -> int | None:
    """The smallest size that holds the batch; None if it has to run without a graph."""
    if batch.tokens != batch.rows or not batch.rows:
        return None  # a row has several tokens
    index = bisect_left(sizes, batch.rows)
    return sizes[index] if index < len(sizes) else None


def padded(batch: RaggedBatch, rows: int, spare_block: int) -> RaggedBatch:
    """The decode batch with rows of one token behind it, which live in a block that no sequence has."""
    missing = rows - batch.rows
    if not missing:
        return batch
    width = batch.tables.shape[1]
    tables = np.zeros((missing, width), dtype=np.int32)
    tables[:, 0] = spare_block
    return RaggedBatch(
        np.concatenate([batch.first_positions, np.zeros(missing, dtype=np.int32)]),
        np.concatenate([batch.counts, np.ones(missing, dtype=np.int32)]),
        np.concatenate([batch.tables, tables]),
        batch.block_size,
    )


def idle_batch(rows: int, spare_block: int, block_size: int) -> RaggedBatch:
    """A batch of padding only."""
    return RaggedBatch(
        np.zeros(rows, dtype=np.int32),
        np.ones(rows, dtype=np.int32),
        np.full((rows, 1), spare_block, dtype=np.int32),
        block_size,
    )
