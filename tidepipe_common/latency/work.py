"""The work of a step, in the numbers that its time depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tidepipe_common.types.plan import StepPlan


class StepWork(NamedTuple):
    """Sizes of one step.

    tokens: rows of every matrix product.
    kv_tokens: KV entries that attention reads, summed over the sequences of the step.
    pairs: query-key pairs of the prompts' tokens (causal); decode rows are bound by `kv_tokens` instead.
    rows: sequences that have a part in it.
    sampled: rows whose next token is sampled, each of which the LM head computes logits for.
    """

    tokens: int
    kv_tokens: int
    pairs: float = 0.0
    rows: int = 0
    sampled: int = 0


def chunk_pairs(first_position: int, count: int) -> float:
    """Query-key pairs of `count` prompt tokens behind `first_position` earlier ones."""
    return count * (first_position + (count + 1) / 2)


class PrefillWork(NamedTuple):
    """Prompt tokens to compute, and the query-key pairs of their attention; sums of prompts add up."""

    tokens: int = 0
    pairs: float = 0.0

    def plus(self, other: PrefillWork) -> PrefillWork:
        """Both together."""
        return PrefillWork(self.tokens + other.tokens, self.pairs + other.pairs)


def prompt_work(tokens: int) -> PrefillWork:
    """The work of one prompt."""
    return PrefillWork(tokens, chunk_pairs(0, tokens))


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What steps cost at one stage of an instance, as it says of itself.

    step_tokens: prompt tokens of a step at most. linear_s: times of steps of linear_tokens tokens.
    pair_s, kv_token_s: attention of prompts, per pair; and of what decodes, per KV entry that is read.
    """

    stages: int
    step_tokens: int
    linear_tokens: tuple[int, ...]
    linear_s: tuple[float, ...]
    pair_s: float
    transfer_token_s: float
    kv_token_s: float = 0.0


def work_of(plan: StepPlan) -> StepWork:
    """The work that a plan asks of every stage."""
    tokens = len(plan.decode)
    kv_tokens = tokens + sum(plan.decode.positions)
    sampled = len(plan.decode)
    pairs = 0.0
    for row in plan.listed:
        count = row.count
        tokens += count
        kv_tokens += row.first_position + count
        if count > 1:
            pairs += chunk_pairs(row.first_position, count)
        sampled += row.sample
    return StepWork(tokens, kv_tokens, pairs, len(plan.decode) + len(plan.listed), sampled)
