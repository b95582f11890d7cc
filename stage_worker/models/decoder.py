"""The layer stack of one stage."""

from __future__ import annotations

import torch

from stage_worker.attention.backend import AttentionBackend, AttentionStep, HeadNorms
from stage_worker.attention.batch import RaggedBatch
from stage_worker.models.adapters import StepAdapters
from stage_worker.models.layer_ops import LayerOps
from stage_worker.models.native_stack import NativeStack
from stage_worker.models.spec import ModelSpec
from stage_worker.models.weights import StageWeights
from stage_worker.models.workspace import LayerBuffers, Workspace


class Decoder:
    """Layers first_layer onwards of a model, over packed rows without padding."""

    def __init__(
        self,
        spec: ModelSpec,
        first_layer: int,
        weights: StageWeights,
        attention: AttentionBackend,
        ops: LayerOps,
        workspace: Workspace | None = None,
        stack: NativeStack | None = None,
        adapters: StepAdapters | None = None,
    ) -> None:
        """stack: computes all layers at once, instead of `attention`, `ops` and `workspace`.

        adapters: what products with adapters beside them are told of a step's rows.
        """
        self._eps = spec.rms_eps
        self._hidden = spec.hidden
        self._first_layer = first_layer
        self._weights = weights
        self._attention = attention
        self._ops = ops
        self._workspace = workspace
        self._stack = stack
        self._adapters = adapters
        self._head_norms = [
            HeadNorms(layer.q_norm, layer.k_norm)
            if layer.q_norm is not None and layer.k_norm is not None
            else None
            for layer in weights.layers
        ]

    @property
    def width_in(self) -> int:
        """See StageDecoder."""
        return self._hidden

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [tokens] -> residual stream [tokens, hidden] (first stage only)."""
        if self._weights.embedding is None:
            raise ValueError("only the first stage embeds")
        return self._weights.embedding.rows(token_ids)

    def forward(self, batch: RaggedBatch, residual: torch.Tensor) -> torch.Tensor:
        """Run the stage's layers on the residual stream [tokens, hidden], which is overwritten."""
        if self._stack is not None:
            return self._stack.forward(batch, residual)
        if self._adapters is not None:
            self._adapters.segments = batch.adapter_segments()
        step = self._attention.begin(batch)
        buffers = LayerBuffers()
        if self._workspace is not None:
            buffers = LayerBuffers(**self._workspace.begin(batch.tokens))
        return self.layers(step, residual, buffers)

    def layers(self, step: AttentionStep, residual: torch.Tensor, buffers: LayerBuffers) -> torch.Tensor:
        """All layers, over an attention step that has begun."""
        ops, eps = self._ops, self._eps
        delta: torch.Tensor | None = None
        for index, (layer, norms) in enumerate(
            zip(self._weights.layers, self._head_norms, strict=True), self._first_layer
        ):
            # Each addition to the residual stream waits for the norm behind it, so that one pass does both.
            if delta is None:
                normed = ops.rms_norm(residual, layer.input_norm, eps, buffers.normed)
            else:
                normed = ops.add_rms_norm(residual, delta, layer.input_norm, eps, buffers.normed)
            qkv = layer.qkv(normed, buffers.qkv)
            attended = step.attend(index, qkv, norms, buffers.attended)
            delta = layer.output(attended, buffers.projected)
            normed = ops.add_rms_norm(residual, delta, layer.mlp_norm, eps, buffers.normed)
            gated = ops.swiglu(layer.gate_up(normed, buffers.gate_up), buffers.gated)
            delta = layer.down(gated, buffers.projected)
        return residual if delta is None else residual.add_(delta)

    def logits(self, residual: torch.Tensor) -> torch.Tensor:
        """Scores of the next token for rows [rows, hidden]: float32 [rows, vocabulary] (last stage only)."""
        if self._weights.head is None:
            raise ValueError("only the last stage has an LM head")
        return self._weights.head(self.states(residual)).float()

    def states(self, residual: torch.Tensor) -> torch.Tensor:
        """The hidden states that a model ends with, of rows [rows, hidden] (last stage only)."""
        if self._weights.final_norm is None:
            raise ValueError("only the last stage has the final norm")
        return self._ops.rms_norm(residual, self._weights.final_norm, self._eps)
