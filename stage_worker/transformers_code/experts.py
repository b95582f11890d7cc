"""Experts of the library's layers by products of TidePipe's own, one for each expert.

The library has the experts of a layer as one tensor. Where weights are kept as codes, or are to be, each
expert is a product instead, and only those that a step's tokens go to are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from stage_worker.models.linear import Linear

EXPERTS = "tidepipe"
"""Of what computes experts, for `config._experts_implementation`."""
_HELD = "tidepipe_products"
_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


def takes_products(module: nn.Module, weight: str) -> bool:
    """Whether a module computes experts through the library's interface, and this is their weight."""
    return weight in _WEIGHTS and hasattr(module, "is_transposed") and hasattr(module, "has_gate")


def put_products(module: nn.Module, weight: str, products: Sequence[Linear]) -> None:
    """Let a product of its own compute each expert, in the place of a weight of all."""
    del module._parameters[weight]
    module.__dict__.setdefault(_HELD, {})[weight] = tuple(products)


def products_in(module: nn.Module) -> tuple[Linear, ...]:
    """The products that a module holds in the place of weights."""
    held: Mapping[str, Sequence[Linear]] = module.__dict__.get(_HELD, {})
    return tuple(product for products in held.values() for product in products)


def compute_experts(
    module: Any, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """What the library's interface asks of experts. chosen, shares: [tokens, experts of each]."""
    held: Mapping[str, Sequence[Linear]] | None = module.__dict__.get(_HELD)
    if held is None:
        result: torch.Tensor = grouped_mm_experts_forward(module, hidden, chosen, shares)
        return result
    each = chosen.shape[-1]
    numbers, order = torch.sort(chosen.reshape(-1), stable=True)
    counts: list[int] = torch.bincount(numbers, minlength=module.num_experts).tolist()

    def product(weight: str, rows: torch.Tensor) -> torch.Tensor:
        made = _grouped(module, held.get(weight), weight, rows.contiguous(), counts)
        return made.add_(getattr(module, f"{weight}_bias")[numbers]) if module.has_bias else made

    made = product("gate_up_proj" if module.has_gate else "up_proj", hidden[order // each])
    made = module._apply_gate(made) if module.has_gate else module.act_fn(made)
    made = product("down_proj", made)
    if module.has_post_expert_norm:
        made = module.post_expert_norm(made)
    made = made * shares.reshape(-1)[order].unsqueeze(-1)
    back = torch.empty_like(made)
    back[order] = made
    return back.view(len(hidden), each, -1).sum(1).to(hidden.dtype)


ALL_EXPERTS_FUNCTIONS.register(EXPERTS, compute_experts)


def _grouped(
    module: Any, products: Sequence[Linear] | None, weight: str, rows: torch.Tensor, counts: Sequence[int]
) -> torch.Tensor:
    """Each expert's rows, which stand together, by its product."""
    whole: torch.Tensor | None = None if products is not None else getattr(module, weight)
    made, begin = [], 0
    for number, count in enumerate(counts):
        if not count:
            continue
        part = rows[begin : begin + count]
        begin += count
        if products is not None:
            made.append(products[number](part))
        else:
            assert whole is not None
            one = whole[number]
            made.append(F.linear(part, one.t() if module.is_transposed else one))
    return torch.cat(made)
