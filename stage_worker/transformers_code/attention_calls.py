"""What the library's layers call for attention: registered under a name of its own, so that no mask is made.

A layer calls it with rotated heads. Bound to a stage, it hands them to the attention over the paged KV pool;
while a skeleton is looked at, it only notes what the layer asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

NAME = "tidepipe"
"""Of the attention, for `config._attn_implementation`."""
SLOPES = "alibi_slopes"
"""Option of a call: see AttentionCall."""
POSITION_VALUES = 2
"""Of a key, that hold its position: one type of 8 bits of mantissa would not."""
_BOUND = "tidepipe_attention"


class UnsuitableError(Exception):
    """A model whose layers cannot be run as stages; says why in words for the user."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one layer asks of attention.

    key_dim, value_dim: values of a head. scaling: of the scores. window: positions back that a token sees,
    itself included. chunk: a token sees its own chunk of so many positions only. softcap: of the scores.
    sinks: a score per query head that takes part in the softmax and has no value.
    slopes: of each query head, times the position of a key, added to its score (ALiBi).
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    scaling: float
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: bool = False
    slopes: tuple[float, ...] | None = None

    @property
    def ruled(self) -> bool:
        """Whether scores are changed in a way that only attention in plain PyTorch knows."""
        return bool(self.softcap or self.chunk or self.sinks)

    @property
    def stored_key_dim(self) -> int:
        """Values of a key as it lies in the pool: with its position, where that is added to scores."""
        return self.key_dim + (POSITION_VALUES if self.slopes else 0)


class CallRecorder:
    """Notes the calls of a forward pass, by the module that made them."""

    def __init__(self) -> None:
        self.calls: dict[torch.nn.Module, AttentionCall] = {}

    def note(self, module: torch.nn.Module, call: AttentionCall) -> None:
        """A module calls; it may do so once."""
        if module in self.calls:
            raise UnsuitableError(f"layers that attend more than once ({type(module).__name__})")
        self.calls[module] = call


_recorder: ContextVar[CallRecorder | None] = ContextVar("recorder", default=None)


@contextmanager
def recorded() -> Iterator[CallRecorder]:
    """Calls of unbound layers are noted in here."""
    recorder = CallRecorder()
    token = _recorder.set(recorder)
    try:
        yield recorder
    finally:
        _recorder.reset(token)


class LayerAttention(Protocol):
    """What a stage gives its layers to attend with."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Heads of packed tokens, [tokens, heads, head size] each -> [tokens, heads, value's head size]."""
        ...


@dataclass(frozen=True, slots=True)
class _Binding:
    """layer: of the model."""

    attention: LayerAttention
    layer: int


def bind(module: torch.nn.Module, attention: LayerAttention, layer: int) -> None:
    """Let this module's calls be computed by a stage's attention."""
    module.__dict__[_BOUND] = _Binding(attention, layer)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as the library calls it: [1, heads, tokens, head size] -> [1, tokens, heads, head size]."""
    binding: _Binding | None = module.__dict__.get(_BOUND)
    if binding is None:
        return _noted(module, query, key, value, attention_mask, options)
    out = binding.attention.attend(
        binding.layer,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        options.get("s_aux"),
    )
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, attend)


_UNKNOWN = ("position_bias", "alibi", "attention_bias", "head_mask")


def _noted(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    options: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    recorder = _recorder.get()
    if recorder is None:
        raise UnsuitableError(f"attention outside of the layers ({type(module).__name__})")
    for name in _UNKNOWN:
        if options.get(name) is not None:
            raise UnsuitableError(f"attention that adds to its scores ({type(module).__name__}: {name})")
    if attention_mask is not None:
        raise UnsuitableError(f"attention with a mask of its own ({type(module).__name__})")
    if getattr(module, "is_causal", True) is False or options.get("is_causal") is False:
        raise UnsuitableError(f"an encoder, whose attention sees later tokens, too ({type(module).__name__})")
    if query.shape[2] != key.shape[2]:
        raise UnsuitableError(f"attention to other tokens than those of the step ({type(module).__name__})")
    scaling = options.get("scaling")
    sinks = options.get("s_aux")
    call = AttentionCall(
        heads=query.shape[1],
        kv_heads=key.shape[1],
        key_dim=key.shape[3],
        value_dim=value.shape[3],
        scaling=float(query.shape[3] ** -0.5 if scaling is None else scaling),
        window=options.get("sliding_window") or None,
        softcap=options.get("softcap") or None,
        sinks=sinks is not None,
        slopes=options.get(SLOPES),
    )
    recorder.note(module, call)
    shape = (query.shape[0], query.shape[2], query.shape[1], value.shape[3])
    return query.new_zeros(shape), None
