"""Time of a step's matrix products for the whole model on one device, by tokens: measured or modelled."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Protocol

from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.hardware import Hardware
from tidepipe_common.types.model_shape import ModelShape

WEIGHT_BYTES = 2
"""Weights and activations are 16-bit."""


class LinearCost(Protocol):
    """Seconds of all matrix products of the whole model on one device."""

    def seconds(self, tokens: int) -> float:
        """Time of a step of this many tokens."""
        ...


class MeasuredLinear:
    """A profile: tokens in the batch -> milliseconds for the whole model.

    Between two measured points the slower one counts: kernels work in tiles, so a curve jumps upwards and a
    line between its points would promise what no batch gets. Beyond the last point the mean slope of the
    upper half goes on.
    """

    def __init__(self, points: Sequence[tuple[int, float]], *, interpolate: bool = False) -> None:
        """points: (tokens, ms), at least two; they need not be sorted.

        interpolate: a line between two points instead, for those who choose them where the curve bends.
        """
        ordered = sorted(points)
        self._interpolate = interpolate
        if len(ordered) < 2 or ordered[0][0] < 1 or min(ms for _, ms in ordered) <= 0:
            raise ConfigError("a latency profile needs two or more rows of tokens >= 1 and milliseconds > 0")
        if len({tokens for tokens, _ in ordered}) < len(ordered):
            raise ConfigError("a latency profile must not have the same number of tokens twice")
        self._tokens = [tokens for tokens, _ in ordered]
        # Measured noise must not make a larger batch look faster.
        self._seconds: list[float] = []
        for _, ms in ordered:
            self._seconds.append(max(ms / 1000, self._seconds[-1] if self._seconds else 0.0))
        middle = bisect.bisect_left(self._tokens, self._tokens[-1] / 2)
        middle = min(middle, len(ordered) - 2)
        rise = self._seconds[-1] - self._seconds[middle]
        self._slope = rise / (self._tokens[-1] - self._tokens[middle])

    def seconds(self, tokens: int) -> float:
        """See the class."""
        beyond = tokens - self._tokens[-1]
        if beyond > 0:
            return self._seconds[-1] + beyond * self._slope
        above = bisect.bisect_left(self._tokens, tokens)
        if not self._interpolate or not above or self._tokens[above] == tokens:
            return self._seconds[above]
        low, high = self._tokens[above - 1], self._tokens[above]
        rise = self._seconds[above] - self._seconds[above - 1]
        return self._seconds[above - 1] + rise * (tokens - low) / (high - low)


SMALL_TILES = ((16, 53), (64, 107), (128, 128))
"""(rows up to, rows that they cost as much as): small tiles waste the device. From the L20 profile."""
TILE = 128


def computed_rows(tokens: int) -> int:
    """Rows that a device computes for `tokens`: whole tiles."""
    for limit, rows in SMALL_TILES:
        if tokens <= limit:
            return rows
    return -(-tokens // TILE) * TILE


class RooflineLinear:
    """max(stream the weights, compute), with a rounded corner and whole tiles.

    t = (stream^2 + compute^2)^(1/2), as streaming weights and computing overlap only in part. Against the
    published profile of Llama2-13B on one L20 (2,048 points) the mean error is 1.7 %. Of experts those are
    streamed that tokens go to: a few tokens read few of them, and each more makes a step longer, until all
    are read.
    """

    def __init__(self, shape: ModelShape, device: Hardware) -> None:
        self._shape = shape
        self._s_per_weight = WEIGHT_BYTES / device.bytes_per_s
        self._per_row = 2 * (shape.layers * shape.layer_parameters + shape.head_parameters) / device.flops

    def seconds(self, tokens: int) -> float:
        """See the class."""
        shape = self._shape
        read = shape.layers * shape.read_layer_parameters(tokens) + shape.head_parameters
        return math.hypot(read * self._s_per_weight, self._per_row * computed_rows(tokens))


def linear_weights(shape: ModelShape) -> int:
    """Weights of all matrix products, the LM head and all experts included."""
    return shape.layers * shape.stored_layer_parameters + shape.head_parameters
