"""Matrix products of the library's layers, computed by what computes those of TidePipe's own layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from stage_worker.models.joined_linear import parts_of
from stage_worker.models.linear import Linear, LinearFactory
from stage_worker.models.packed_linear import PackedLinear
from stage_worker.transformers_code.experts import products_in, put_products, takes_products


@dataclass(frozen=True, slots=True)
class Products:
    """What makes them: linear for those of the layers, head for the LM head.

    plain: also of weights that are stored as numbers; else PyTorch multiplies with those as fast.
    rounded: they round what they are made of, so that all should be made so, experts included.
    """

    linear: LinearFactory
    head: LinearFactory
    plain: bool = True
    rounded: bool = False


class Product(nn.Module):
    """In the place of a linear module. weight: none, but of its type and place, which some code looks at."""

    def __init__(self, linear: Linear, inputs: int, outputs: int, like: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.weight = torch.empty(0, dtype=like.dtype, device=like.device)
        self.in_features, self.out_features = inputs, outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., inputs] -> [.., outputs]."""
        made = self.linear(x.reshape(-1, self.in_features).contiguous())
        return made.view(*x.shape[:-1], self.out_features)


def replace_products(model: nn.Module, products: Products, head: nn.Module | None) -> None:
    """Let `products` compute all plain linear modules whose weights are there, one after the other.

    Not those whose weight is another module's, too, such as a tied LM head beside its embedding.
    """
    if not products.plain:
        return
    users = Counter(
        parameter.data_ptr()
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None and not parameter.is_meta
    )
    counts = _expert_counts(model) if products.rounded else set()
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if type(child) is not nn.Linear or child.weight.is_meta or users[child.weight.data_ptr()] > 1:
                continue
            if child.out_features in counts:
                continue  # It chooses experts: rounded, it would choose others.
            make = products.head if child is head else products.linear
            weight, bias = child.weight.data, None if child.bias is None else child.bias.data
            child.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
            module._modules[name] = Product(
                make(weight, bias), child.in_features, child.out_features, child.weight
            )
            del weight, bias
        if products.rounded:
            _replace_experts(module, products.linear)


def _replace_experts(module: nn.Module, make: LinearFactory) -> None:
    for name, weights in list(module._parameters.items()):
        if weights is None or weights.is_meta or weights.dim() != 3 or not takes_products(module, name):
            continue
        transposed = bool(getattr(module, "is_transposed", False))
        put_products(
            module,
            name,
            [make(one.t().contiguous() if transposed else one, None) for one in weights.data],
        )


def _expert_counts(model: nn.Module) -> set[int]:
    counts = {getattr(module, "num_experts", None) for module in model.modules()}
    return {count for count in counts if isinstance(count, int)}


def _held(model: nn.Module) -> Iterator[Linear]:
    """All products in a model that stand for modules or weights of the library's."""
    for module in model.modules():
        if isinstance(module, Product):
            yield module.linear
        yield from products_in(module)


def by_pytorch(model: nn.Module) -> bool:
    """True if PyTorch unpacks weights of some product in every step."""
    return any(isinstance(part, PackedLinear) for linear in _held(model) for part in parts_of(linear))


def held_bytes(model: nn.Module) -> int:
    """Memory of a model's weights and tables, each counted once."""
    sizes = {id(linear): linear.nbytes for linear in _held(model)}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and not tensor.is_meta:
                sizes[tensor.data_ptr()] = tensor.nbytes
    return sum(sizes.values())
