"""Attention of older families, which the library computes in a method of the module's own, `_attn`.

Put in its place, `attend` of attention_calls.py gets the same heads as from newer ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from stage_worker.transformers_code.attention_calls import attend

_Options = Callable[[Any], dict[str, Any]]


def _neo(module: Any) -> dict[str, Any]:
    # Its mask has the window in it: where a row's first key is seen no more.
    seen = module.bias[0, 0, -1]
    window = None if bool(seen[0]) else int(seen.sum())
    return {"scaling": 1.0, "sliding_window": window}


_FAMILIES: dict[str, _Options] = {
    "GPTJAttention": lambda module: {"scaling": 1 / float(module.scale_attn)},
    "CodeGenAttention": lambda module: {"scaling": 1 / float(module.scale_attn)},
    "GPTNeoSelfAttention": _neo,
}


def use_interface(model: nn.Module) -> None:
    """Let such modules of a model call what newer ones call; tables on the meta device must not be yet."""
    for module in model.modules():
        options = _FAMILIES.get(type(module).__name__)
        if options is not None:
            module.__dict__["_attn"] = partial(_attended, module, options(module))


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
