"""The dimensions of a decoder-only transformer, as far as scheduling and splitting need them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes are counts of elements; `context_length` and `vocab_size` in tokens."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    tied_embeddings: bool

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer that a token is multiplied with."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    def attention_products(self, context: int) -> int:
        """Multiplications of a layer's attention for a token that sees `context` others; a weight is one."""
        return 2 * self.heads * self.head_dim * context

    @property
    def head_parameters(self) -> int:
        """Weights of the LM head."""
        return self.hidden * self.vocab_size

    def kv_bytes_per_token(self, layers: int, element_bytes: int) -> int:
        """Bytes that the KV cache of `layers` layers takes per token."""
        return 2 * layers * self.kv_heads * self.head_dim * element_bytes
