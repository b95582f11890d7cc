"""How many tokens a step has: as many as the latency targets allow, or as throughput wants.

An engine's own default (1,024 tokens and more) is chosen for GPUs and for throughput; where a step of that
size takes longer than a token may, it costs half of the goodput. So steps are timed, and:

* as long as those who wait can be in time, a round of all micro-batches takes no longer than a token may;
* when so many wait that the last of them cannot have its first token in time, no step size helps them, and
  steps are as large as it takes for what each step costs beside its tokens to vanish.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe_common.latency.learned import LearnedCost
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.work import StepWork
from tidepipe_common.types.plan import Phase

SIZES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Few, so that noise of the times does not change the size all the time."""
FIXED_SHARE = 0.05
"""Of a step's time that what it costs beside its tokens may take, when only throughput counts."""
LEAST_WORTH = 2.0
"""Times what a step costs beside its tokens that its tokens take at least, whatever the target says."""
HOPELESS = 2.0
"""Times the first token's target that prompts must need until only throughput counts; at 1 that ends."""
LEAST_STEPS = 24
"""Timed before measured times count more than the model's; and between two choices of a size."""
SPREAD = 4
"""Times the smallest timed step that the largest must have for a line through both."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds; most: tokens of a step that the engine takes."""

    ttft_s: float
    tpot_s: float
    most: int


class StepSize:
    """Chooses by measured times, and before there are enough of them by a model's. Pure."""

    def __init__(self, modelled: StepCost, targets: Targets, batches: int) -> None:
        """batches: steps of a round."""
        self._modelled = modelled
        self._targets = targets
        self._batches = batches
        self._sizes = [size for size in SIZES if size < targets.most] + [min(SIZES[-1], targets.most)]
        self._learned = LearnedCost()
        self._timed = 0
        self._smallest, self._largest = 0, 0
        self._size, self._chosen_at = 0, 0
        self.throughput = False
        self.why = ""

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long at each stage."""
        if tokens < 1 or seconds <= 0.0:
            return
        self._learned.observe(Phase.MIXED, StepWork(tokens, 0), seconds)
        self._timed += 1
        self._smallest = min(self._smallest or tokens, tokens)
        self._largest = max(self._largest, tokens)

    def line(self) -> tuple[float, float]:
        """(seconds of a step beside its tokens, seconds per token): measured, if steps of different sizes
        were, else modelled."""
        low, high, cost = self._smallest, self._largest, self._learned
        if self._timed >= LEAST_STEPS and high >= SPREAD * low:
            slope = (cost.linear_s(high) - cost.linear_s(low)) / (high - low)
            if slope > 0.0:
                return max(0.0, cost.linear_s(low) - slope * low), slope
        many = SIZES[-1]
        fixed = self._modelled.linear_s(1)
        return fixed, max(self._modelled.linear_s(many) - fixed, 1e-9) / many

    def choose(self, waiting_tokens: int) -> int:
        """The size of the next steps. waiting_tokens: of prompts that nothing has begun to compute."""
        fixed, per_token = self.line()
        pace = self._size or self._sizes[-1]
        backlog_s = waiting_tokens * (fixed / pace + per_token)
        limit = self._targets.ttft_s * (1.0 if self.throughput else HOPELESS)
        before, self.throughput = self.throughput, backlog_s > limit
        if self._size and before == self.throughput and self._timed < self._chosen_at + LEAST_STEPS:
            return self._size
        self._chosen_at = self._timed
        if self.throughput:
            self._size = self._nearest(fixed / per_token / FIXED_SHARE)
            self.why = f"prompts need {backlog_s:.1f} s, so only throughput counts"
        else:
            allowed = self._targets.tpot_s / self._batches
            # Smaller ones take most of their time for themselves, and everyone waits longer.
            least = LEAST_WORTH * fixed / per_token
            self._size = self._nearest(max((allowed - fixed) / per_token, least))
            self.why = (
                f"a round of {self._batches} steps within {self._targets.tpot_s * 1000:g} ms; a step takes "
                f"{fixed * 1000:.1f} ms and {per_token * 1e6:.0f} us per token"
            )
        return self._size

    def _nearest(self, tokens: float) -> int:
        """The largest size that is not above it."""
        return max([size for size in self._sizes if size <= tokens], default=self._sizes[0])
