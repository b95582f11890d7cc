"""What comes before attention itself, in plain PyTorch: head norms, rotation, storing keys and values."""

from __future__ import annotations

import torch

from stage_worker.attention.backend import AttentionContext, HeadNorms
from stage_worker.models.layer_ops import rms_norm
from stage_worker.models.rope import rotate


class StoredHeads:
    """The heads of one step's tokens. No value is read on the host: a CUDA graph can hold all of it."""

    def __init__(self, context: AttentionContext, positions: torch.Tensor, slots: torch.Tensor) -> None:
        """positions, slots: of each token as in RaggedBatch, int64 [tokens] on the device.

        The rotary table must reach the positions.
        """
        self._context = context
        dtype, block_size = context.pool.geometry.dtype, context.pool.geometry.block_size
        self._blocks, self._offsets = slots // block_size, slots % block_size
        if any(context.spec.rope_layers):
            self._cos = context.rotary.cos[positions].unsqueeze(1).to(dtype)
            self._sin = context.rotary.sin[positions].unsqueeze(1).to(dtype)

    def store(
        self, layer: int, qkv: torch.Tensor, norms: HeadNorms | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Norm and rotate a layer's heads, store its keys and values.

        Returns query, key and value, [tokens, heads, head_dim].
        """
        spec, pool = self._context.spec, self._context.pool
        heads = qkv.view(len(qkv), -1, spec.head_dim)
        query, key, value = torch.split(heads, [spec.heads, spec.kv_heads, spec.kv_heads], dim=1)
        if norms is not None:
            query = rms_norm(query, norms.query, spec.rms_eps)
            key = rms_norm(key, norms.key, spec.rms_eps)
        if spec.rope_layers[layer]:
            query = rotate(query, self._cos, self._sin)
            key = rotate(key, self._cos, self._sin)
        index = layer - self._context.first_layer
        pool.keys(index)[self._blocks, :, self._offsets] = key
        pool.values(index)[self._blocks, :, self._offsets] = value
        return query, key, value
