"""The seam between the layer stack and attention over the paged KV pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from stage_worker.attention.batch import RaggedBatch
from stage_worker.kv_pool import KvPool
from stage_worker.models.rope import RotaryTable
from stage_worker.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class ScoreRules:
    """What some models do with the scores of a layer before they are summed up.

    softcap: they are held within -softcap .. softcap. chunk: a token sees those of its own chunk of so many
    positions only. sinks: a score of each query head that takes part in the softmax and has no value.
    """

    softcap: float | None = None
    chunk: int | None = None
    sinks: torch.Tensor | None = None

    @property
    def laid_out(self) -> bool:
        """Whether scores must be computed apart from the sum over values."""
        return self.softcap is not None or self.sinks is not None


NO_RULES = ScoreRules()


@dataclass(frozen=True, slots=True)
class AttentionContext:
    """What attention needs for a stage's whole life. first_layer: the model's layer that is the pool's 0.

    rules: of the layers that have any; `TorchPagedAttention` alone can compute them.
    """

    spec: ModelSpec
    first_layer: int
    pool: KvPool
    rotary: RotaryTable
    rules: dict[int, ScoreRules] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm weights of query and key heads, [head_dim] each (Qwen3)."""

    query: torch.Tensor
    key: torch.Tensor


class AttentionStep(Protocol):
    """One step's batch, prepared once and used by every layer."""

    def attend(
        self, layer: int, qkv: torch.Tensor, norms: HeadNorms | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of one layer: norm and rotate heads, store keys and values, attend.

        layer: index in the model. qkv: [tokens, (heads + 2 x kv_heads) x head_dim], may be overwritten.
        Returns [tokens, heads x head_dim]; `out` may be used for it.
        """
        ...


class AttentionBackend(Protocol):
    """Computes attention for the batches of one stage."""

    def begin(self, batch: RaggedBatch) -> AttentionStep:
        """Prepare a step."""
        ...


MakeAttention = Callable[[AttentionContext], AttentionBackend]
"""Makes the attention of an epoch."""
