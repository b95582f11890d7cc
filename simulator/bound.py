"""An upper bound on the throughput of any schedule of a workload on one pipeline.

Derivation. A stage computes all steps, one after the other, so the makespan is at least the sum of its steps'
times. A step of x tokens takes at least f(x) for its matrix products, f being the lower convex hull of their
measured or modelled time, plus its attention. Attention's sum does not depend on the schedule: every decode
row reads its context once, and every token of a prompt attends to those before it, in whichever chunks. (What
chunks behind the first read of the KV cache again is left out, as one chunk would not.)

What does depend on it is the number of steps J. To keep S stages busy, S steps must be under way, of
disjoint sequences, and each holds the KV cache of its sequences meanwhile: together at most M tokens. So a
step's decode rows stand for at most M / S tokens of context on average; all decode rows together stand for
W = sum over requests of sum over output tokens of the context then; hence J >= W S / M. By convexity the
products take at least J f(X / J) for X tokens in all, at the best J that memory allows.

Besides, the tokens of one sequence follow each other: the longest output takes a pass through all stages for
each of its tokens.

Where KV blocks are shared, a prompt's tokens that an earlier request had, in the same place behind the same
beginning, need not be computed; and as memory holds them once, only the others count in M. Each block is new
to one request alone, so however requests overlap, they hold at least what is new in each.

Left out, so that the bound is never reached: ramp and drain of the pipeline, transfers, dispatch, the tail
when few sequences are left, block rounding, unknown lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from simulator.job import ROOT
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.work import chunk_pairs
from tidepipe_common.prefix import block_keys
from tidepipe_common.settings.defaults import BLOCK_SIZE
from workloads.content import ANSWER, token_ids
from workloads.mixes import SimRequest

LARGEST_STEP = 4096
"""Tokens; beyond it the measured curves are straight."""
_SEARCH = 400


@dataclass(frozen=True, slots=True)
class Bound:
    """tokens_per_step, steps, token_s: of the schedule that the bound stands for. The last: products."""

    output_tokens_per_s: float
    total_tokens_per_s: float
    makespan_s: float
    steps: float
    tokens_per_step: float
    token_s: float


class ConvexHull:
    """Lower convex hull of a curve over 1 .. LARGEST_STEP, extended by its last slope."""

    def __init__(self, curve: Sequence[float]) -> None:
        """curve: values at 1, 2, 3, .."""
        corners: list[tuple[float, float]] = []
        for x, y in enumerate(curve, start=1):
            while len(corners) > 1 and _above(corners[-2], corners[-1], (x, y)):
                corners.pop()
            corners.append((x, y))
        self._corners = corners

    def at(self, x: float) -> float:
        """The hull's value; below 1 that of 1."""
        corners = self._corners
        if x <= corners[0][0]:
            return corners[0][1]
        for (x0, y0), (x1, y1) in pairwise(corners):
            if x <= x1:
                return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        (x0, y0), (x1, y1) = corners[-2], corners[-1]
        return y1 + (y1 - y0) / (x1 - x0) * (x - x1)


def _above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Is b on or above the line from a to c?"""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def found_by_ideal(requests: Sequence[SimRequest]) -> list[int]:
    """Tokens of each prompt in blocks that an earlier request had: what unlimited memory would find."""
    seen: set[bytes] = set()
    found = []
    for one in requests:
        if not one.content:
            found.append(0)
            continue
        answer = (ANSWER,) * (one.output_tokens - 1)
        keys = block_keys(ROOT, token_ids(one.content) + answer, BLOCK_SIZE)
        of_prompt = keys[: (one.prompt_tokens - 1) // BLOCK_SIZE]
        here = next((place for place, key in enumerate(of_prompt) if key not in seen), len(of_prompt))
        found.append(here * BLOCK_SIZE)
        seen.update(keys)
    return found


def mixed_batch_bound(
    requests: Sequence[SimRequest], cost: StepCost, stages: int, kv_tokens: int, found: Sequence[int] = ()
) -> Bound:
    """See the module. kv_tokens: tokens that fit into the KV cache of a stage.

    found: of each prompt, tokens that need not be computed; none if it is empty.
    """
    found = found or [0] * len(requests)
    prompts = sum(one.prompt_tokens for one in requests)
    outputs = sum(one.output_tokens for one in requests)
    # The last token of an output is sampled but never computed.
    tokens = prompts + outputs - len(requests) - sum(found)
    context = held = pairs = 0.0
    for one, here in zip(requests, found, strict=True):
        rows = one.output_tokens - 1
        context += rows * (one.prompt_tokens + (rows + 1) / 2)
        held += rows * (one.prompt_tokens - here + (rows + 1) / 2)
        pairs += chunk_pairs(here, one.prompt_tokens - here)
    attention = cost.attention_s(round(context), pairs)
    hull = ConvexHull([cost.linear_s(x) for x in range(1, LARGEST_STEP + 1)])
    least = max(held * stages / kv_tokens, tokens / LARGEST_STEP, 1.0)
    most = max(float(tokens), least)
    best_s, best_steps = float("inf"), least
    for i in range(_SEARCH + 1):
        steps = least * (most / least) ** (i / _SEARCH)
        seconds = steps * hull.at(tokens / steps)
        if seconds < best_s:
            best_s, best_steps = seconds, steps
    longest = max(one.output_tokens for one in requests)
    makespan = max(best_s + attention, longest * stages * cost.linear_s(1))
    return Bound(
        outputs / makespan,
        (prompts + outputs) / makespan,
        makespan,
        best_steps,
        tokens / best_steps,
        best_s / tokens,
    )
