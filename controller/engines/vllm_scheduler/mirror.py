"""What the brain believes of an engine that owns the KV blocks itself, kept equal to what that engine says.

The brain plans; the engine does what it can of a plan; `happened` takes what it really did. The engine's word
counts: a small difference is corrected in place, and for every other one `rebuild` makes the brain's state
anew from the engine's, once nothing is in flight. Pure: no clock, nothing of vLLM.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Set
from collections.abc import Sequence as Many
from dataclasses import replace
from typing import NamedTuple

from controller.runtime.scheduler_spec import SchedulerSpec
from controller.scheduler.actions import Action, Dispatch, PhaseSwitched, Preempted, Reason, Refused
from controller.scheduler.events import (
    LengthPredicted,
    NewSequence,
    PrefixCacheCleared,
    SequenceCancelled,
    SequencesArrived,
    StagesLost,
    StagesReady,
    StepDone,
    Tick,
)
from controller.scheduler.scheduler import take_over
from controller.scheduler.sequence import Sequence, State
from controller.scheduler.steps import Step
from tidepipe_common.types.plan import Phase, PlanRow, SampledTokens, StepPlan

END = -1
"""Stands for the token that the engine ended a sequence with, whatever its own rules for that are."""


class Row(NamedTuple):
    """A sequence's part of a step. decode: its newest token, nothing of a prompt."""

    sequence_id: str
    tokens: int
    decode: bool


class Wanted(NamedTuple):
    """The next step, as the brain wants it. preempt: who is to lose its blocks before it."""

    step_id: int
    phase: str
    rows: Many[Row]
    preempt: Many[str]

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(row.tokens for row in self.rows)


class Did(NamedTuple):
    """What the engine did with one sequence in a step: `tokens` behind the first `began` ones."""

    began: int
    tokens: int


class Held(NamedTuple):
    """A sequence that holds blocks at the engine, of which so many tokens are computed."""

    sequence_id: str
    output: Many[int]
    computed: int


