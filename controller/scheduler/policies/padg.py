"""PaDG's instance (EcoServe): what the router sends is prefilled first, as long as decoding can wait."""

from __future__ import annotations

from itertools import chain

from controller.scheduler.actions import Reason
from controller.scheduler.policies.temporal import TemporalPolicy
from controller.scheduler.sequence import State
from controller.scheduler.slack import decoding_of, latest_resume, nearly_all
from controller.scheduler.state import PipelineState
from controller.scheduler.stealing import StealByTime
from tidepipe_common.latency.model import StepCost
from tidepipe_common.types.plan import Phase


class PadgPolicy(TemporalPolicy):
    """Temporal disaggregation on the router's word: a request that arrives opens a prefill window.

    The router has checked that decoding can wait for it. It may have erred (predicted lengths, late reports,
    long prompts), so the window also ends when the decoding sequences' slack is used up, be it in the middle
    of a long prompt, which goes on in the next window; and it opens again when there is slack for one step,
    or when a prompt would miss its own target otherwise. Sequences without targets always can wait.
    """

    def __init__(
        self, cost: StepCost | None = None, *, extra_batches: int = 0, name: str = "padg-apart"
    ) -> None:
        """cost: what steps take here; without it the slack is not asked.

        extra_batches: beyond the number of stages. None: online, a sequence's pace is a round of all batches.
        """
        stealing = StealByTime(cost) if cost is not None else None
        super().__init__(stealing=stealing, extra_batches=extra_batches, name=name)
        self._cost = cost

    def plan(self, state: PipelineState, now: float) -> None:
        """Prompts first, if there are any and decoding can wait; then keep the pipeline full."""
        resting = state.phase in (Phase.DECODE, Phase.IDLE)
        if resting and self._work(state) and (reason := self._why_prefill(state, now)) is not None:
            state.turn(Phase.PREFILL, reason, now)
        if state.phase is Phase.PREFILL:
            self._prefill(state, now)
        # The only stage of an instance has nothing to overlap with: what is planned later knows more, and the
        # prompts on their way then take part in the first round.
        alone_and_busy = state.stages == 1 and state.steps.in_flight > 0
        if state.phase is Phase.DECODE and not alone_and_busy:
            self._decode(state, now)

    def _work(self, state: PipelineState) -> bool:
        if state.prefilling:
            return True
        first = state.waiting.first
        return first is not None and state.fits(first)

    def _why_prefill(self, state: PipelineState, now: float) -> Reason | None:
        waiting = float(len(state.waiting) + len(state.prefilling))
        if not len(state.batches):
            return Reason("work arrived", {"waiting": waiting})
        spare = self._spare_s(state, now)
        if spare > self._window_s(state):
            return Reason("decoding can wait", {"spare_s": spare, "waiting": waiting})
        due = self._first_due(state)
        if due < now + 2 * self._window_s(state):
            return Reason("a prompt is due", {"due_s": due - now, "spare_s": spare, "waiting": waiting})
        return None

    def _prefill(self, state: PipelineState, now: float) -> None:
        # With several stages one step more: each computes one, and the first has its next one waiting.
        most = state.stages + (state.stages > 1)
        while state.steps.in_flight < most:
            spare = self._spare_s(state, now)
            if spare < 0.0 and self._first_due(state) > now + 2 * self._window_s(state):
                state.turn(Phase.DECODE, Reason("decoding cannot wait", {"spare_s": spare}), now)
                return
            chunks = state.take_prompts(state.config.prefill_tokens)
            if not chunks:
                self._end_prefill(state, now)
                return
            state.send(None, chunks)

    def _window_s(self, state: PipelineState) -> float:
        """The next prefill step through all stages."""
        if self._cost is None:
            return 0.0
        most, tokens = state.config.prefill_tokens, 0
        for sequence in chain(state.prefilling, state.waiting):
            tokens += sequence.to_compute
            if tokens >= most:
                break
        return self._cost.linear_s(max(1, min(tokens, most))) * state.stages

    def _first_due(self, state: PipelineState) -> float:
        """When the first prompt must be done; prompts without a target, or that missed it, are not urgent."""
        candidates = [*state.prefilling, *([state.waiting.first] if state.waiting.first else [])]
        dues = [s.first_token_due for s in candidates if s is not None and s.first_token_due is not None]
        return min(dues, default=float("inf"))

    def _spare_s(self, state: PipelineState, now: float) -> float:
        """How long nearly all decoding sequences can pause and still keep what they were promised."""
        if self._cost is None:
            return float("inf")
        rows = max(1, len(state.batches))
        context = state.allocator.context_tokens
        step = self._cost.linear_s(-(-rows // state.stages)) * state.stages
        step += self._cost.attention_s(context, 0.0)
        decoding = [
            one
            for s in state.running.values()
            if s.state is State.DECODE and (one := decoding_of(s)) is not None
        ]
        return nearly_all(latest_resume(decoding, step) - now) if decoding else float("inf")
