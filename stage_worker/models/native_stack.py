"""All layers of a stage by one call of the C kernels."""

from __future__ import annotations

import ctypes
import itertools
from ctypes import byref

import numpy as np
import torch

from stage_worker.attention.backend import AttentionContext
from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.native_paged import NativePagedAttention
from stage_worker.models.adapters import NO_ADAPTERS, StageAdapters
from stage_worker.models.joined_linear import parts_of
from stage_worker.models.linear import Linear
from stage_worker.models.native.library import NativeKernels
from stage_worker.models.native.structures import ADAPTED, MOST_PARTS, Layer, LowRank, Product, Stage
from stage_worker.models.native_int8 import ByteRows, Int8Linear
from stage_worker.models.native_ops import NativeLinear
from stage_worker.models.native_packed import NativePackedLinear
from stage_worker.models.spec import ModelSpec
from stage_worker.models.weights import LayerWeights, StageWeights
from stage_worker.models.workspace import Workspace


class NativeStack:
    """The layers of a stage, whose products and attention are all the kernels' own.

    Calling each kernel from Python costs as much as a small decode step itself, and makes this thread compete
    for the interpreter with those that serve RPCs.
    """

    def __init__(
        self,
        kernels: NativeKernels,
        weights: StageWeights,
        attention: NativePagedAttention,
        context: AttentionContext,
        adapters: StageAdapters = NO_ADAPTERS,
    ) -> None:
        """adapters: in float32."""
        spec, pool = context.spec, context.pool
        self._kernels = kernels
        self._weights, self._progress = weights, pool.progress  # the kernels see only addresses
        self._attention = attention
        self._workspace = Workspace(spec, kernels.dtype)
        self._bytes = ByteRows() if isinstance(weights.layers[0].qkv, Int8Linear) else None
        self._widest = max(spec.hidden, spec.query_size, spec.intermediate)
        self._products: list[Product] = []
        self._layers = (Layer * len(weights.layers))(
            *(
                _layer(
                    layer,
                    spec,
                    context.first_layer + index,
                    pool.keys(index),
                    pool.values(index),
                    self._products,
                )
                for index, layer in enumerate(weights.layers)
            )
        )
        self._stage = Stage(
            layers=ctypes.addressof(self._layers),
            layer_count=len(weights.layers),
            hidden=spec.hidden,
            threads=kernels.threads,
            stored=ctypes.addressof(pool.progress.layers),
            eps=spec.rms_eps,
            adapters=len(adapters.numbers),
        )
        self._adapters = adapters  # likewise
        self._low_rank = _low_rank(adapters) if adapters.numbers else None

    @staticmethod
    def fits(weights: StageWeights) -> bool:
        """True if the kernels compute all products, in one way."""
        parts = (part for layer in weights.layers for linear in layer.products for part in parts_of(linear))
        kinds = {type(part) for part in parts}
        return kinds == {Int8Linear} or kinds <= {NativeLinear, NativePackedLinear}

    def forward(self, batch: RaggedBatch, residual: torch.Tensor) -> torch.Tensor:
        """Run the layers on the residual stream [tokens, hidden], which is overwritten."""
        step = self._attention.begin(batch)
        buffers = self._workspace.begin(batch.tokens)
        stage, threads = self._stage, self._kernels.threads
        missing = threads + 1 - len(step.bounds)
        bounds = (ctypes.c_int64 * (threads + 1))(*step.bounds, *step.bounds[-1:] * missing)
        stage.attention = step.arguments
        stage.bounds = ctypes.addressof(bounds)
        stage.residual = residual.data_ptr()
        for name, buffer in buffers.items():
            setattr(stage, name, buffer.data_ptr())
        if self._bytes is not None:
            stage.bytes = self._bytes.reserve(batch.tokens, self._widest)
        adapter_of = None if batch.adapters is None else np.repeat(batch.adapters, batch.counts)
        adapted = adapter_of is not None and self._low_rank is not None
        stage.low_rank = ctypes.addressof(self._low_rank) if adapted and self._low_rank is not None else None
        stage.adapter_of = adapter_of.ctypes.data if adapted and adapter_of is not None else None
        stage.tokens = batch.tokens
        stage.arrived = 0
        self._kernels.run_parts(self._kernels.layers, byref(stage), range(threads + 1))
        return residual


def _low_rank(adapters: StageAdapters) -> ctypes.Array[LowRank]:
    """[layers][products][parts][adapters]."""
    count = len(adapters.numbers)
    table = (LowRank * (len(adapters.layers) * ADAPTED * MOST_PARTS * count))()
    products = (product for layer in adapters.layers for product in layer.products)
    for row, product in enumerate(products):
        for number, low in enumerate(product):
            for index, part in enumerate(low.parts if low is not None else ()):
                assert low is not None
                rank, outputs = part.weight.shape
                table[(row * MOST_PARTS + index) * count + number] = LowRank(
                    down=low.down[part.inner :].data_ptr(),
                    up=part.weight.data_ptr(),
                    rank=rank,
                    inputs=low.down.shape[1],
                    outputs=outputs,
                    begin=part.begin,
                )
    return table


def _layer(
    weights: LayerWeights,
    spec: ModelSpec,
    index: int,
    keys: torch.Tensor,
    values: torch.Tensor,
    kept: list[Product],
) -> Layer:
    """kept: where products go to which the layer's own point."""
    return Layer(
        input_norm=weights.input_norm.data_ptr(),
        mlp_norm=weights.mlp_norm.data_ptr(),
        q_norm=weights.q_norm.data_ptr() if weights.q_norm is not None else None,
        k_norm=weights.k_norm.data_ptr() if weights.k_norm is not None else None,
        qkv=_product(weights.qkv, kept),
        output=_product(weights.output, kept),
        gate_up=_product(weights.gate_up, kept),
        down=_product(weights.down, kept),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        window=spec.sliding_windows[index] or 0,
        rope=spec.rope_layers[index],
    )


def _product(linear: Linear, kept: list[Product]) -> Product:
    """The product of a linear; of one of several parts a row of them, each beside the one before it."""
    products = []
    for part in parts_of(linear):
        assert isinstance(part, NativeLinear | NativePackedLinear | Int8Linear)
        products.append(Product.from_buffer_copy(part.product))
    for product in products:
        product.stride = sum(one.outputs for one in products)
    for product, beside in itertools.pairwise(products):
        product.beside = ctypes.addressof(beside)
    kept += products
    return products[0]
