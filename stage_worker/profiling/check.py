"""Does a profile say what steps take that it was not made of? Mixed ones, as a scheduler makes them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from stage_worker.profiling.measure import Slice
from stage_worker.profiling.rehearsal import Step
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.model import Parallelism
from tidepipe_common.latency.profile import Profile
from tidepipe_common.types.model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class Check:
    """Predicted over measured time: of all steps together, and of the ones that were furthest off."""

    ratio: float
    least: float
    most: float
    steps: int


def mixed_steps(count: int, *, most_tokens: int, long: int, seed: int = 1) -> list[Step]:
    """Decode rows of various contexts, and a piece of a prompt; some steps have one kind only."""
    chance = random.Random(seed)
    steps = []
    for _ in range(count):
        rows = chance.choice((0, 8, 16, 24, 32))
        prompt = chance.choice((0, 64, 128, 220)) if rows else 256
        made = [(chance.randint(30, max(30, long - 130)), 1) for _ in range(rows)]
        if prompt:
            made.append((chance.choice((0, 0, long // 4, long // 2)), min(prompt, most_tokens - rows)))
        steps.append(Step(tuple(made), rows))
    return steps


def compare(profile: Profile, shape: ModelShape, measured: Slice, steps: list[Step]) -> Check:
    """Hold the profile against steps that were measured on a slice that ends with the LM head."""
    # The device's own figures count for bare tables only, which a measured profile is not.
    cost = profile.cost(shape, hardware("cpu"), Parallelism())
    pairs = [
        (1000 * cost.stage_s(step.work, measured.layers, last=True), measured.times[step]) for step in steps
    ]
    ratios = [predicted / taken for predicted, taken in pairs]
    ratio = sum(predicted for predicted, _ in pairs) / sum(taken for _, taken in pairs)
    return Check(ratio, min(ratios), max(ratios), len(steps))
