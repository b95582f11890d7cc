"""Time of a step at one stage: the sum of its matrix products, its attention, and what parallelism costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.hardware import Hardware
from tidepipe_common.latency.linear import WEIGHT_BYTES, LinearCost, linear_weights
from tidepipe_common.latency.terms import StepTerms, modelled_terms
from tidepipe_common.latency.work import StepWork
from tidepipe_common.types.model_shape import ModelShape


class StepCost(Protocol):
    """Predicts the time of steps at one stage. Seconds."""

    def linear_s(self, tokens: int) -> float:
        """Matrix products (and collectives) of a step of this many tokens, the LM head left out if known."""
        ...

    def attention_s(self, kv_tokens: int, pairs: float) -> float:
        """Attention: reading `kv_tokens` KV entries, and `pairs` query-key pairs of prompts."""
        ...

    def step_s(self, work: StepWork) -> float:
        """All of it, at a stage with an even share of the model."""
        ...

    def stage_s(self, work: StepWork, layers: int, *, last: bool) -> float:
        """All of it, at a stage with this many layers; the last one has the LM head."""
        ...

    def transfer_s(self, tokens: int) -> float:
        """Activations of this many tokens on their way to the next stage."""
        ...


@dataclass(frozen=True, slots=True)
class Parallelism:
    """stages x tensor devices; a pipeline of one stage may be tensor-parallel and the other way round."""

    stages: int = 1
    tensor: int = 1

    @property
    def devices(self) -> int:
        """All of them."""
        return self.stages * self.tensor


class LatencyModel:
    """One model on one kind of device, split evenly over stages and tensor-parallel devices.

    Matrix products come from `linear` (a profile or a roofline) for the whole model on one device and are
    divided by the devices, and so are the `terms`: a decode step depends on the batch *and* on its contexts.
    Tensor parallelism adds two ring all-reduces per layer over the activations.
    """

    def __init__(
        self,
        shape: ModelShape,
        device: Hardware,
        linear: LinearCost,
        parallel: Parallelism,
        terms: StepTerms | None = None,
    ) -> None:
        """terms: measured; None models them by the device's data sheet."""
        self.shape = shape
        self.device = device
        self.parallel = parallel
        self._linear = linear
        self._terms = terms or modelled_terms(shape, device)
        devices = parallel.devices
        self._s_per_kv_token = self._terms.kv_token_s / devices
        self._s_per_pair = self._terms.pair_s / devices
        self._s_per_row = self._terms.row_s / devices
        self._linear_cache: dict[int, float] = {}
        self._head_cache: dict[int, float] = {0: 0.0}

    def linear_s(self, tokens: int) -> float:
        """Matrix products and all-reduces of one stage, and what every step costs."""
        known = self._linear_cache.get(tokens)
        if known is None:
            known = self._linear.seconds(tokens) / self.parallel.devices + self._allreduce_s(tokens)
            known += self._terms.fixed_s
            self._linear_cache[tokens] = known
        return known

    def attention_s(self, kv_tokens: int, pairs: float) -> float:
        """Attention of one stage."""
        return kv_tokens * self._s_per_kv_token + pairs * self._s_per_pair

    def head_s(self, sampled: int) -> float:
        """LM head and token choice, on the device that has them; zero if they are part of `linear_s`."""
        known = self._head_cache.get(sampled)
        if known is None:
            head = self._terms.head
            known = self._head_cache[sampled] = head.seconds(sampled) if head is not None else 0.0
        return known

    def step_s(self, work: StepWork) -> float:
        """One step at one stage; an even share of the LM head."""
        return (
            self.linear_s(work.tokens)
            + self.attention_s(work.kv_tokens, work.pairs)
            + work.rows * self._s_per_row
            + self.head_s(work.sampled) / self.parallel.devices
        )

    def stage_s(self, work: StepWork, layers: int, *, last: bool) -> float:
        """One step at a stage with this many layers; the last one has the LM head."""
        shape, fixed = self.shape, self._terms.fixed_s
        if self._terms.head is None:
            share = stage_share(shape, layers, last=last)
            return (self.step_s(work) - fixed) * self.parallel.stages * share + fixed
        head = self.head_s(work.sampled)
        even = self.step_s(work) - fixed - head / self.parallel.devices
        return fixed + even * self.parallel.stages * layers / shape.layers + head * last

    def transfer_s(self, tokens: int) -> float:
        """Activations to the next stage; nothing if there is none."""
        if self.parallel.stages == 1:
            return 0.0
        size = tokens * self.shape.hidden * WEIGHT_BYTES
        return self.device.link_latency_s + size / (self.device.link_gb_s * 1e9)

    def _allreduce_s(self, tokens: int) -> float:
        """Two ring all-reduces per layer: each device sends and receives 2 (n - 1) / n of the activations."""
        n = self.parallel.tensor
        if n == 1:
            return 0.0
        size = tokens * self.shape.hidden * WEIGHT_BYTES
        ring = 2 * (n - 1)
        once = ring * self.device.link_latency_s + ring / n * size / (self.device.allreduce_gb_s * 1e9)
        return 2 * self.shape.layers / self.parallel.stages * once

    def kv_blocks(self, block_size: int, memory_share: float = 0.9) -> int:
        """KV blocks that fit beside the weights; ConfigError if not even the weights do.

        memory_share: of the device's memory for weights and KV cache; the rest is for activations.
        """
        weights = (linear_weights(self.shape) + self.shape.head_parameters) * WEIGHT_BYTES
        devices = self.parallel.devices
        budget = self.device.memory_gb * 1e9 * memory_share - weights / devices
        kv_bytes = self.shape.kv_bytes_per_token(self.shape.layers, WEIGHT_BYTES) / devices
        blocks = int(budget // (kv_bytes * block_size))
        if blocks < 1:
            raise ConfigError(
                f"{weights / 1e9:.0f} GB of weights leave no room for KV blocks on {devices} x "
                f"{self.device.name} ({self.device.memory_gb:g} GB each); use more devices"
            )
        return blocks


def stage_share(shape: ModelShape, layers: int, *, last: bool) -> float:
    """Share of a step's time that a stage with this many layers takes; the last one has the LM head.

    Half of the computed tokens need the head: all of decode's, few of the prompts'.
    """
    head = 0.5 * shape.head_parameters / shape.layer_parameters
    return (layers + head * last) / (shape.layers + head)
