"""The scheduler of one pipeline: what happens to sequences. What the next steps contain is a policy's choice.

    actions = scheduler.on(event, now)

Steps travel through the stages in the order of dispatch (first in, first out), which makes two things safe:
blocks may be reused as soon as no *later* plan uses them, and the chunks of a long prompt may follow each
other without waiting for results.
"""

from __future__ import annotations

from collections.abc import Callable

from common.latency.correction import LearningCost
from common.latency.work import work_of
from common.plan import Phase, SampledTokens
from common.sampling import FinishReason, PositionLogprobs, SamplingParams
from controller.core.actions import Action, Emit, Finish, Reason, Refusal, Refused
from controller.core.admission import WaitingLine
from controller.core.changeover import take_over
from controller.core.decode import DecodeBatches, MicroBatch
from controller.core.events import (
    Event,
    LengthPredicted,
    NewSequence,
    PolicyChosen,
    SequenceCancelled,
    SequencesArrived,
    StagesLost,
    StagesReady,
    StepDone,
    Tick,
)
from controller.core.ledger import KvLedger
from controller.core.policies import Policy, TemporalPolicy
from controller.core.sequence import Sequence, State
from controller.core.state import PipelineState, SchedulerConfig
from controller.core.stats import SchedulerStats
from controller.core.steps import Step

__all__ = ["Scheduler", "SchedulerConfig"]

MAX_FAILURES = 3
"""Failed steps after which a sequence that was part of all of them is given up."""
_NONE: frozenset[int] = frozenset()


