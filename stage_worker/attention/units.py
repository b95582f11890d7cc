"""Which rows of a step read keys and values together: those whose sequences begin with the same KV blocks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stage_worker.attention.batch import RaggedBatch

IndexArray = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Units:
    """Rows that are computed together, unit by unit.

    order: rows of the batch, those of a unit side by side, by position. first, rows: where each unit's begin
    in it, and how many it has. shared: slots at the beginning, whole tiles, that all rows of a unit have.
    """

    order: IndexArray
    first: IndexArray
    rows: IndexArray
    shared: IndexArray


def units(batch: RaggedBatch, tile: int, most_rows: int) -> Units:
    """The units of a batch. tile: slots that are read at a time. most_rows: of a unit.

    Only rows with one query are put together: several queries of one row share what they read anyway.
    """
    single = np.flatnonzero(batch.counts == 1)
    if most_rows < 2 or len(single) < 2 or len(set(batch.tables[single, 0].tolist())) == len(single):
        return _alone(np.arange(batch.rows))
    tables = np.ascontiguousarray(batch.tables[single])
    # As strings of bytes: tables that begin alike become neighbours.
    sorting = np.argsort(tables.view(f"V{tables.shape[1] * tables.itemsize}").ravel())
    single, tables = single[sorting], tables[sorting]
    differ = np.ones((len(single) - 1, tables.shape[1] + 1), dtype=bool)
    np.not_equal(tables[1:], tables[:-1], out=differ[:, :-1])
    seen = batch.contexts[single]
    alike = np.minimum(differ.argmax(1) * batch.block_size, np.minimum(seen[1:], seen[:-1])) // tile * tile
    sizes, shared = (np.array(part, dtype=np.intp) for part in _cut(alike.tolist(), most_rows))
    number = np.repeat(np.arange(len(sizes)), sizes)
    together = Units(
        order=single[np.lexsort((batch.first_positions[single], number))],
        first=_starts(sizes),
        rows=sizes,
        shared=shared,
    )
    others = _alone(np.flatnonzero(batch.counts != 1))
    return Units(
        order=np.concatenate((others.order, together.order)),
        first=np.concatenate((others.first, len(others.order) + together.first)),
        rows=np.concatenate((others.rows, together.rows)),
        shared=np.concatenate((others.shared, together.shared)),
    )


def _starts(sizes: IndexArray) -> IndexArray:
    starts: IndexArray = np.zeros_like(sizes)
    np.cumsum(sizes[:-1], out=starts[1:])
    return starts


def _alone(rows: IndexArray) -> Units:
    return Units(rows, np.arange(len(rows)), np.ones_like(rows), np.zeros_like(rows))


def _cut(alike: list[int], most: int) -> tuple[list[int], list[int]]:
    """Cut a line of rows into units: their sizes, and what is shared in each.

    alike: slots that each row has in common with the one before it, from the second on. A row joins those
    before it unless then less would be read together; what is too long for one unit is cut evenly.
    """
    sizes: list[int] = []
    shared: list[int] = []
    begin, least = 0, 0
    for row in range(1, len(alike) + 2):
        size = row - begin
        least_now = 0 if row > len(alike) else min(alike[row - 1], least) if size > 1 else alike[row - 1]
        if least_now and least_now * min(size, most) >= least * (min(size, most) - 1):
            least = least_now
            continue
        parts = -(-size // most)
        bounds = [begin + size * part // parts for part in range(parts + 1)]
        for left, right in itertools.pairwise(bounds):
            sizes.append(right - left)
            shared.append(min(alike[left : right - 1], default=0))
        begin, least = row, 0
    return sizes, shared
