"""Chooses what computes a stage: C kernels on CPU, attention libraries on CUDA, PyTorch for the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import structlog
import torch

from stage_worker.attention.backend import AttentionBackend, AttentionContext
from stage_worker.attention.cuda_attention import CudaAttention
from stage_worker.attention.native_paged import NativePagedAttention, paged_attention
from stage_worker.attention.torch_paged import TorchPagedAttention
from stage_worker.kv_pool import KvGeometry
from stage_worker.loading.stage_weights import plain_linear
from stage_worker.models.adapters import NO_ADAPTERS, StageAdapters
from stage_worker.models.layer_ops import LayerOps, TorchLayerOps
from stage_worker.models.linear import Linear, LinearFactory, PlainLinear
from stage_worker.models.native.library import NativeKernels, kernels_or_reason
from stage_worker.models.native_int8 import Int8Linear
from stage_worker.models.native_ops import NativeLayerOps, NativeLinear
from stage_worker.models.native_packed import NativePackedLinear
from stage_worker.models.native_stack import NativeStack
from stage_worker.models.packed import PackedWeight, Weight
from stage_worker.models.packed_linear import PackedLinear
from stage_worker.models.spec import ModelSpec
from stage_worker.models.weights import StageWeights
from tidepipe_common.errors import ConfigError

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Compute:
    """The parts of a decoder that depend on the hardware.

    head: makes the LM head. reuse_buffers: True where results should go to a workspace.
    share_ends: True where a tied LM head can be the embedding too. kernels: the C kernels, if any.
    int8_cache: True where keys and values are kept in int8, if attention can read them.
    slow_because: why it is several times slower than it could be; empty: it is not.
    """

    attention: Callable[[AttentionContext], AttentionBackend]
    ops: LayerOps
    linear: LinearFactory
    head: LinearFactory
    reuse_buffers: bool = True
    share_ends: bool = True
    kernels: NativeKernels | None = None
    int8_cache: bool = False
    slow_because: str = ""

    def kv_geometry(self, model: ModelSpec, layers: int, block_size: int, dtype: torch.dtype) -> KvGeometry:
        """Of the KV pool of so many layers."""
        geometry = KvGeometry(layers, model.kv_heads, model.head_dim, block_size, dtype)
        if self.int8_cache and NativePagedAttention.fits(model, block_size):
            return NativePagedAttention.int8_geometry(geometry)
        return geometry

    def slow_for(self, model: ModelSpec, block_size: int, unpacked: bool, slow_layers: int = 0) -> str:
        """Why a stage is several times slower than it could be with such KV blocks; empty: it is not.

        unpacked: its weights are quantized, and PyTorch unpacks some in every step. slow_layers: that attend
        in plain PyTorch.
        """
        if self.kernels is not None and not NativePagedAttention.fits(model, block_size):
            return (
                "no native attention: it wants heads and KV blocks of multiples of 16, "
                f"not of {model.head_dim} and {block_size}"
            )
        if not self.slow_because and unpacked:
            return (
                "quantized weights are unpacked by PyTorch in every step: the kernels are for CPUs, and want "
                "inputs of multiples of 32 and groups of 16"
            )
        if not self.slow_because and slow_layers:
            return (
                f"attention of {slow_layers} layers in plain PyTorch: no kernel here knows the soft caps, "
                "sinks or chunks of their scores"
            )
        return self.slow_because

    def stack(
        self,
        weights: StageWeights,
        attention: AttentionBackend,
        context: AttentionContext,
        adapters: StageAdapters = NO_ADAPTERS,
    ) -> NativeStack | None:
        """What computes all layers at once, if the kernels can."""
        if self.kernels is None or not isinstance(attention, NativePagedAttention):
            return None
        if not NativeStack.fits(weights):
            return None
        return NativeStack(self.kernels, weights, attention, context, adapters)


QUANTIZATIONS = ("int8",)


def make_compute(
    device: torch.device, dtype: torch.dtype, threads: int, quantization: str | None = None
) -> Compute:
    """The fastest parts for a device and data type; ConfigError if it cannot be quantized so."""
    found = kernels_or_reason(dtype, threads) if device.type == "cpu" else ""
    kernels = None if isinstance(found, str) else found
    if quantization is not None:
        return _quantized(kernels, quantization, device)
    plain = partial(plain_linear, dtype=dtype)
    if device.type == "cuda":
        return Compute(CudaAttention(), TorchLayerOps(), plain, plain, reuse_buffers=False)
    if kernels is None:
        slow = Compute(TorchPagedAttention, TorchLayerOps(), plain, plain, reuse_buffers=False)
        return replace(slow, slow_because=str(found))
    attention = partial(paged_attention, kernels)
    ops = NativeLayerOps(kernels)
    linear, head = (partial(_linear, kernels, float_out=wide) for wide in (False, True))
    return Compute(attention, ops, linear, head, kernels=kernels)


def _quantized(kernels: NativeKernels | None, quantization: str, device: torch.device) -> Compute:
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization must be {', '.join(QUANTIZATIONS)}, got {quantization!r}")
    if device.type != "cpu":
        raise ConfigError(f"quantization {quantization} is for CPUs, not for {device}; leave it out")
    if kernels is None:
        raise ConfigError(
            "quantization int8 needs a CPU, float32 or bfloat16, and TidePipe's kernels, which are missing; "
            "install a C compiler, or leave quantization out"
        )
    return Compute(
        attention=partial(paged_attention, kernels),
        ops=NativeLayerOps(kernels),
        linear=partial(_int8_linear, kernels, float_out=False),
        head=partial(_int8_linear, kernels, float_out=True),
        # Over several stages the embedding is not quantized, and one stage must give the same answers.
        share_ends=False,
        kernels=kernels,
        int8_cache=True,
    )


def _int8_linear(
    kernels: NativeKernels, weight: Weight, bias: torch.Tensor | None, *, float_out: bool
) -> Linear:
    if isinstance(weight, PackedWeight):
        weight = weight.dequantized(kernels.dtype)
    if Int8Linear.fits(weight):
        return Int8Linear(kernels, weight, bias, float_out=float_out)
    return _linear(kernels, weight, bias, float_out=float_out)


def _linear(kernels: NativeKernels, weight: Weight, bias: torch.Tensor | None, *, float_out: bool) -> Linear:
    if isinstance(weight, PackedWeight):
        if NativePackedLinear.fits(weight):
            return NativePackedLinear(kernels, weight, bias, float_out=float_out)
        return PackedLinear(weight, bias, kernels.dtype)
    if NativeLinear.fits(kernels, weight):
        return NativeLinear(kernels, weight, bias, float_out=float_out)
    return PlainLinear(weight, bias)
