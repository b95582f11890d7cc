"""`auto`: mixed batches equal in time, whose prompt share rises and falls with the tide of memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from controller.scheduler.actions import Reason
from controller.scheduler.decode import MicroBatch
from controller.scheduler.ordering import FinishTogether
from controller.scheduler.policies.mixed import MixedSteps
from controller.scheduler.sequence import Sequence
from controller.scheduler.state import PipelineState
from controller.scheduler.stealing import StealByTime, Stealing
from controller.scheduler.step_budget import StepBudget
from controller.scheduler.step_load import RunningLook, has_targets, load_of, look_at_running
from controller.scheduler.step_sizes import StepSizes
from tidepipe_common.latency.model import StepCost
from tidepipe_common.types.plan import Phase

_SAMPLE = 256
"""Waiting prompts that stand for all."""


@dataclass(frozen=True, slots=True)
class TideKnobs:
    """Shares are of the KV memory.

    most_tokens: of one step. grain: step sizes are multiples of it.
    near_best: the largest step is the smallest one whose time per token is within this factor of the best;
        larger ones win nothing, and make the pipeline's ramp and drain longer.
    refill_at: slack at which prompts are admitted again after memory was full.
    smaller_below, larger_above: slack at which the step size goes down or up by a corner; the latter must be
        above refill_at, or each refill begins with a larger step.
    hold_rounds: rounds (one step of each batch) that a step size is kept at least: a change downwards leaves
        a bubble of (stages - 1) x the difference in step time.
    long_step: in units of the way of results and plans, beside which that way is short.
    """

    most_tokens: int = 2048
    grain: int = 64
    near_best: float = 1.05
    refill_at: float = 0.02
    smaller_below: float = 0.02
    larger_above: float = 0.05
    hold_rounds: int = 12
    long_step: float = 20.0


class AutoPolicy(MixedSteps):
    """What hybrid batching and temporal disaggregation have each for themselves, together.

    * Prompts ride on decode steps, whose weights are read anyway (hybrid batching).
    * Phases in time (TD-Pipe): memory fills while prompts ride along, and drains while steps only decode;
      each phase lasts many rounds, so that all steps in the pipeline are alike and it has no bubbles.
    * The size of a step comes from the price of a prompt token (StepSizes), not from a fixed budget.
    * Batches are equal in predicted time, not in number (StealByTime).
    * Sequences start in an order that lets all end together (FinishTogether).

    Where somebody waits for single answers (sequences have latency targets), there is no tide: who comes
    first is first, and a step has as many prompt tokens as lets most sequences be in time (StepBudget).
    """

    name = "auto"

    def __init__(
        self,
        cost: StepCost,
        knobs: TideKnobs | None = None,
        stealing: Stealing | None = None,
        *,
        order: bool = True,
        extra_batches: int = 0,
        fixed_size: int = 0,
    ) -> None:
        """stealing, order, fixed_size (0: by price): each technique can be switched, for ablations."""
        super().__init__(extra_batches)
        self._fits_drain = self._fits_flood = False
        self.knobs = knobs or TideKnobs()
        self._stealing: Stealing = stealing or StealByTime(cost)
        self._order = FinishTogether() if order else None
        self._cost = cost
        self._sizes = StepSizes(cost, self.knobs.most_tokens, self.knobs.near_best, self.knobs.grain)
        self._fixed_size = fixed_size
        self._budget = StepBudget(cost)
        self._targets = False
        self._look: RunningLook | None = None
        self._looks_left = 0
        self._size = 0
        self._steps_left = 0
        self._filling = True

    @property
    def paid_s(self) -> float:
        """See MixedSteps; of steps for sequences with targets."""
        return self._budget.paid_s

    def resize(self, tokens: int) -> None:
        """Steps of so many tokens from now on, as whoever knows more than prices says; 0: by price."""
        if tokens != self._fixed_size:
            self._fixed_size, self._steps_left = tokens, 0

    def fit_in_drain(self) -> None:
        """From now on the extra batches, which hide the way of results and plans, are there only while that
        pays."""
        self._fits_drain = True

    def add_in_flood(self) -> None:
        """From now on there is one more batch in the flood where that pays."""
        self._fits_flood = True

    def place(self, state: PipelineState, sequence: Sequence, batch: MicroBatch | None) -> None:
        """Into the pool: the batch that is short of work takes it. Beside it, if it will go on elsewhere."""
        first = len(sequence.output) - sequence.given == 1 and not sequence.given
        if first and sequence.tpot_s is not None and state.passing_on.expected:
            state.batches.leaving.append(sequence)
        else:
            state.batches.add(sequence)

    def plan(self, state: PipelineState, now: float) -> None:
        """Give each batch that is back its next step."""
        if state.batches.leaving:
            _give_up_waiting(state, now)
        if not self._fixed_size and self._has_targets(state):
            self._plan_for_targets(state, now)
            return
        if self._order is not None and state.waiting:
            self._order.apply(state)
        if state.phase is Phase.IDLE and state.waiting:
            self._filling, self._steps_left = True, 0
        self._turn_tide(state, now)
        if self._extra and self._fits_drain:
            self._fit_batches(state)
        elif self._fits_flood:
            _have_batches(state, state.stages + self._pays_in_flood(state))
        for batch in state.batches.idle():
            self.form(state, batch)
        if not state.running and not state.waiting:
            state.turn(Phase.IDLE, Reason("all done"), now)

    def _has_targets(self, state: PipelineState) -> bool:
        """Does anybody wait for a single answer? Who runs is asked once a round."""
        self._looks_left -= 1
        if self._looks_left <= 0 or not state.running:
            self._looks_left = len(state.batches.batches)
            self._targets, self._look = has_targets(state), None
        first = state.waiting.first
        self._targets = self._targets or (first is not None and first.tpot_s is not None)
        return self._targets

    def _plan_for_targets(self, state: PipelineState, now: float) -> None:
        _have_batches(state, state.stages + self._extra)
        for batch in state.batches.idle():
            state.stats.steals += self._stealing.balance(state.batches, batch, 0)
            state.make_room(batch)
            chunks = []
            if state.waiting or state.prefilling:
                self._look = self._look or look_at_running(state)
                choice = self._budget.choose(load_of(state, batch, self._look), now)
                chunks = state.take_prompts(choice.prompts)
                if chunks:
                    state.turn(Phase.MIXED, choice.reason, now)
                    state.explain(choice.reason, now)
            if batch.members or chunks:
                state.send(batch, chunks)
        if state.phase is not Phase.MIXED and state.running:
            state.turn(Phase.MIXED, Reason("those with targets go on", {"running": len(state.running)}), now)

    def _turn_tide(self, state: PipelineState, now: float) -> None:
        """Flood (prompts are admitted) or ebb (memory drains), with the reason."""
        if not state.waiting and not state.prefilling:
            if state.running and state.phase is not Phase.IDLE:
                state.turn(Phase.DECODE, Reason("no prompt waits", {"running": len(state.running)}), now)
            return
        slack = state.admission.slack()
        numbers = {"slack": slack, "waiting": len(state.waiting), "running": len(state.running)}
        if self._filling:
            first = state.waiting.first
            if not state.prefilling and first is not None and state.running and not state.fits(first):
                self._filling, self._steps_left = False, 0
                self._size = self._next_smaller(state)
                state.turn(Phase.DECODE, Reason("memory is full", numbers), now)
                return
        elif slack >= self.knobs.refill_at or not state.running:
            self._filling, self._steps_left = True, 0
        if self._filling:
            state.turn(Phase.MIXED, Reason("memory has room for prompts", numbers), now)

    def _fit_batches(self, state: PipelineState) -> None:
        """As many batches as stages in the drain where that is quicker, else the extra ones as well.

        Decode rows alone are cheaper in fewer, larger steps: each reads all weights, and has its fixed work.
        But between two of a batch's steps there is then the way of results and plans. (Steps with prompts
        have a size of their own.)
        """
        wanted = state.stages + self._extra
        if not state.waiting and not state.prefilling and self._drains_in_few(state):
            wanted = state.stages
        _have_batches(state, wanted)

    def _pays_in_flood(self, state: PipelineState) -> bool:
        """Does one batch more than stages pay, while prompts ride along?

        A round computes what memory lets through, in one step for each batch. As many batches as stages wait
        once a round for the way of results, plans and activations; one more hides that, in smaller steps.
        Where prompts are long, rounds have so many tokens that steps of any size cost nearly alike.
        """
        stages = state.stages
        if stages < 2 or not state.waiting:
            return False
        tokens = self._tokens_per_round(state)
        if not tokens:
            return False
        few, few_s = self._sizes.step(tokens / stages)
        many, many_s = self._sizes.step(tokens / (stages + 1))
        way = state.dispatch.seconds + stages * self._cost.transfer_s(round(few))
        # Seconds per token; not back and forth where both are level.
        waits = (few_s + way / stages) / few
        return many_s / many < waits * (1.0 if len(state.batches.batches) > stages else 0.995)

    def _drains_in_few(self, state: PipelineState) -> bool:
        batches, few = state.batches, state.stages
        many = few + self._extra
        if not len(batches):
            return False
        # Not back and forth at one and the same length.
        way = state.dispatch.seconds * (1.0 if len(batches.batches) > few else 0.5)
        products = self._cost.linear_s(-(-len(batches) // few))
        context = sum(batch.context for batch in batches.batches)
        step = products + self._cost.attention_s(context // few, 0.0)
        if step >= self.knobs.long_step * way:
            # Whatever the model says: few know a step's fixed work.
            return True
        # A round of each; attention is the same in both.
        return few * (products + way) <= many * self._cost.linear_s(-(-len(batches) // many))

    def form(self, state: PipelineState, batch: MicroBatch) -> None:
        """Balance the batch, and fill its step with prompt tokens up to the present size."""
        state.stats.steals += self._stealing.balance(state.batches, batch, 0)
        state.make_room(batch)
        chunks = []
        if (self._filling and state.waiting) or state.prefilling:
            if self._steps_left <= 0:
                self._choose_size(state)
            self._steps_left -= 1
            chunks = state.take_prompts(self._size - len(batch.members))
        if batch.members or chunks:
            state.send(batch, chunks)

    def _choose_size(self, state: PipelineState) -> None:
        self._steps_left = len(state.batches.batches) * self.knobs.hold_rounds
        if self._fixed_size:
            self._size = self._fixed_size
            return
        slack = state.admission.slack()
        corners = self._corners(state)
        if not self._size or not state.running:
            self._size = corners[-1]
        elif slack > self.knobs.larger_above:
            self._size = next((size for size in corners if size > self._size), corners[-1])
        elif slack < self.knobs.smaller_below:
            self._size = self._next_smaller(state)

    def _next_smaller(self, state: PipelineState) -> int:
        corners = self._corners(state)
        return next((size for size in reversed(corners) if size < self._size), corners[0])

    def _tokens_per_round(self, state: PipelineState) -> float:
        """What memory lets through, from predictions, else from the lengths that were seen here."""
        if self._order is not None and self._order.tokens_per_round:
            return self._order.tokens_per_round
        prompts = [sequence.to_compute for sequence in islice(state.waiting, _SAMPLE)]
        if not prompts:
            return 0.0
        return state.seen.tokens_per_round(sum(prompts) / len(prompts), state.allocator.capacity_tokens)

    def _corners(self, state: PipelineState) -> list[int]:
        batches = len(state.batches.batches)
        corners = self._sizes.corners(-(-len(state.batches) // batches))
        demand = self._tokens_per_round(state) / batches
        if not demand:
            return corners
        # Larger steps than this would only fill memory sooner and then stop.
        most = next((size for size in corners if size >= demand), corners[-1])
        return [size for size in corners if size <= most]


def _give_up_waiting(state: PipelineState, now: float) -> None:
    """Those that nobody asked for decode here."""
    for sequence in list(state.batches.leaving):
        if not state.passing_on.keeps(sequence.first_token_at or now, now):
            state.batches.leaving.remove(sequence)
            state.batches.add(sequence)
            state.passing_on.waited_for()


def _have_batches(state: PipelineState, wanted: int) -> None:
    if wanted != len(state.batches.batches):
        state.batches.resize(wanted)
