"""A profile: what a model was measured to take on one device, and the cost model that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidepipe_common.latency.hardware import Hardware
from tidepipe_common.latency.linear import LinearCost, MeasuredLinear, RooflineLinear
from tidepipe_common.latency.model import LatencyModel, Parallelism
from tidepipe_common.latency.terms import StepTerms
from tidepipe_common.types.model_shape import ModelShape

Points = tuple[tuple[int, float], ...]
"""(tokens or rows, milliseconds), rising."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured times of the whole model on one device. Milliseconds, except where the name says otherwise.

    table: the two columns of a profile in CSV: a step of n tokens. Alone, it is all that is known.
    terms: what `tidepipe profile` measures besides; None for a bare table.
    """

    table: Points
    terms: ProfileTerms | None = None

    def cost(self, shape: ModelShape, device: Hardware, parallel: Parallelism) -> LatencyModel:
        """The cost model over so many devices. device: its links, and what a bare table leaves open."""
        if self.terms is None:
            return LatencyModel(shape, device, MeasuredLinear(self.table), parallel)
        return LatencyModel(
            shape,
            device,
            MeasuredLinear(self.terms.layers, interpolate=True),
            parallel,
            self.terms.step_terms(),
        )


@dataclass(frozen=True, slots=True)
class ProfileTerms:
    """The parts of a step's time, for the whole model.

    layers: all layers by tokens, without attention. head: final norm, LM head and choice by sampled rows.
    fixed: per step and stage. row: per sequence. kv_token_us, pair_us: attention per KV entry read, and per
    query-key pair of a prompt, microseconds.
    """

    layers: Points
    head: Points
    fixed: float
    row: float
    kv_token_us: float
    pair_us: float

    def step_terms(self) -> StepTerms:
        """In seconds."""
        return StepTerms(
            kv_token_s=self.kv_token_us / 1e6,
            pair_s=self.pair_us / 1e6,
            row_s=self.row / 1e3,
            fixed_s=self.fixed / 1e3,
            head=MeasuredLinear(self.head, interpolate=True),
        )


def cost_model(
    shape: ModelShape, device: Hardware, profile: Profile | None, parallel: Parallelism
) -> LatencyModel:
    """By the profile if there is one, else by the device's data sheet."""
    if profile is not None:
        return profile.cost(shape, device, parallel)
    linear: LinearCost = RooflineLinear(shape, device)
    return LatencyModel(shape, device, linear, parallel)


def rising(points: Sequence[tuple[int, float]]) -> Points:
    """In order, and without the noise that makes a larger step look faster."""
    kept: list[tuple[int, float]] = []
    for size, ms in sorted(points):
        kept.append((size, max(ms, kept[-1][1]) if kept else ms))
    return tuple(kept)
