"""Which layers go to which stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tidepipe_common.errors import ConfigError
from tidepipe_common.types.model_shape import ModelShape
from tidepipe_common.types.token_mix import TokenMix


def stage_layers(
    shape: ModelShape, stages: int, mix: TokenMix, counts: Sequence[int] = ()
) -> tuple[tuple[int, int], ...]:
    """Layers (begin, end) of each stage: the user's `counts` of them, or without those the best for `mix`.

    ConfigError if there are more stages than layers or the counts do not fit the model.
    """
    if counts:
        return given_split(counts, shape.layers, stages)
    return split_layers(shape.layers, stages, head_cost_in_layers(shape, mix))


def head_cost_in_layers(shape: ModelShape, mix: TokenMix) -> float:
    """Cost of the LM head in units of one layer, averaged over the tokens of a mix."""
    layer = shape.layer_parameters + shape.attention_products(mix.context)
    return mix.sampled_share * shape.head_parameters / layer


def split_layers(layers: int, stages: int, head_cost: float) -> tuple[tuple[int, int], ...]:
    """Split `layers` equal layers over `stages` so that the slowest stage is as fast as possible.

    head_cost: cost of the LM head on the last stage, in layers. Returns (begin, end) per stage, each with
    at least one layer; among equally good splits the one with the least spread. ConfigError if there are
    more stages than layers.
    """
    if not 1 <= stages <= layers:
        raise ConfigError(f"{layers} layers cannot be split over {stages} stages; use 1 to {layers} stages")

    @cache
    def best(left: int, stages_left: int) -> tuple[float, float, tuple[int, ...]]:
        if stages_left == 1:
            cost = left + head_cost
            return cost, cost * cost, (left,)
        options = []
        for count in range(1, left - stages_left + 2):
            worst, squares, counts = best(left - count, stages_left - 1)
            options.append((max(worst, float(count)), squares + count * count, (count, *counts)))
        return min(options)

    return _ranges(best(layers, stages)[2])


def given_split(counts: Sequence[int], layers: int, stages: int) -> tuple[tuple[int, int], ...]:
    """The user's own split: layers per stage. ConfigError if it does not fit the model."""
    if len(counts) != stages or sum(counts) != layers or min(counts, default=0) < 1:
        raise ConfigError(
            f"the layer split {','.join(map(str, counts))} does not fit: {stages} stages need "
            f"{stages} numbers of at least 1 that add up to the model's {layers} layers"
        )
    return _ranges(counts)


def _ranges(counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return tuple((end - count, end) for end, count in zip(ends, counts, strict=True))
