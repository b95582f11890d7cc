"""The order of admission of waiting sequences whose lengths are predicted."""

from __future__ import annotations

import math

from controller.scheduler.awaited import AwaitedPrefixes
from controller.scheduler.expectation import belief_of
from controller.scheduler.sequence import Sequence
from controller.scheduler.state import PipelineState

_GOLDEN = 0.6180339887498949
FEW = 16
"""Sequences with the same beginning that are started one behind the other."""
HEAD_START = 1.5
"""Outputs are taken as so much longer when their windows are cut: towards the end decode steps are quicker,
and the queue empties before the last window closes. Measured: up to 2 % more throughput than 1.0."""

_SHARES = tuple((place + 0.5) / 10 for place in range(10))
"""Of outputs that are longer: at each of these a tenth of them is taken to end."""


class FinishTogether:
    """Spread every length evenly over the time in which it may start, so that all end together.

    With R decode steps to go, a sequence of o output tokens must start within the first R - o. If each length
    is spread evenly over its own window, short and long ones run side by side all the time (equal memory,
    equal batches), and the last ones to run are short: no tail in which a few long outputs hold a pipeline
    whose batches waste it. R is what memory dictates: the sum over sequences of o (p + o / 2) token-steps,
    divided by the tokens that fit.

    Arrivals are ranked in groups, and a later group stays behind all earlier ones: nobody starves.
    """

    LEAST = 16

    def __init__(self) -> None:
        self._seen_changes = 0
        self._fresh = 0
        self._ranks: dict[str, float] = {}
        self._groups = 0
        # Tokens, prompts included, that all batches together compute per decode step when memory is full.
        self.tokens_per_round = 0.0

    def apply(self, state: PipelineState) -> None:
        """Order the waiting line, if enough new predictions are there."""
        if state.waiting.changes == self._seen_changes:
            return
        # A change adds at most one prediction: no need to count them anew each time.
        most = self._fresh + state.waiting.changes - self._seen_changes
        enough = max(self.LEAST, len(state.waiting) // 2)
        if most < enough:
            return
        self._seen_changes = state.waiting.changes
        fresh = [s for s in state.waiting if s.predicted_p50 is not None and s.sequence_id not in self._ranks]
        self._fresh = len(fresh)
        if len(fresh) < enough:
            return
        self._fresh = 0
        waiting = {s.sequence_id for s in state.waiting}
        self._ranks = {name: rank for name, rank in self._ranks.items() if name in waiting}
        self._groups += 1
        self._rank(fresh, state.waiting.prefixes, state.allocator.capacity_tokens)
        behind = float(self._groups + 1)
        state.waiting.order_by(lambda s: self._ranks.get(s.sequence_id, behind))

    def _rank(self, fresh: list[Sequence], prefixes: AwaitedPrefixes, capacity_tokens: int) -> None:
        outputs: dict[str, float] = {}
        token_steps = 0.0
        for sequence in fresh:
            output, square = _moments(sequence)
            outputs[sequence.sequence_id] = output
            token_steps += output * sequence.to_compute + square / 2
        steps = max(token_steps / max(1, capacity_tokens), 1.0)
        # However much memory there is, the longest output takes its steps: prompts may be spread over them.
        steps = max(steps, 1.05 * max(outputs.values()))
        self.tokens_per_round = sum(s.to_compute + outputs[s.sequence_id] for s in fresh) / steps
        spread = 0.0
        beginnings: dict[bytes, float] = {}
        for sequence in sorted(fresh, key=lambda s: (outputs[s.sequence_id], s.arrived, s.sequence_id)):
            # Golden-ratio steps: any run of neighbours in length covers 0 .. 1 evenly.
            spread = (spread + _GOLDEN) % 1.0
            window = max(0.0, 1.0 - HEAD_START * outputs[sequence.sequence_id] / steps)
            rank = self._groups + spread * window
            key, members = prefixes.group(sequence)
            if 1 < members <= FEW:
                # Side by side, before their beginning is evicted; what many share is in use anyway.
                rank = beginnings.setdefault(key, rank)
            self._ranks[sequence.sequence_id] = rank


def _moments(sequence: Sequence) -> tuple[float, float]:
    """Mean and mean square of the output that is expected of one that was predicted, tokens.

    Of all together they give the work, which medians underestimate: of a few long outputs they know nothing.
    """
    belief, limit = belief_of(sequence, None), float(sequence.max_tokens)
    shares = (0.5,) if math.isinf(belief.shape) else _SHARES
    ends = [min(belief.origin + belief.remaining(belief.origin, share), limit) for share in shares]
    return sum(ends) / len(ends), sum(end * end for end in ends) / len(ends)
