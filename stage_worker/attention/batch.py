"""What one step computes attention for: rows of different lengths, packed without padding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


class RaggedBatch:
    """Rows one behind the other; row r has tokens at positions first_positions[r] onwards of its sequence.

    first_positions, counts: [rows]. tables: KV blocks of each row's sequence, [rows, width], zeros behind.
    offsets: first packed token of each row, and the number of tokens last, [rows + 1].
    positions: of each token in its sequence. slots: where its key and value go, block x block_size + offset.
    adapters: of each row the number of its adapter, 0 for none; None if no row has one.
    """

    __slots__ = (
        "adapters",
        "block_size",
        "contexts",
        "counts",
        "first_positions",
        "offsets",
        "positions",
        "slots",
        "tables",
        "tokens",
    )

    def __init__(
        self,
        first_positions: Int32Array,
        counts: Int32Array,
        tables: Int32Array,
        block_size: int,
        adapters: Int32Array | None = None,
    ) -> None:
        rows = len(counts)
        self.first_positions = first_positions
        self.counts = counts
        self.tables = tables
        self.block_size = block_size
        self.adapters = adapters
        self.contexts: Int32Array = first_positions + counts
        self.offsets: Int32Array = np.zeros(rows + 1, dtype=np.int32)
        np.cumsum(counts, out=self.offsets[1:])
        self.tokens = int(self.offsets[-1])
        row_of_token = np.repeat(np.arange(rows), counts)
        self.positions: Int64Array = (
            np.arange(self.tokens) + (first_positions - self.offsets[:-1])[row_of_token]
        )
        block = tables[row_of_token, self.positions // block_size].astype(np.int64)
        self.slots: Int64Array = block * block_size + self.positions % block_size

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.counts)

    def adapter_segments(self) -> list[tuple[int, int, int]]:
        """Stretches of tokens whose rows have one adapter: (its number, first token, one past the last)."""
        if self.adapters is None:
            return []
        begins = np.flatnonzero(np.diff(self.adapters, prepend=-1))
        ends = np.append(begins[1:], self.rows)
        numbers, first, last = self.adapters[begins], self.offsets[begins], self.offsets[ends]
        each = zip(numbers.tolist(), first.tolist(), last.tolist(), strict=True)
        return [segment for segment in each if segment[0]]
