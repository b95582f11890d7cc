"""Attention of older families, which does not go through the library's interface.

Put in its place, `attend` of attention_calls.py gets the same heads as from newer ones: instead of a method
`_attn` that some have for it, or of the whole module's `forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from stage_worker.transformers_code.attention_calls import SLOPES, attend

_Options = Callable[[Any], dict[str, Any]]
_Forward = Callable[..., Any]

EMPTY_MASK = "tidepipe_empty_mask"
"""For `config._attn_implementation` of a family whose model cannot do without a mask."""


def _no_mask(*_: Any, **__: Any) -> torch.Tensor:
    return torch.empty(0)


ALL_MASK_ATTENTION_FUNCTIONS.register(EMPTY_MASK, _no_mask)


def _neo(module: Any) -> dict[str, Any]:
    # Its mask has the window in it: where a row's first key is seen no more.
    seen = module.bias[0, 0, -1]
    window = None if bool(seen[0]) else int(seen.sum())
    return {"scaling": 1.0, "sliding_window": window}


def _bloom_slopes(heads: int) -> tuple[float, ...]:
    return tuple(_get_alibi_slopes(heads, torch.device("cpu")).tolist())


def _bloom(module: Any) -> _Forward:
    options = {"scaling": module.inv_norm_factor, SLOPES: _bloom_slopes(module.num_heads)}

    def forward(hidden_states: torch.Tensor, residual: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        query, key, value = module._reshape(module.query_key_value(hidden_states))
        attended, _nothing = attend(module, query, key, value, None, **options)
        return module.dense(attended.flatten(2)) + residual, None

    return forward


def _mpt(module: Any) -> _Forward:
    # Of the positions 1 - 2 and 0: the difference is the slope.
    slopes = -build_mpt_alibi_tensor(module.n_heads, 2)[:, 0, 0]
    options = {"scaling": module.softmax_scale, SLOPES: tuple(slopes.tolist())}

    def forward(hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        mixed = module.Wqkv(hidden_states)
        if module.clip_qkv:
            mixed = mixed.clamp(min=-module.clip_qkv, max=module.clip_qkv)
        heads = mixed.view(*mixed.shape[:2], 3, module.n_heads, module.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        attended, _nothing = attend(module, query, key, value, None, **options)
        return module.out_proj(attended.flatten(2)), None

    return forward


def _falcon(module: Any) -> _Forward:
    from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

    options: dict[str, Any] = {"scaling": module.inv_norm_factor}
    if module.config.alibi:
        # The library rounds them, and scales them as it does the scores.
        rounded = torch.tensor(_bloom_slopes(module.num_heads)).bfloat16().float() * module.inv_norm_factor
        options[SLOPES] = tuple(rounded.tolist())

    def forward(
        hidden_states: torch.Tensor, alibi: Any, position_embeddings: Any = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        query, key, value = module._split_heads(module.query_key_value(hidden_states))
        if module.new_decoder_architecture:
            # It has repeated each of these for the query heads that share it.
            group = module.num_heads // module.num_kv_heads
            key, value = key[:, :, ::group], value[:, :, ::group]
        query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
        if alibi is None:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        attended, _nothing = attend(module, query, key, value, None, **options)
        return module.dense(attended.flatten(2)), None

    return forward


_METHODS: dict[str, _Options] = {
    "GPTJAttention": lambda module: {"scaling": 1 / float(module.scale_attn)},
    "CodeGenAttention": lambda module: {"scaling": 1 / float(module.scale_attn)},
    "GPTNeoSelfAttention": _neo,
}
_FORWARDS: dict[str, Callable[[Any], _Forward]] = {
    "BloomAttention": _bloom,
    "MptAttention": _mpt,
    "FalconAttention": _falcon,
}
MASKED = frozenset({"MptModel"})
"""Classes of models that cannot do without a mask."""


def use_interface(model: nn.Module) -> None:
    """Let such modules of a model call what newer ones call; tables on the meta device must not be yet."""
    for module in model.modules():
        name = type(module).__name__
        if (options := _METHODS.get(name)) is not None:
            module.__dict__["_attn"] = partial(_attended, module, options(module))
        elif (make := _FORWARDS.get(name)) is not None:
            module.__dict__["forward"] = make(module)


def _attended(
    module: nn.Module,
    options: dict[str, Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: Any,
    **__: Any,
) -> tuple[torch.Tensor, None]:
    """[1, heads, tokens, head size] in and out."""
    attended, _nothing = attend(module, query, key, value, None, **options)
    return attended.transpose(1, 2), None
