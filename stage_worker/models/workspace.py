"""Buffers for what a layer computes, shared by all layers of a stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stage_worker.models.spec import ModelSpec
from stage_worker.pages import Arena


@dataclass(frozen=True, slots=True)
class LayerBuffers:
    """Where results may go, [tokens, ...] each; None lets every operation allocate its own.

    projected: what is added to the residual stream; it is read before the next one is written.
    """

    normed: torch.Tensor | None = None
    qkv: torch.Tensor | None = None
    attended: torch.Tensor | None = None
    projected: torch.Tensor | None = None
    gate_up: torch.Tensor | None = None
    gated: torch.Tensor | None = None


class Workspace:
    """Keeps the buffers between steps: fresh memory for each result costs page faults and cache misses."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype) -> None:
        self._columns = {
            "normed": spec.hidden,
            "qkv": spec.query_size + 2 * spec.kv_size,
            "attended": spec.query_size,
            "projected": spec.hidden,
            "gate_up": 2 * spec.intermediate,
            "gated": spec.intermediate,
        }
        self._dtype = dtype
        self._storage: dict[str, torch.Tensor] = {}
        self._tokens = 0

    def begin(self, tokens: int) -> dict[str, torch.Tensor]:
        """Buffers for a step with so many tokens, by the names of LayerBuffers."""
        if tokens > self._tokens:
            self._tokens, arena = tokens, Arena()
            self._storage = {
                name: arena.empty((tokens, columns), self._dtype) for name, columns in self._columns.items()
            }
        return {name: storage[:tokens] for name, storage in self._storage.items()}
