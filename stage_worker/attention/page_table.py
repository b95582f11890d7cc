"""A batch's block tables as attention libraries want them: one list of pages, and where each row's begin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stage_worker.attention.batch import Int32Array, RaggedBatch


@dataclass(frozen=True, slots=True)
class PageTable:
    """indices: pages of all rows, one row behind the other, as far as they are used.

    indptr: where each row's begin in it, and their number last, [rows + 1].
    last_page_lengths: tokens in each row's last page, 1 to block size, [rows].
    """

    indptr: Int32Array
    indices: Int32Array
    last_page_lengths: Int32Array


def page_table(batch: RaggedBatch) -> PageTable:
    """The pages that hold each row's context, this step's tokens included."""
    used = -(-batch.contexts // batch.block_size)
    indptr: Int32Array = np.zeros(batch.rows + 1, dtype=np.int32)
    np.cumsum(used, out=indptr[1:])
    in_use = np.arange(batch.tables.shape[1]) < used[:, None]
    last: Int32Array = (batch.contexts - (used - 1) * batch.block_size).astype(np.int32)
    return PageTable(indptr, batch.tables[in_use].astype(np.int32, copy=False), last)
