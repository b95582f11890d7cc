"""`auto`: mixed batches equal in time, whose prompt share rises and falls with the tide of memory."""

from __future__ import annotations

from dataclasses import dataclass

from common.latency.model import StepCost
from common.plan import Phase
from controller.core.actions import Reason
from controller.core.decode import MicroBatch
from controller.core.ordering import FinishTogether
from controller.core.policies.mixed import MixedSteps
from controller.core.sequence import Sequence
from controller.core.state import PipelineState
from controller.core.stealing import StealByTime, Stealing


@dataclass(frozen=True, slots=True)
class TideKnobs:
    """Shares are of the KV memory.

    most_tokens: of one step. grain: step sizes are multiples of it.
    refill_at: slack at which prompts are admitted again after memory was full.
    full_price_at: slack at which a prompt token is worth the most.
    hold_rounds: rounds (one step of each batch) that a step size is kept at least: a change downwards leaves
        a bubble of (stages - 1) x the difference in step time.
    """

    most_tokens: int = 2048
    grain: int = 64
    refill_at: float = 0.01
    full_price_at: float = 0.10
    hold_rounds: int = 4


class StepSizes:
    """Chooses the tokens of a step by price: the size L that maximizes price x (L - rows) - time(L).

    time(L) jumps at the device's tiles, so the optimum sits at the end of a tile, on the lower convex hull of
    the curve. Prices between the hull's first and last slope reach each of its corners; two neighbouring
    corners taken in turn reach everything between them, which no single chunk size does.
    """

    def __init__(self, cost: StepCost, knobs: TideKnobs) -> None:
        self._sizes = [*range(knobs.grain, knobs.most_tokens + 1, knobs.grain)]
        self._seconds = [cost.linear_s(size) for size in self._sizes]
        self._cost = cost

    def choose(self, rows: int, urgency: float) -> int:
        """The step's tokens, of which `rows` are decode rows that it has anyway.

        urgency: 0 (only the cheapest prompt tokens) .. 1 (as many as the largest step takes).
        """
        bare = self._cost.linear_s(max(1, rows))
        larger = [(size, s) for size, s in zip(self._sizes, self._seconds, strict=True) if size > rows]
        if not larger:
            return rows
        low = min((s - bare) / (size - rows) for size, s in larger)
        size, seconds = larger[-1]
        high = max(low, (seconds - bare) / (size - rows)) * 1.10
        price = low * 1.0001 + (high - low) * min(max(urgency, 0.0), 1.0)
        best, _ = max(larger, key=lambda one: price * (one[0] - rows) - one[1])
        return best


class TidePolicy(MixedSteps):
    """What hybrid batching and temporal disaggregation have each for themselves, together.

    * Prompts ride on decode steps, whose weights are read anyway (hybrid batching).
    * Phases in time (TD-Pipe): memory fills while prompts ride along, and drains while steps only decode;
      each phase lasts many rounds, so that all steps in the pipeline are alike and it has no bubbles.
    * The size of a step comes from the price of a prompt token (StepSizes), not from a fixed budget.
    * Batches are equal in predicted time, not in number (StealByTime).
    * Sequences start in an order that lets all end together (FinishTogether).
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
        self.knobs = knobs or TideKnobs()
        self._stealing: Stealing = stealing or StealByTime(cost)
        self._order = FinishTogether() if order else None
        self._sizes = StepSizes(cost, self.knobs)
        self._fixed_size = fixed_size
        self._size = 0
        self._steps_left = 0
        self._filling = True

    def place(self, state: PipelineState, sequence: Sequence, batch: MicroBatch | None) -> None:
        """Into the pool: the batch that is short of work takes it."""
        state.batches.add(sequence)

    def plan(self, state: PipelineState, now: float) -> None:
        """Give each batch that is back its next step."""
        if self._order is not None and state.waiting:
            self._order.apply(state)
        if state.phase is Phase.IDLE and state.waiting:
            self._filling, self._steps_left = True, 0
        self._turn_tide(state, now)
        for batch in state.batches.idle():
            self.form(state, batch)
        if not state.running and not state.waiting:
            state.turn(Phase.IDLE, Reason("all done"), now)

    def _turn_tide(self, state: PipelineState, now: float) -> None:
        """Flood (prompts are admitted) or ebb (memory drains), with the reason."""
        if not state.waiting and not state.prefilling:
            if state.running and state.phase is not Phase.IDLE:
                state.turn(Phase.DECODE, Reason("no prompt waits", {"running": len(state.running)}), now)
            return
        slack = state.gate.slack()
        numbers = {"slack": slack, "waiting": len(state.waiting), "running": len(state.running)}
        if self._filling:
            first = state.waiting.first
            if not state.prefilling and first is not None and state.running and not state.fits(first):
                self._filling, self._steps_left = False, 0
                state.turn(Phase.DECODE, Reason("memory is full", numbers), now)
                return
        elif slack >= self.knobs.refill_at or not state.running:
            self._filling, self._steps_left = True, 0
        if self._filling:
            state.turn(Phase.MIXED, Reason("memory has room for prompts", numbers), now)

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
        batches = len(state.batches.batches)
        rows = -(-len(state.batches) // batches)
        urgency = state.gate.slack() / self.knobs.full_price_at
        self._size = self._fixed_size or self._sizes.choose(rows, urgency)
        self._steps_left = batches * self.knobs.hold_rounds
