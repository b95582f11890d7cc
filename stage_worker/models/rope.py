"""Rotary position embedding: frequencies as Hugging Face computes them, tables, and the rotation."""

from __future__ import annotations

import math

import torch

from stage_worker.models.spec import RopeSpec

_MIN_TABLE = 2048


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> torch.Tensor:
    """Angle per position of each pair of dimensions, radians: float32 [head_dim / 2]."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    wavelengths = rope.theta**steps
    frequencies = 1.0 / wavelengths
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    elif rope.kind == "llama3":
        frequencies = _llama3(rope, frequencies)
    elif rope.kind == "yarn":
        frequencies = _yarn(rope, head_dim, wavelengths)
    if rope.frequency_divisors:
        frequencies = frequencies / torch.tensor(rope.frequency_divisors, dtype=torch.float32)
    return frequencies


def _llama3(rope: RopeSpec, frequencies: torch.Tensor) -> torch.Tensor:
    long_wave = rope.original_context / rope.low_freq_factor
    short_wave = rope.original_context / rope.high_freq_factor
    wavelength = 2 * math.pi / frequencies
    scaled = torch.where(wavelength > long_wave, frequencies / rope.factor, frequencies)
    smooth = (rope.original_context / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * scaled / rope.factor + smooth * scaled
    between = ~(wavelength < short_wave) & ~(wavelength > long_wave)
    return torch.where(between, blended, scaled)


def _yarn(rope: RopeSpec, head_dim: int, wavelengths: torch.Tensor) -> torch.Tensor:
    def correction_dim(rotations: float) -> float:
        return (head_dim * math.log(rope.original_context / (rotations * 2 * math.pi))) / (
            2 * math.log(rope.theta)
        )

    low, high = correction_dim(rope.beta_fast), correction_dim(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    keep = 1 - ramp
    return 1.0 / (rope.factor * wavelengths) * (1 - keep) + 1.0 / wavelengths * keep


class RotaryTable:
    """Cosines and sines of all positions so far asked for, float32 [positions, head_dim / 2] each."""

    def __init__(self, rope: RopeSpec, head_dim: int, context_length: int, device: torch.device) -> None:
        self._frequencies = inverse_frequencies(rope, head_dim)
        self._scale = rope.attention_factor
        self._context_length = context_length
        self._device = device
        self.cos = self.sin = torch.empty(0, head_dim // 2)
        self.reserve(1)

    def reserve(self, positions: int) -> None:
        """Make sure that positions 0 .. positions - 1 are in the table."""
        if positions <= len(self.cos):
            return
        # Long-context models would pay for positions that most requests never reach: grow by doubling.
        size = max(positions, min(self._context_length, max(_MIN_TABLE, 2 * len(self.cos))))
        angles = torch.outer(torch.arange(size, dtype=torch.float32), self._frequencies)
        self.cos = (angles.cos() * self._scale).to(self._device)
        self.sin = (angles.sin() * self._scale).to(self._device)


class NoRotaryTable(RotaryTable):
    """For layers that get their heads rotated: no table at all."""

    def __init__(self) -> None:
        self.cos = self.sin = torch.empty(0, 0)

    def reserve(self, positions: int) -> None:
        """Nothing is needed."""


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate [tokens, heads, head_dim] by [tokens, 1, head_dim / 2] in Hugging Face's half-split layout."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
