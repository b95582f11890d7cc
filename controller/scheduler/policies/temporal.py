"""TD-Pipe: a long run of prefills, then a long run of decodes, switching as rarely as pays off."""

from __future__ import annotations

from controller.scheduler.actions import Reason
from controller.scheduler.decode import MicroBatch
from controller.scheduler.sequence import Sequence
from controller.scheduler.state import PipelineState
from controller.scheduler.stealing import StealByCount, Stealing
from controller.scheduler.switching import Hysteresis, Situation, Switching
from tidepipe_common.types.plan import Phase


class TemporalPolicy:
    """Temporal disaggregation (TD-Pipe, section 3): greedy prefill, work stealing, a rule for the turn."""

    def __init__(
        self,
        switching: Switching | None = None,
        stealing: Stealing | None = None,
        *,
        extra_batches: int = 0,
        name: str = "td-pipe",
    ) -> None:
        """extra_batches: micro-batches beyond the number of stages. name: as users chose it."""
        self.name = name
        self._extra = extra_batches
        self.switching: Switching = switching or Hysteresis()
        self.stealing: Stealing = stealing or StealByCount()

    def microbatches(self, stages: int) -> int:
        """With one more than stages, a stage has its next plan before it finishes the present one."""
        return stages + self._extra

    def place(self, state: PipelineState, sequence: Sequence, batch: MicroBatch | None) -> None:
        """Into the pool."""
        state.batches.add(sequence)

    def plan(self, state: PipelineState, now: float) -> None:
        """Turn the phase where the rule says so, then keep the pipeline full."""
        if state.phase is Phase.DECODE and state.waiting:
            verdict = self.switching.turn_to_prefill(_situation(state, now), state)
            if verdict.yes:
                state.turn(Phase.PREFILL, verdict.reason, now)
        elif state.phase is Phase.IDLE and state.waiting:
            state.turn(Phase.PREFILL, Reason("work arrived", {"waiting": len(state.waiting)}), now)
        if state.phase is Phase.PREFILL:
            self._prefill(state, now)
        if state.phase is Phase.DECODE:
            self._decode(state, now)

    def _prefill(self, state: PipelineState, now: float) -> None:
        # One step more than stages: each computes one, and the first has its next one waiting.
        while state.steps.in_flight <= state.stages:
            chunks = state.take_prompts(state.config.prefill_tokens)
            if not chunks:
                self._end_prefill(state, now)
                return
            state.send(None, chunks)

    def _end_prefill(self, state: PipelineState, now: float) -> None:
        """Nothing more can be prefilled now."""
        state.turn(Phase.DECODE if state.running else Phase.IDLE, _why_no_prefill(state), now)

    def _decode(self, state: PipelineState, now: float) -> None:
        arriving = state.arriving
        for batch in state.batches.idle():
            state.stats.steals += self.stealing.balance(state.batches, batch, arriving)
            if state.batches.lacks_company(batch, arriving):
                continue
            state.make_room(batch)
            if batch.members:
                state.send(batch, [])
        if state.running and state.steps.in_flight:
            return
        if state.waiting or state.running:
            # Also for a prompt that is half computed: of those that nobody waits for, and that had to stop.
            reason = Reason("nothing left to decode", {"waiting": len(state.waiting)})
            state.turn(Phase.PREFILL, reason, now)
            self._prefill(state, now)
        else:
            state.turn(Phase.IDLE, Reason("all done"), now)


def _why_no_prefill(state: PipelineState) -> Reason:
    numbers = {"running": float(len(state.running)), "waiting": float(len(state.waiting))}
    if not state.waiting:
        return Reason("no prompt waits", numbers)
    numbers |= {
        "free": state.allocator.free,
        "blocks": state.allocator.total,
        "reserve": state.admission.reserve,
    }
    return Reason("no room for the next prompt", numbers)


def _situation(state: PipelineState, now: float) -> Situation:
    first = state.waiting.first
    held_up_since = max(state.phase_since, first.arrived) if first else now
    return Situation(
        stages=state.stages,
        microbatches=len(state.batches.batches),
        waiting=len(state.waiting),
        oldest_wait=now - held_up_since,
        decoding=len(state.batches),
        decoding_at_start=state.decoding_at_start,
        blocks_free=state.allocator.free,
        next_fits=first is not None and state.fits(first),
    )