class Scheduler:
    """Decides what the stages of one pipeline do next. Pure: same events, same actions."""

    def __init__(
        self,
        config: SchedulerConfig,
        policy: Policy | None = None,
        cost: LearningCost | None = None,
        policies: Callable[[str], Policy | None] = lambda name: None,
    ) -> None:
        """cost: learns from the stage times of results; the policy may plan with it.

        policies: makes the policy of a name, for those who choose another one later.
        """
        self.config = config
        self.policy: Policy = policy or TemporalPolicy()
        self.sequences: dict[str, Sequence] = {}
        self.state = PipelineState(config)
        self._cost = cost
        self._policies = policies
        self._eos = frozenset(config.eos_token_ids)
        self._deadlines = 0

    @property
    def stats(self) -> SchedulerStats:
        """Counters since start."""
        return self.state.stats

    @property
    def waiting(self) -> WaitingLine:
        """Sequences that hold no KV blocks."""
        return self.state.waiting

    @property
    def ledger(self) -> KvLedger:
        """Who owns which KV block."""
        return self.state.ledger

    @property
    def batches(self) -> DecodeBatches:
        """The micro-batches."""
        return self.state.batches

    @property
    def phase(self) -> Phase:
        """What the instance is busy with."""
        return self.state.phase

    @property
    def phase_since(self) -> float:
        """When the phase began, the core's clock."""
        return self.state.phase_since

    @property
    def running(self) -> int:
        """Sequences that hold KV blocks."""
        return len(self.state.running)

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that context and KV pool allow."""
        return self.state.longest_sequence

    # -- events -------------------------------------------------------------------------------------

    def on(self, event: Event, now: float) -> list[Action]:
        """Take note of what happened, and decide. `now`: seconds on any steady clock, never falling."""
        match event:
            case StepDone():
                self._step_done(event, now)
            case SequencesArrived():
                self._arrived(event.sequences, now)
            case SequenceCancelled():
                if sequence := self.sequences.get(event.sequence_id):
                    self._end(sequence, FinishReason.CANCELLED)
            case LengthPredicted():
                if sequence := self.sequences.get(event.sequence_id):
                    sequence.predicted_p50, sequence.predicted_p90 = event.p50, event.p90
                    self.state.waiting.changes += 1
            case StagesReady():
                self._stages_ready(event)
            case StagesLost():
                self._stages_lost(event, now)
            case PolicyChosen():
                self._change_policy(event.name, now)
            case Tick():
                self._expire(now)
        state = self.state
        if state.stages:
            self.policy.plan(state, now)
        actions, state.actions = state.actions, []
        return actions

    def _arrived(self, arrivals: tuple[NewSequence, ...], now: float) -> None:
        taken = [self._new_sequence(arrival, now) for arrival in arrivals if self._acceptable(arrival)]
        self.state.waiting.add(taken)
        for sequence in taken:
            if len(sequence.output) >= sequence.max_tokens:
                self._end(sequence, FinishReason.LENGTH)

    def _acceptable(self, arrival: NewSequence) -> bool:
        if arrival.sequence_id in self.sequences:
            return False
        refusal: Refused | None = None
        room = self.longest_sequence - len(arrival.prompt)
        if len(self.sequences) >= self.config.max_sequences:
            detail = f"{len(self.sequences)} sequences are here already, the most that are accepted"
            refusal = Refused(arrival.sequence_id, Refusal.QUEUE_FULL, detail)
        elif room < 1 or not arrival.prompt:
            detail = (
                f"the prompt has {len(arrival.prompt)} tokens; it must have at least 1 and leave room for "
                f"output within {self.longest_sequence} tokens"
            )
            refusal = Refused(arrival.sequence_id, Refusal.INVALID, detail)
        if refusal:
            self.state.actions.append(refusal)
        return refusal is None

    def _new_sequence(self, arrival: NewSequence, now: float) -> Sequence:
        room = self.longest_sequence - len(arrival.prompt)
        limit = arrival.sampling.max_tokens
        sequence = Sequence(
            sequence_id=arrival.sequence_id,
            prompt=arrival.prompt,
            sampling=arrival.sampling,
            max_tokens=room if limit is None else min(limit, room),
            arrived=now,
            deadline=arrival.deadline,
            output=list(arrival.output),
            given=len(arrival.output),
            first_token_due=arrival.first_token_due,
            tpot_s=arrival.tpot_s,
            end_tokens=self._end_tokens(arrival.sampling),
        )
        self.sequences[sequence.sequence_id] = sequence
        self._deadlines += sequence.deadline is not None
        return sequence

    def _end_tokens(self, sampling: SamplingParams) -> frozenset[int]:
        if not sampling.stop_token_ids:
            return _NONE if sampling.ignore_eos else self._eos
        return frozenset(sampling.stop_token_ids) | (_NONE if sampling.ignore_eos else self._eos)

    def _stages_ready(self, event: StagesReady) -> None:
        microbatches = self.config.microbatches or self.policy.microbatches(event.stages)
        self.state.start_epoch(event.stages, event.kv_blocks, microbatches)
        longest = self.longest_sequence
        for sequence in list(self.sequences.values()):
            # Taken before the pool's size was known, or by a larger pool that is no more.
            sequence.max_tokens = min(sequence.max_tokens, longest - len(sequence.prompt))
            if len(sequence.output) >= sequence.max_tokens:
                reason = FinishReason.LENGTH if sequence.output else FinishReason.ERROR
                detail = f"the prompt does not fit into the instance's KV pool of {longest} tokens"
                self._end(sequence, reason, error="" if sequence.output else detail)

    def _stages_lost(self, event: StagesLost, now: float) -> None:
        state = self.state
        failed = None if event.failed_step is None else state.steps.done(event.failed_step)
        lost = state.end_epoch()
        state.turn(Phase.IDLE, Reason(f"stages lost: {event.detail}", {"recompute": len(lost)}), now)
        for sequence in failed.rows if failed else ():
            # One request that breaks the stages again and again must not hold up all others.
            sequence.failures += 1
            if sequence.failures >= MAX_FAILURES and sequence.state is State.WAITING:
                self._end(sequence, FinishReason.ERROR, error=f"failed repeatedly: {event.detail}")

    def _expire(self, now: float) -> None:
        if not self._deadlines:
            return
        late = [s for s in self.sequences.values() if s.deadline is not None and now >= s.deadline]
        for sequence in late:
            self._end(sequence, FinishReason.DEADLINE)

    def _change_policy(self, name: str, now: float) -> None:
        policy = None if name == self.policy.name else self._policies(name)
        if policy is None:
            return
        before, self.policy = self.policy.name, policy
        if self.state.stages:
            batches = self.config.microbatches or policy.microbatches(self.state.stages)
            take_over(self.state, policy, batches, Reason(f"policy {name} after {before}"), now)

    def _step_done(self, event: StepDone, now: float) -> None:
        state = self.state
        step = state.steps.done(event.step_id)
        if step is None:
            return
        if step.batch is not None:
            state.batches.returned(step.batch)
        if self._cost is not None and event.stage_s:
            self._cost.observe(step.phase, work_of(step.plan), max(event.stage_s))
        self._take_tokens(step, event.sampled, now)
        state.stats.count_step(step.tokens - step.decode_rows, step.decode_rows)

    def _take_tokens(self, step: Step, sampled: SampledTokens, now: float) -> None:
        """Append what was sampled; end, review or place whoever it is time for."""
        due: list[tuple[Sequence, int]] = []
        # Once per sequence and step, and so the most expensive loop of the controller.
        for sequence, token in zip(step.sampled, sampled.token_ids, strict=True):
            length = sequence.length + 1
            if length >= sequence.look_at or token in sequence.end_tokens:
                due.append((sequence, token))
            else:
                sequence.length = length
                sequence.output.append(token)
        kept, stopped, dropped = _sort_out(due)
        self._deliver(step.sampled, sampled, dropped)
        for sequence, token in stopped:
            self._end(sequence, FinishReason.STOP, token, batch=step.batch)
        state = self.state
        for sequence in kept:
            if len(sequence.output) >= sequence.max_tokens:
                self._end(sequence, FinishReason.LENGTH, batch=step.batch)
                continue
            if sequence.length >= sequence.review_at:
                state.gate.admitted(sequence, state.seen.belief)
            arrives = sequence.state is State.PREFILL
            sequence.decodes()
            if arrives:
                if sequence.first_token_at is None:
                    sequence.first_token_at = now
                self.policy.place(state, sequence, step.batch)

    def _deliver(self, rows: tuple[Sequence, ...], sampled: SampledTokens, dropped: set[Sequence]) -> None:
        """Emit the tokens of all rows but the dropped ones."""
        token_ids, logprobs = sampled.token_ids, sampled.logprobs
        if dropped:
            kept = [index for index, sequence in enumerate(rows) if sequence not in dropped]
            rows = tuple([rows[index] for index in kept])
            token_ids = tuple([token_ids[index] for index in kept])
            logprobs = tuple([logprobs[index] for index in kept]) if logprobs else ()
        if not rows:
            return
        self.state.stats.output_tokens += len(rows)
        wanted: list[PositionLogprobs | None] = [
            None if sequence.sampling.logprobs is None else own
            for sequence, own in zip(rows, logprobs, strict=False)
        ]
        ids = tuple([sequence.sequence_id for sequence in rows])
        self.state.actions.append(Emit(ids, token_ids, tuple(wanted)))

    # -- life of a sequence -------------------------------------------------------------------------

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        stop_token: int | None = None,
        error: str = "",
        batch: MicroBatch | None = None,
    ) -> None:
        """batch: where the sequence probably is, if known."""
        state = self.state
        if sequence.state is State.WAITING:
            state.waiting.discard(sequence)
        else:
            state.leave(sequence, batch)
        sequence.state = State.ENDED
        del self.sequences[sequence.sequence_id]
        self._deadlines -= sequence.deadline is not None
        state.stats.finished += 1
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            state.seen.note(len(sequence.output), state.running.values())
        state.actions.append(
            Finish(
                sequence.sequence_id, reason, len(sequence.output), stop_token, error, sequence.preemptions
            )
        )


def _sort_out(
    due: list[tuple[Sequence, int]],
) -> tuple[list[Sequence], list[tuple[Sequence, int]], set[Sequence]]:
    """Of sequences with their next tokens: those that keep it (appended here), those that it ends, and all
    whose token is not delivered: besides those it ends, whoever was cancelled while it was in flight."""
    kept, stopped, dropped = [], [], set()
    for sequence, token in due:
        if sequence.state is State.ENDED:
            dropped.add(sequence)
        elif token in sequence.end_tokens:
            dropped.add(sequence)
            stopped.append((sequence, token))
        else:
            sequence.output.append(token)
            sequence.length += 1
            kept.append(sequence)
    return kept, stopped, dropped