class Mirror:
    """The brain of one pipeline and its state, as the engine's mirror."""

    def __init__(self, spec: SchedulerSpec, stages: int, blocks: int) -> None:
        """blocks: that sequences can have, of the spec's size."""
        self.scheduler, self.cost = spec.build(eos_token_ids=(END,))
        self.turns: list[PhaseSwitched] = []
        self.differences: Counter[str] = Counter()
        self._stages = stages
        self._blocks = blocks
        self._plans: deque[StepPlan] = deque()
        self._preempt: list[str] = []
        self._do(self.scheduler.on(StagesReady(1, stages, blocks), 0.0))

    @property
    def ahead(self) -> int:
        """Plans that the engine was not given yet."""
        return len(self._plans)

    # -- what the engine is told by others ----------------------------------------------------------

    def arrived(self, sequences: Iterable[NewSequence], now: float) -> list[Refused]:
        """New ones; returns those that the brain does not take."""
        return self._do(self.scheduler.on(SequencesArrived(tuple(sequences)), now))

    def predicted(self, sequence_id: str, p50: float, p90: float, now: float) -> None:
        """How long its output is expected to become, tokens."""
        self._do(self.scheduler.on(LengthPredicted(sequence_id, p50, p90), now))

    def cancelled(self, sequence_id: str, now: float) -> None:
        """The engine ended it for another reason than a token of a step."""
        self._do(self.scheduler.on(SequenceCancelled(sequence_id), now))

    def prefixes_cleared(self, now: float) -> None:
        """The engine forgot what it had computed before."""
        self._do(self.scheduler.on(PrefixCacheCleared(), now))

    # -- step by step -------------------------------------------------------------------------------

    def next(self, now: float) -> Wanted | None:
        """The next step; None if the brain wants none now."""
        while self._plans:
            step_id = self._plans.popleft().step_id
            step = self._without_ended(step_id)
            if step.rows:
                decodes = step.decode_rows
                rows = [
                    Row(sequence.sequence_id, count, index < decodes)
                    for index, (sequence, (_, count)) in enumerate(
                        zip(step.rows, _spans(step.plan), strict=True)
                    )
                ]
                preempt, self._preempt = self._preempt, []
                return Wanted(step_id, step.phase.value, rows, preempt)
            self._do(self.scheduler.on(StepDone(step_id, SampledTokens(())), now))
        return None

    def _without_ended(self, step_id: int) -> Step:
        """The step, less those that ended after it was planned: the engine does not know them any more."""
        steps = self.scheduler.state.steps
        step = steps.open(step_id)
        kept = [i for i, sequence in enumerate(step.rows) if sequence.state is not State.ENDED]
        if len(kept) < len(step.rows):
            step = _of_rows(step, {i: step.plan.rows[i] for i in kept})
            steps.replace(step)
        return step

    def happened(self, step_id: int, did: Mapping[str, Did], preempted: Set[str]) -> bool:
        """What the engine made of a step that it was given; False: only `rebuild` makes us equal again."""
        state = self.scheduler.state
        step = state.steps.open(step_id)
        agreed = not preempted
        if preempted:
            self.differences["the engine preempted"] += 1
        changed: dict[int, Did | None] = {}
        for index, (sequence, (first, count)) in enumerate(zip(step.rows, _spans(step.plan), strict=True)):
            done = did.get(sequence.sequence_id)
            if done is None or sequence.sequence_id in preempted:
                self.differences["a row was not scheduled"] += 1
                changed[index] = None
                agreed = False
                continue
            if done == (first, count):
                continue
            end = done.began + done.tokens
            if index < step.decode_rows or sequence.planned != first + count or end > sequence.length:
                self.differences["a row has other tokens"] += 1
                agreed = False
                continue
            # It found more or less in its cache than we thought.
            self.differences["a prompt begins elsewhere"] += 1
            if sequence.begins_at == first:
                sequence.begins_at = done.began
            sequence.planned = end
            if end < sequence.length and sequence not in state.prefilling:
                state.prefilling.insert(0, sequence)
            elif end == sequence.length and sequence in state.prefilling:
                state.prefilling.remove(sequence)
            changed[index] = done
        if changed:
            state.steps.replace(_changed(step, changed))
        return agreed

    def done(
        self, step_id: int, tokens: Mapping[str, int], ended: Set[str], seconds: float, now: float
    ) -> bool:
        """A step's result: the token of each sequence that has one. False: see `happened`.

        ended: sequences that the engine ended with this step. seconds: that each stage took for it, 0 if
        that is not known.
        """
        state = self.scheduler.state
        if not state.steps.holds(step_id):
            return False
        step = state.steps.open(step_id)
        sampled, agreed = [], True
        for sequence in step.sampled:
            name = sequence.sequence_id
            if name in ended or sequence.state is State.ENDED:
                sampled.append(END)
            elif name in tokens:
                sampled.append(tokens[name])
            else:
                self.differences["a row has no token"] += 1
                sampled.append(END)
                agreed = False
        times = (seconds,) if seconds > 0.0 else ()
        self._do(self.scheduler.on(StepDone(step_id, SampledTokens(tuple(sampled)), times), now))
        for name in ended:
            if name in self.scheduler.sequences:
                self.cancelled(name, now)
        return agreed

    # -- from nothing -------------------------------------------------------------------------------

    def rebuild(self, held: Many[Held], everyone: Many[NewSequence], now: float) -> list[Refused] | None:
        """Make our state the engine's, of which nothing is in flight; None: it does not fit into our blocks.

        everyone: all that the engine has, in its order, with their output so far; those held as well.
        """
        scheduler, state = self.scheduler, self.scheduler.state
        self.differences["state made anew"] += 1
        self._plans.clear()
        self._preempt.clear()
        scheduler.on(StagesLost("the engine's state is taken over"), now)
        for name in list(scheduler.sequences):
            scheduler.on(SequenceCancelled(name), now)
        refused = self._do(scheduler.on(SequencesArrived(tuple(everyone)), now))
        state.start_epoch(self._stages, self._blocks, self._batches())
        fits = True
        for engine in held:
            sequence = scheduler.sequences.get(engine.sequence_id)
            if sequence is None or not fits:
                continue
            if state.allocator.blocks_for(sequence.length) > state.allocator.free:
                fits = False
                continue
            state.waiting.discard(sequence)
            state.resume(sequence, engine.computed)
        if not fits:
            return None
        if state.running:
            reason = Reason("the engine's state is taken over", {"running": len(state.running)})
            state.turn(Phase.DECODE, reason, now)
            take_over(state, scheduler.policy, self._batches(), reason, now)
        self._do(scheduler.on(Tick(), now))
        return refused

    def _batches(self) -> int:
        scheduler = self.scheduler
        return scheduler.config.microbatches or scheduler.policy.microbatches(self._stages)

    def _do(self, actions: Iterable[Action]) -> list[Refused]:
        refused = []
        for action in actions:
            if isinstance(action, Dispatch):
                self._plans.append(action.plan)
            elif isinstance(action, Preempted):
                self._preempt.append(action.sequence_id)
            elif isinstance(action, PhaseSwitched):
                self.turns.append(action)
            elif isinstance(action, Refused):
                refused.append(action)
        return refused


def _spans(plan: StepPlan) -> list[tuple[int, int]]:
    """First position and tokens of each row, without an object for each of them."""
    decodes = [(position, 1) for position in plan.decode.positions]
    return decodes + [(row.first_position, row.count) for row in plan.listed]


def _changed(step: Step, changed: Mapping[int, Did | None]) -> Step:
    """The same step with other tokens in some rows, by their place; None: without the row."""
    rows: dict[int, PlanRow] = {}
    for index, (sequence, row) in enumerate(zip(step.rows, step.plan.rows, strict=True)):
        if index not in changed:
            rows[index] = row
        elif did := changed[index]:
            sample = did.began + did.tokens == sequence.length
            rows[index] = replace(row, first_position=did.began, count=did.tokens, sample=sample)
    return _of_rows(step, rows)


def _of_rows(step: Step, rows: Mapping[int, PlanRow]) -> Step:
    """The same step with these of its rows, by their place; decode rows are listed like the others then."""
    listed = tuple(rows.values())
    sequences = tuple(step.rows[index] for index in rows)
    decodes = sum(index < step.decode_rows for index in rows)
    sampled: tuple[Sequence, ...] = tuple(
        sequence for sequence, row in zip(sequences, listed, strict=True) if row.sample
    )
    plan = StepPlan(step.plan.step_id, step.plan.phase, listed, step.plan.starts, step.plan.releases)
    tokens = sum(row.count for row in listed)
    return replace(step, tokens=tokens, decode_rows=decodes, rows=sequences, sampled=sampled, plan=plan)
