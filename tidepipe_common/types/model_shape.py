"""The dimensions of a decoder-only transformer, as far as scheduling and splitting need them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes are counts of elements; `context_length` and `vocab_size` in tokens.

    intermediate: of the MLP that every token goes through; 0 if there are experts only.
    experts, experts_per_token: of a layer, and those that a token goes through; 0: it has none.
    expert_intermediate: inner size of one expert.
    """

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
    experts: int = field(default=0, kw_only=True)
    experts_per_token: int = field(default=0, kw_only=True)
    expert_intermediate: int = field(default=0, kw_only=True)

    @property
    def fault(self) -> str:
        """How these numbers contradict each other; "" where they do not."""
        if self.heads % self.kv_heads:
            return f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly"
        if self.experts_per_token > self.experts:
            return f"a token cannot go through {self.experts_per_token} of {self.experts} experts"
        return ""

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer that a token is multiplied with."""
        return self._every_token + self.experts_per_token * self._expert

    @property
    def stored_layer_parameters(self) -> int:
        """Weights of one layer, those of all experts with them."""
        return self._every_token + self.experts * self._expert

    def read_layer_parameters(self, tokens: int) -> float:
        """Weights of one layer that a step of so many tokens reads: of the experts those that any goes to.

        As if each token chose its experts by itself and at random.
        """
        if not self.experts:
            return self._every_token
        untouched = (1 - min(1.0, self.experts_per_token / self.experts)) ** tokens
        return self._every_token + self.experts * (1 - untouched) * self._expert

    @property
    def _every_token(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def _expert(self) -> int:
        return 3 * self.hidden * self.expert_intermediate

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
