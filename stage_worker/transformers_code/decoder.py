"""The layer stack of one stage, computed by the library's code; the counterpart of `models/decoder.py`."""

from __future__ import annotations

import torch

from stage_worker.attention.batch import RaggedBatch
from stage_worker.device_copies import copies_for
from stage_worker.models.adapters import StepAdapters
from stage_worker.transformers_code.stage_attention import StageAttention
from stage_worker.transformers_code.stage_model import StageModel


class TransformersDecoder:
    """Layers of a model, over packed rows without padding."""

    def __init__(
        self, stage: StageModel, attention: StageAttention, device: torch.device, adapters: StepAdapters
    ) -> None:
        """adapters: what modules with adapters beside them are told of a step's tokens."""
        self._adapters = adapters
        self._stage = stage
        self._attention = attention
        self._copies = copies_for(device)
        stage.bind_attention(attention)

    @property
    def width_in(self) -> int:
        """See StageDecoder."""
        return self._stage.width_in

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids as they are: the library embeds them where it knows their positions, in `forward`."""
        return token_ids

    def forward(self, batch: RaggedBatch, residual: torch.Tensor) -> torch.Tensor:
        """Run the stage's layers on token ids [tokens], or the residual stream [tokens, hidden]."""
        self._adapters.segments = batch.adapter_segments()
        positions = self._copies.upload("model_positions", batch.positions)
        self._attention.begin(batch, positions)
        if residual.dtype == torch.int64:
            return self._stage.forward(positions, residual, None)
        return self._stage.forward(positions, None, residual)

    def logits(self, residual: torch.Tensor) -> torch.Tensor:
        """Scores of the next token for rows [rows, hidden]: float32 [rows, vocabulary] (last stage only)."""
        return self._stage.end(residual)[1].float()

    def states(self, residual: torch.Tensor) -> torch.Tensor:
        """The hidden states that a model ends with, of rows [rows, hidden] (last stage only)."""
        return self._stage.end(residual)[0]
