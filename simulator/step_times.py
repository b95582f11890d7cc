"""How long an instance in virtual time takes: for a prompt step, or for many decode rounds in one stroke.

A pipeline of S stages has S micro-batches; a round is one token for each sequence of all of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from simulator.prompts import PromptStep
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.work import StepWork


class RoundsTime(NamedTuple):
    """k rounds take k * first + k^2 * bend seconds, as contexts grow by a token a round."""

    first: float
    bend: float

    def seconds(self, rounds: int) -> float:
        """Of so many rounds."""
        return rounds * self.first + self.bend * rounds * rounds

    def rounds(self, seconds: float) -> int:
        """That begin within so long."""
        first, bend = self.first, self.bend
        if bend:
            return int((math.sqrt(first * first + 4 * bend * seconds) - first) / (2 * bend)) + 1
        return int(seconds / first) + 1


class StepTimes:
    """Seconds, by the cost model that the live instance plans with."""

    def __init__(self, cost: StepCost, stages: int, dispatch_s: float) -> None:
        """dispatch_s: what a step costs beside computing."""
        self._cost = cost
        self._dispatch_s = dispatch_s
        self._stages = stages
        self._per_kv = cost.attention_s(1, 0.0)
        self._empty_rounds: dict[int, float] = {}

    def prompts(self, step: PromptStep, done: int) -> float:
        """A step of prompts alone, in the first stage. done: prompts that it completes."""
        work = StepWork(step.tokens, step.cached + step.tokens, step.pairs, len(step.jobs), done)
        spent = self._cost.step_s(work)
        return spent + self._dispatch_s if self._stages == 1 else spent

    def through(self, stage_s: float, tokens: int) -> float:
        """From a step's end in the first stage, which took it stage_s, to its end in the last one."""
        return (self._stages - 1) * (stage_s + self._cost.transfer_s(tokens)) if self._stages > 1 else 0.0

    def mixed_round(self, step: PromptStep, decoding: int, context: int) -> float:
        """A round of so many sequences, with prompts among the steps of its micro-batches."""
        stages = self._stages
        per_step = -(-(decoding + step.tokens) // stages)
        rows = -(-(decoding + len(step.jobs)) // stages)
        spent = stages * self._cost.step_s(StepWork(per_step, 0, 0.0, rows, rows))
        spent += stages * self._cost.transfer_s(per_step) + self._dispatch_s
        spent += self._cost.attention_s(context + step.cached + step.tokens, step.pairs)
        return spent

    def rounds(self, sequences: int, context: int) -> RoundsTime:
        """Rounds of so many sequences whose contexts have so many tokens together."""
        per = self._per_kv
        return RoundsTime(self.empty_round(sequences) + per * (context - sequences / 2), per * sequences / 2)

    def round(self, sequences: int, context: int) -> float:
        """One such round."""
        return self.empty_round(sequences) + self._per_kv * context

    def empty_round(self, sequences: int) -> float:
        """A token for each of so many sequences, their contexts left out."""
        known = self._empty_rounds.get(sequences)
        if known is None:
            rows = -(-sequences // self._stages)
            step = self._cost.step_s(StepWork(rows, 0, 0.0, rows, rows)) + self._cost.transfer_s(rows)
            known = self._empty_rounds[sequences] = self._stages * step + self._dispatch_s
        return known
