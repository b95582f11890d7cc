"""The specification of a model: what its forward pass must know, whatever file it came from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from tidepipe_common.errors import ModelError
from tidepipe_common.types.model_shape import ModelShape

SUPPORTED_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Model types that the decoder can run (SmolLM and SmolLM2 are llama)."""

RopeKind = Literal["default", "linear", "llama3", "yarn"]
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3", "yarn")

DTYPES = ("float32", "bfloat16", "float16")
"""Data types of weights and activations."""


MOST_LAYERS = 10_000
LARGEST = 2**31 - 1
"""Of all dimensions: what goes over the wire, and what kernels index with."""


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding; fields behind `theta` matter only to some kinds.

    original_context: tokens that the model was first trained for (llama3, yarn).
    attention_factor: multiplies cosines and sines (yarn).
    frequency_divisors: one per pair of dimensions, or empty; GGUF files carry llama3's scaling so.
    """

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    frequency_divisors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec(ModelShape):
    """A decoder-only transformer with RMSNorm, grouped-query attention, RoPE and SwiGLU.

    sliding_windows: per layer, how many positions back a token sees (itself included), or None for all.
    rope_layers: per layer, False where the layer does without RoPE.
    native_dtype: of the checkpoint; bfloat16 for block-quantized ones.
    handed: values of a token that a stage hands on to the next one, at most; 0: hidden states alone.
    """

    rms_eps: float
    rope: RopeSpec
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]
    rope_layers: tuple[bool, ...]
    native_dtype: str
    handed: int = 0

    @property
    def shape(self) -> ModelShape:
        """The dimensions alone, which scheduling and splitting need."""
        return ModelShape(**{one.name: getattr(self, one.name) for one in fields(ModelShape)})

    @property
    def query_size(self) -> int:
        """Values of all query heads of one token."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Values of all key (or value) heads of one token."""
        return self.kv_heads * self.head_dim

    def check(self, source: str) -> None:
        """Raise ModelError if the numbers contradict each other. source: named in the message."""
        for name in (
            "layers",
            "hidden",
            "heads",
            "kv_heads",
            "head_dim",
            "intermediate",
            "vocab_size",
            "context_length",
        ):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ModelError(f"{source}: {name} must be 1 to {LARGEST}, got {getattr(self, name)}")
        if fault := self.shape.fault:
            raise ModelError(f"{source}: {fault}")
        if self.head_dim % 2:
            raise ModelError(f"{source}: head_dim must be even for RoPE, got {self.head_dim}")
        for name in ("sliding_windows", "rope_layers"):
            if len(getattr(self, name)) != self.layers:
                raise ModelError(
                    f"{source}: {name} names {len(getattr(self, name))} layers, the model has {self.layers}"
                )
        if self.native_dtype not in DTYPES:
            raise ModelError(
                f"{source}: unsupported data type {self.native_dtype}; supported: {', '.join(DTYPES)}"
            )
        if not self.rope.theta > 1:
            raise ModelError(f"{source}: RoPE's theta must be above 1, got {self.rope.theta}")
        if not self.rms_eps >= 0:
            raise ModelError(f"{source}: the norm's epsilon must not be negative, got {self.rms_eps}")
        if not all(0 < divisor < math.inf for divisor in self.rope.frequency_divisors):
            raise ModelError(f"{source}: RoPE's frequency divisors must be above 0")
        if self.rope.kind in ("llama3", "yarn") and self.rope.original_context < 1:
            raise ModelError(f"{source}: RoPE's original context length must be at least 1")
        if self.rope.frequency_divisors and len(self.rope.frequency_divisors) != self.head_dim // 2:
            raise ModelError(
                f"{source}: {len(self.rope.frequency_divisors)} RoPE frequency divisors "
                f"for {self.head_dim // 2} pairs of dimensions"
            )


def unsupported_architecture(source: str, architecture: str) -> ModelError:
    """The error for a model family that the decoder cannot run."""
    return ModelError(
        f"{source}: architecture {architecture!r} is not supported; supported: "
        f"{', '.join(SUPPORTED_ARCHITECTURES)} (SmolLM and SmolLM2 are llama)"
    )
