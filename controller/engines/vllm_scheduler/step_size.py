"""How many tokens a step has: as many as the latency targets allow, or as throughput wants.

An engine's own default (1,024 tokens and more) is chosen for GPUs and for throughput; where a step of that
size takes longer than a token may, it costs half of the goodput. So steps are timed, and:

* as long as those who wait can be in time, a round of all micro-batches takes no longer than a token may;
* when nobody sees tokens before the answer is whole (`LLM.generate`), when more came at once than can have
  its first token in time, or when hardly anybody who decodes had it in time, only throughput counts, and
  steps are so large that what each costs beside its tokens nearly vanishes.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.engines.vllm_scheduler.lateness import Load
from controller.engines.vllm_scheduler.step_times import StepTimes
from tidepipe_common.latency.model import StepCost

PROMISED = 0.95
"""Share of a TPOT target that a round may take: all rounds with prompts are as long, so errors add up."""
GRAIN = 8
"""Sizes are multiples of it."""
STEADY = 0.125
"""A size changes by this share at least, so that noise of the times does not change it all the time."""
LARGEST = 2048
FIXED_SHARE = 0.05
"""Of a step's time that what it costs beside its prompts may take, when only throughput counts."""
STRETCH_WEIGHT, MOST_STRETCH = 0.05, 3.0
"""Of a newly seen round in how much longer than reckoned rounds take, and how much that may be."""
LEAST_WORTH = 0.5
"""Times what a step costs beside its prompts that these take at least, whatever the target says."""
HOPELESS, HOPE = 2.0, 0.5
"""Times the first token's target that prompts must need for only throughput to count, and for that to end."""
AT_ONCE = 0.5
"""Share of them that came together: a batch, not a stream, of which the next ones could be in time."""
LOST, FOUND = 0.25, 0.5
"""Shares of those who decode: had fewer their first token in time, only throughput counts; can more of them
meet both targets, it does no longer. (Late further tokens are no reason to begin: that would feed itself.)
"""


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
        self.times = StepTimes(modelled)
        self.targets = targets
        self._batches = batches
        self._stretch = 1.0
        self._size = 0
        self._hopeless = self.throughput = False
        self.why = ""

    def returned(self, rows: int, prompts: int, seconds: float, away_s: float) -> None:
        """A step took each stage so long, and was away for so long: behind others, and on its way."""
        if seconds <= 0.0:
            return
        if prompts:
            # Times learned by relative errors favour short steps; what users wait for is the round.
            reckoned = self._batches * self.times.now().of(rows, prompts)
            stretch = min(max(1.0, away_s / reckoned), MOST_STRETCH)
            self._stretch += STRETCH_WEIGHT * (stretch - self._stretch)
        self.times.observe(rows, prompts, seconds)

    def choose(self, load: Load) -> int:
        """The size of the next steps."""
        time, rows = self.times.now(), load.rows
        alone = time.of(rows, 0)
        pace = max(1.0, (self._size or self.targets.most) - rows)
        backlog_s = load.tokens * (alone / pace + time.token_s)
        before, self._hopeless = self.throughput, load.watched and self._is_hopeless(load, backlog_s)
        self.throughput = self._hopeless or not load.watched
        if self.throughput:
            prompts = time.fixed_s / time.token_s / FIXED_SHARE
            why = "only throughput counts: " + (
                f"prompts need {backlog_s:.1f} s, and {load.began} of {load.decoding} began in time"
                if load.watched
                else "nobody sees tokens before the answer is whole"
            )
        else:
            allowed = PROMISED * self.targets.tpot_s / self._batches / self._stretch - alone
            # Smaller ones take most of their time for themselves, and everyone waits longer.
            prompts = max(allowed, LEAST_WORTH * alone) / time.token_s
            why = (
                f"a round of {self._batches} steps within {self.targets.tpot_s * 1000:g} ms; a step takes "
                f"{time.fixed_s * 1000:.1f} ms, {time.row_s * 1000:.2f} for each of {rows:.0f} decode rows "
                f"and {time.token_s * 1000:.3f} per token of prompts"
            )
        size = self._whole(rows + prompts)
        if not self._size or before != self.throughput or abs(size - self._size) > STEADY * self._size:
            self._size, self.why = size, why
        return self._size

    def _is_hopeless(self, load: Load, backlog_s: float) -> bool:
        if not load.waiting:
            return False
        ttft_s = self.targets.ttft_s
        if backlog_s > HOPELESS * ttft_s and load.together > AT_ONCE * load.tokens:
            return True
        if not self._hopeless:
            return load.began < LOST * load.decoding
        return backlog_s > HOPE * ttft_s or load.in_time < FOUND * load.decoding

    def _whole(self, tokens: float) -> int:
        """Such a size that is not above it."""
        return max(GRAIN, min(int(tokens), LARGEST, self.targets.most) // GRAIN * GRAIN)
