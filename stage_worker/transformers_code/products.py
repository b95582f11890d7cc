"""Matrix products of the library's layers, computed by what computes those of TidePipe's own layers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from stage_worker.models.linear import Linear, LinearFactory


@dataclass(frozen=True, slots=True)
class Products:
    """What makes them: linear for those of the layers, head for the LM head."""

    linear: LinearFactory
    head: LinearFactory


class Product(nn.Module):
    """In the place of an `nn.Linear`."""

    def __init__(self, linear: Linear, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = linear
        self.in_features, self.out_features = inputs, outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., inputs] -> [.., outputs]."""
        made = self.linear(x.reshape(-1, self.in_features).contiguous())
        return made.view(*x.shape[:-1], self.out_features)


def replace_products(model: nn.Module, products: Products, head: nn.Module | None) -> None:
    """Let `products` compute all plain linear modules whose weights are there, one after the other.

    Not those whose weight is another module's, too, such as a tied LM head beside its embedding.
    """
    users = Counter(
        parameter.data_ptr()
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None and not parameter.is_meta
    )
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if type(child) is not nn.Linear or child.weight.is_meta or users[child.weight.data_ptr()] > 1:
                continue
            make = products.head if child is head else products.linear
            weight, bias = child.weight.data, None if child.bias is None else child.bias.data
            child.weight = nn.Parameter(torch.empty(0), requires_grad=False)
            module._modules[name] = Product(make(weight, bias), child.in_features, child.out_features)
            del weight, bias


def held_bytes(model: nn.Module) -> int:
    """Memory of a model's weights and tables, each counted once."""
    sizes: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, Product):
            sizes[id(module.linear)] = module.linear.nbytes
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and not tensor.is_meta:
                sizes[tensor.data_ptr()] = tensor.nbytes
    return sum(sizes.values())
