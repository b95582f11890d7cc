"""The predicted prefill time of an instance, by the cost model that it plans with itself."""

from __future__ import annotations

from bisect import bisect_left

from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.work import PrefillWork, StepCosts, StepWork

NOTHING = PrefillWork()


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

    @property
    def stages(self) -> int:
        """Of the pipeline."""
        return self._stages

    @property
    def step_tokens(self) -> int:
        """Prompt tokens of a step at most."""
        return self._step

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

    def round_s(self, sequences: int) -> float:
        """One token for each of so many that decode, a share of them in each stage at a time; what their
        attention reads left out."""
        return self._stages * self._cost.linear_s(-(-sequences // self._stages))

    def step_s(self, tokens: int, kv_tokens: float, pairs: float) -> float:
        """One step at one stage, as a StepWork has it."""
        return self._cost.linear_s(tokens) + self._cost.attention_s(int(kv_tokens), pairs)

    def linear_s(self, tokens: int) -> float:
        """One step at one stage, attention left out."""
        return self._cost.linear_s(tokens)

    def attention_s(self, kv_tokens: float, pairs: float) -> float:
        """Of a step, or of a round's steps together: what it reads, and query-key pairs of prompts."""
        return self._cost.attention_s(int(kv_tokens), pairs)

    def hand_on_s(self, tokens: int) -> float:
        """Activations of so many tokens to the next stage; 0 where there is none."""
        return self._cost.transfer_s(tokens) if self._stages > 1 else 0.0


class ReportedCost:
    """What steps cost at an instance, as it last said. A StepCost; it changes with every report."""

    def __init__(self, costs: StepCosts) -> None:
        self.update(costs)

    def update(self, costs: StepCosts) -> None:
        """The instance has learned more."""
        self.costs = costs
        # Without points (an instance that knows nothing yet) everything is free until the first step.
        self._tokens = list(costs.linear_tokens) or [1]
        self._seconds = list(costs.linear_s) or [0.0]
        self._pair_s, self._kv_token_s = costs.pair_s, costs.kv_token_s
        self._transfer_token_s = costs.transfer_token_s

    def linear_s(self, tokens: int) -> float:
        """Straight lines between the reported sizes; in proportion beyond the last one."""
        sizes, seconds = self._tokens, self._seconds
        place = bisect_left(sizes, tokens)
        if place == len(sizes):
            return seconds[-1] * tokens / sizes[-1]
        if place == 0 or sizes[place] == tokens:
            return seconds[place]
        low, high = sizes[place - 1], sizes[place]
        share = (tokens - low) / (high - low)
        return seconds[place - 1] + share * (seconds[place] - seconds[place - 1])

    def attention_s(self, kv_tokens: int, pairs: float) -> float:
        """Of prompts by their pairs, of what decodes by the entries that it reads."""
        return pairs * self._pair_s + kv_tokens * self._kv_token_s

    def step_s(self, work: StepWork) -> float:
        """Both together."""
        return self.linear_s(work.tokens) + self.attention_s(work.kv_tokens, work.pairs)

    def stage_s(self, work: StepWork, layers: int, *, last: bool) -> float:
        """All stages are alike as far as the report says."""
        return self.step_s(work)

    def transfer_s(self, tokens: int) -> float:
        """To the next stage."""
        return tokens * self._transfer_token_s
