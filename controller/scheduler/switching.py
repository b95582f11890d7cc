"""Rules for the end of a decode phase, as values: of numbers each makes a verdict and its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from controller.scheduler.actions import Reason
from controller.scheduler.state import PipelineState
from tidepipe_common.latency.model import StepCost


@dataclass(frozen=True, slots=True)
class Situation:
    """What a rule may look at. Times in seconds, memory in KV blocks.

    oldest_wait: how long the first waiting sequence has been held up by the present phase.
    decoding_at_start: sequences that decoded when the present decode phase began.
    """

    stages: int
    microbatches: int
    waiting: int
    oldest_wait: float
    decoding: int
    decoding_at_start: int
    blocks_free: int
    next_fits: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Yes or no, and why."""

    yes: bool
    reason: Reason


class Switching(Protocol):
    """Decides the turns of the phases. Prefill always ends when nothing more can be admitted."""

    def turn_to_prefill(self, situation: Situation, state: PipelineState) -> Verdict:
        """While decoding with sequences waiting: is it time for a prefill phase?"""
        ...


@dataclass(frozen=True, slots=True)
class Hysteresis:
    """Long phases, few switches: prefill again when the batches have shrunk to a share.

    refill_below: prefill again when the decoding sequences shrank to this share of the phase's start.
    small_batch: micro-batches below this many sequences waste the device (it reads all weights for few
        tokens), so waiting prompts go first.
    max_wait_s: nobody waits longer than this for the end of a decode phase, if there is room.
    """

    refill_below: float = 0.8
    small_batch: int = 16
    max_wait_s: float = 2.0

    def turn_to_prefill(self, situation: Situation, state: PipelineState) -> Verdict:
        """See the class; without room for the next sequence the answer is always no."""
        s = situation
        if (certain := _certain(s)) is not None:
            return certain
        batch = s.decoding / s.microbatches
        if batch < self.small_batch:
            numbers = {"batch": batch, "small": self.small_batch, "waiting": s.waiting}
            return Verdict(True, Reason("decode batches are small", numbers))
        share = s.decoding / max(s.decoding_at_start, 1)
        if share < self.refill_below:
            numbers = {"left": share, "threshold": self.refill_below, "waiting": s.waiting}
            return Verdict(True, Reason("decode batches have shrunk", numbers))
        if s.oldest_wait > self.max_wait_s:
            numbers = {"wait_s": s.oldest_wait, "limit_s": self.max_wait_s, "waiting": s.waiting}
            return Verdict(True, Reason("a prompt has waited long enough", numbers))
        return Verdict(False, Reason("decode batches are still full", {"left": share}))


@dataclass(frozen=True, slots=True)
class Intensity:
    """Spatial against temporal intensity (TD-Pipe, spatial-temporal intensity comparison), in stage seconds.

    spatial = rate(b) / rate(b0), rate(b) = b / decode step time of a micro-batch of b, its context included;
    b0: the micro-batch at the phase's start, the best that memory allowed.
    temporal = (P - bubble) / P, P = sum(p_i) + (S - 1) max(p_i) over the prefill steps that would fit now,
    bubble = (S - 1) max(0, max(p_i) - d), d: the present decode step. Both lie in [0, 1].
    Turn when spatial < temporal - margin. The published rule has no margin and switches back and forth; a
    margin above 0 is hysteresis.
    """

    cost: StepCost
    margin: float = 0.0
    max_wait_s: float = 60.0

    def turn_to_prefill(self, situation: Situation, state: PipelineState) -> Verdict:
        """See the class."""
        s = situation
        if (certain := _certain(s)) is not None:
            return certain
        context = state.allocator.context_tokens / max(1, s.decoding)
        batch = max(1.0, s.decoding / s.microbatches)
        best = max(batch, s.decoding_at_start / s.microbatches)
        spatial = min(1.0, self._rate(batch, context) / self._rate(best, context))
        temporal = self._temporal(s, state, self._decode_s(batch, context))
        numbers = {"spatial": spatial, "temporal": temporal, "margin": self.margin, "waiting": s.waiting}
        if spatial < temporal - self.margin:
            return Verdict(True, Reason("a prefill phase pays off", numbers))
        if s.oldest_wait > self.max_wait_s:
            return Verdict(True, Reason("a prompt has waited long enough", {"wait_s": s.oldest_wait}))
        return Verdict(False, Reason("decoding pays off", numbers))

    def _decode_s(self, batch: float, context: float) -> float:
        return self.cost.linear_s(round(batch)) + self.cost.attention_s(round(batch * context), 0.0)

    def _rate(self, batch: float, context: float) -> float:
        return batch / self._decode_s(batch, context)

    def _temporal(self, s: Situation, state: PipelineState, decode_s: float) -> float:
        # The prompts that the slack of the forecast holds now: near a peak a new sequence adds its prompt.
        room = max(0.0, state.admission.slack()) * state.allocator.capacity_tokens
        tokens = 0
        for sequence in state.waiting:
            if tokens + sequence.to_compute > room:
                break
            tokens += sequence.to_compute
        step = state.config.prefill_tokens
        full, rest = divmod(max(tokens, 1), step)
        times = [self.cost.linear_s(step)] * full + ([self.cost.linear_s(rest)] if rest else [])
        longest = max(times)
        phase = sum(times) + (s.stages - 1) * longest
        bubble = (s.stages - 1) * max(0.0, longest - decode_s)
        return (phase - bubble) / phase


@dataclass(frozen=True, slots=True)
class FixedShare:
    """The ablation's straw man of the paper: prefill again when the batches shrank to a fixed share."""

    share: float = 0.5

    def turn_to_prefill(self, situation: Situation, state: PipelineState) -> Verdict:
        """See the class."""
        if (certain := _certain(situation)) is not None:
            return certain
        left = situation.decoding / max(situation.decoding_at_start, 1)
        return Verdict(left < self.share, Reason("share left", {"left": left, "threshold": self.share}))


def _certain(s: Situation) -> Verdict | None:
    """The cases in which all rules agree."""
    if not s.next_fits:
        return Verdict(False, Reason("no KV blocks for the next prompt", {"free": s.blocks_free}))
    if s.decoding == 0:
        return Verdict(True, Reason("nothing left to decode", {"waiting": s.waiting}))
    return None
