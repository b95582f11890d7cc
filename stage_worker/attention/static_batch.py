"""What a captured decode step reads: the same addresses at every replay, new contents."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from stage_worker.attention.backend import AttentionStep
from stage_worker.attention.batch import RaggedBatch
from stage_worker.device_copies import copies_for


class StaticDecode(Protocol):
    """Decode steps of a fixed number of rows, fit for a CUDA graph."""

    def load(self, batch: RaggedBatch) -> bool:
        """Write a batch of exactly those rows into the fixed buffers; False if they cannot hold it.

        Before each replay, outside of the graph.
        """
        ...

    def step(self) -> AttentionStep:
        """The step over what was loaded; called while the graph is captured."""
        ...


@runtime_checkable
class StaticBackend(Protocol):
    """An attention backend that can do so."""

    def static(self, rows: int) -> StaticDecode:
        """Decode steps of so many rows."""
        ...


class StaticBatch:
    """Positions and slots of one token per row, int64 [rows] each."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._copies = copies_for(device)
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.slots = torch.zeros(rows, dtype=torch.int64, device=device)

    def load(self, batch: RaggedBatch) -> None:
        """Take a batch over."""
        self.positions.copy_(self._copies.upload("positions", batch.positions))
        self.slots.copy_(self._copies.upload("slots", batch.slots))
