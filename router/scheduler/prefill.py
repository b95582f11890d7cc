"""How long prompts will take to compute, from the same cost model that the instance plans with."""

from __future__ import annotations

from typing import NamedTuple

from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.work import chunk_pairs


class PrefillWork(NamedTuple):
    """Prompt tokens, and the query-key pairs of their attention; sums of several prompts add up."""

    tokens: int = 0
    pairs: float = 0.0

    def plus(self, other: PrefillWork) -> PrefillWork:
        """Both together."""
        return PrefillWork(self.tokens + other.tokens, self.pairs + other.pairs)


NOTHING = PrefillWork()


def prompt_work(tokens: int) -> PrefillWork:
    """The work of one prompt."""
    return PrefillWork(tokens, chunk_pairs(0, tokens))


class PrefillTime:
    """Predicted duration of a prefill window (Algorithm 1's t_total), packed as the instance packs it.

    Prompts share steps of `step_tokens` tokens: the sum of times that prompts would take alone would count
    the reading of the weights once per prompt, many times too often where prompts are short. A pipeline of
    S stages computes one step per stage time, and the last one leaves it (S - 1) stage times later.
    """

    def __init__(self, cost: StepCost, stages: int = 1, step_tokens: int = 2048) -> None:
        self._cost = cost
        self._stages = stages
        self._step = step_tokens

    def seconds(self, work: PrefillWork) -> float:
        """From the first step's start to the last one's end; 0 for nothing."""
        if work.tokens <= 0:
            return 0.0
        full, rest = divmod(work.tokens, self._step)
        whole = self._cost.linear_s(self._step) if full else 0.0
        time = full * whole + (self._cost.linear_s(rest) if rest else 0.0)
        time += self._cost.attention_s(0, work.pairs)
        if self._stages > 1:
            last = min(work.tokens, self._step)
            time += (self._stages - 1) * (self._cost.linear_s(last) + self._cost.transfer_s(last))
        return time
