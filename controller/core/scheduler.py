"""The scheduler: TD-Pipe's temporally-disaggregated scheduling of one pipeline.

    actions = scheduler.on(event, now)

Steps travel through the stages in the order of dispatch (first in, first out), which makes two things safe:
blocks may be reused as soon as no *later* plan uses them, and the chunks of a long prompt may follow each
other without waiting for results.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from common.plan import Phase, SampledTokens
from common.sampling import FinishReason
from controller.core.actions import Action, Emit, Finish, PhaseSwitched, Preempted, Reason, Refusal, Refused
from controller.core.admission import AdmissionRules, WaitingLine, fits
from controller.core.decode import DecodeBatches, MicroBatch
from controller.core.events import (
    Event,
    LengthPredicted,
    NewSequence,
    SequenceCancelled,
    SequencesArrived,
    StagesLost,
    StagesReady,
    StepDone,
    Tick,
)
from controller.core.ledger import KvLedger
from controller.core.policy import PhasePolicy, Situation, TemporalPolicy
from controller.core.sequence import Sequence, State
from controller.core.stats import SchedulerStats
from controller.core.steps import StepBook

MAX_FAILURES = 3
"""Failed steps after which a sequence that was part of all of them is given up."""


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Settings of one instance's scheduler.

    context_length: tokens of one sequence at most. block_size: tokens per KV block.
    prefill_tokens: tokens of one prefill step at most; longer prompts are computed in chunks.
    microbatches: decode micro-batches; 0 means one more than stages, so that a stage always has its next
        plan before it finishes the present one.
    max_sequences: running and waiting together; beyond it the queue is full.
    """

    context_length: int
    eos_token_ids: tuple[int, ...]
    block_size: int = 16
    prefill_tokens: int = 256
    microbatches: int = 0
    max_sequences: int = 8192
    admission: AdmissionRules = field(default_factory=AdmissionRules)


class Scheduler:
    """Decides what the stages of one pipeline do next. Pure: same events, same actions."""

    def __init__(self, config: SchedulerConfig, policy: PhasePolicy | None = None) -> None:
        self.config = config
        self.policy: PhasePolicy = policy or TemporalPolicy()
        self.stats = SchedulerStats()
        self.sequences: dict[str, Sequence] = {}
        self.waiting = WaitingLine()
        self.ledger = KvLedger(0, config.block_size)
        self.batches = DecodeBatches(1)
        self.phase = Phase.IDLE
        self.phase_since = 0.0
        self._steps = StepBook(config.eos_token_ids)
        self._stages = 0
        self._running: dict[str, Sequence] = {}
        self._prefilling: list[Sequence] = []
        self._decoding_at_start = 0
        self._actions: list[Action] = []

    # -- events -------------------------------------------------------------------------------------

    def on(self, event: Event, now: float) -> list[Action]:
        """Take note of what happened, and decide. `now`: seconds on any steady clock, never falling."""
        match event:
            case StepDone():
                self._step_done(event, now)
            case SequencesArrived():
                for arrival in event.sequences:
                    self._arrived(arrival, now)
            case SequenceCancelled():
                if sequence := self.sequences.get(event.sequence_id):
                    self._end(sequence, FinishReason.CANCELLED)
            case LengthPredicted():
                if sequence := self.sequences.get(event.sequence_id):
                    sequence.predicted_p50, sequence.predicted_p90 = event.p50, event.p90
            case StagesReady():
                self._stages_ready(event)
            case StagesLost():
                self._stages_lost(event, now)
            case Tick():
                self._expire(now)
        if self._stages:
            self._plan(now)
        actions, self._actions = self._actions, []
        return actions

    def _arrived(self, event: NewSequence, now: float) -> None:
        if event.sequence_id in self.sequences:
            return
        if len(self.sequences) >= self.config.max_sequences:
            detail = f"{len(self.sequences)} sequences are here already, the most that are accepted"
            self._actions.append(Refused(event.sequence_id, Refusal.QUEUE_FULL, detail))
            return
        room = self.longest_sequence - len(event.prompt)
        if room < 1 or not event.prompt:
            detail = (
                f"the prompt has {len(event.prompt)} tokens; it must have at least 1 and leave room for "
                f"output within {self.longest_sequence} tokens"
            )
            self._actions.append(Refused(event.sequence_id, Refusal.INVALID, detail))
            return
        limit = event.sampling.max_tokens
        sequence = Sequence(
            sequence_id=event.sequence_id,
            prompt=event.prompt,
            sampling=event.sampling,
            max_tokens=room if limit is None else min(limit, room),
            arrived=now,
            deadline=event.deadline,
            output=list(event.output),
        )
        self.sequences[sequence.sequence_id] = sequence
        self.waiting.add(sequence)
        if len(sequence.output) >= sequence.max_tokens:
            self._end(sequence, FinishReason.LENGTH)

    @property
    def running(self) -> int:
        """Sequences that hold KV blocks."""
        return len(self._running)

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that context and KV pool allow."""
        if not self._stages:
            return self.config.context_length
        return min(self.config.context_length, self.ledger.capacity_tokens)

    def _stages_ready(self, event: StagesReady) -> None:
        self._stages = event.stages
        self.ledger = KvLedger(event.kv_blocks, self.config.block_size)
        self.batches = DecodeBatches(self.config.microbatches or event.stages + 1)
        longest = self.longest_sequence
        for sequence in list(self.sequences.values()):
            # Taken before the pool's size was known, or by a larger pool that is no more.
            sequence.max_tokens = min(sequence.max_tokens, longest - len(sequence.prompt))
            if len(sequence.output) >= sequence.max_tokens:
                reason = FinishReason.LENGTH if sequence.output else FinishReason.ERROR
                detail = f"the prompt does not fit into the instance's KV pool of {longest} tokens"
                self._end(sequence, reason, error="" if sequence.output else detail)

    def _stages_lost(self, event: StagesLost, now: float) -> None:
        failed = None if event.failed_step is None else self._steps.done(event.failed_step)
        lost = list(self._running.values())
        for sequence in lost:
            self._forget_progress(sequence)
            sequence.in_flight = 0
            sequence.preemptions += 1
        self.waiting.put_back(lost)
        self._running.clear()
        self._prefilling.clear()
        self._steps.reset()
        self.batches = DecodeBatches(1)
        self._stages = 0
        self._turn(Phase.IDLE, Reason(f"stages lost: {event.detail}", {"recompute": len(lost)}), now)
        for sequence in failed.rows if failed else ():
            # One request that breaks the stages again and again must not hold up all others.
            sequence.failures += 1
            if sequence.failures >= MAX_FAILURES and sequence.state is State.WAITING:
                self._end(sequence, FinishReason.ERROR, error=f"failed repeatedly: {event.detail}")

    def _expire(self, now: float) -> None:
        late = [s for s in self.sequences.values() if s.deadline is not None and now >= s.deadline]
        for sequence in late:
            self._end(sequence, FinishReason.DEADLINE)

    def _step_done(self, event: StepDone, now: float) -> None:
        step = self._steps.done(event.step_id)
        if step is None:
            return
        if step.batch is not None:
            step.batch.in_flight = False
        for sequence in step.rows:
            sequence.in_flight -= 1
        for index, sequence in enumerate(step.sampled):
            if sequence.state is State.ENDED:
                continue  # cancelled while it was in flight
            self._token(sequence, event.sampled, index)
            if sequence.state is State.PREFILL:
                sequence.state = State.DECODE
                self.batches.add(sequence)
        self.stats.count_step(step.phase, step.tokens)

    def _token(self, sequence: Sequence, sampled: SampledTokens, index: int) -> None:
        token = sampled.token_ids[index]
        params = sequence.sampling
        ends = token in params.stop_token_ids or (
            not params.ignore_eos and token in self.config.eos_token_ids
        )
        if ends:
            self._end(sequence, FinishReason.STOP, stop_token=token)
            return
        offset = len(sequence.output)
        sequence.output.append(token)
        self.stats.output_tokens += 1
        wanted = params.logprobs is not None and sampled.logprobs
        logprobs = (sampled.logprobs[index],) if wanted else ()
        self._actions.append(Emit(sequence.sequence_id, offset, (token,), logprobs))
        if len(sequence.output) >= sequence.max_tokens:
            self._end(sequence, FinishReason.LENGTH)

    # -- life of a sequence -------------------------------------------------------------------------

    def _end(
        self, sequence: Sequence, reason: FinishReason, stop_token: int | None = None, error: str = ""
    ) -> None:
        if sequence.state is State.WAITING:
            self.waiting.discard(sequence)
        else:
            self._leave(sequence)
        sequence.state = State.ENDED
        del self.sequences[sequence.sequence_id]
        self.stats.finished += 1
        self._actions.append(
            Finish(
                sequence.sequence_id, reason, len(sequence.output), stop_token, error, sequence.preemptions
            )
        )

    def _leave(self, sequence: Sequence) -> None:
        """Take a running sequence out of whatever holds it."""
        del self._running[sequence.sequence_id]
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        self.batches.discard(sequence)
        self._steps.release(sequence.key)
        self._forget_progress(sequence)

    def _forget_progress(self, sequence: Sequence) -> None:
        self.ledger.release(sequence.blocks)
        sequence.state = State.WAITING
        sequence.planned = 0
        sequence.key = 0

    def _preempt(self, sequence: Sequence, reason: Reason) -> None:
        self._leave(sequence)
        sequence.preemptions += 1
        self.stats.preemptions += 1
        self.waiting.put_back([sequence])
        self._actions.append(Preempted(sequence.sequence_id, reason))

    # -- decisions ----------------------------------------------------------------------------------

    def _plan(self, now: float) -> None:
        """Dispatch as much as may be in flight, turning phases where the policy says so."""
        if self.phase is Phase.DECODE and self.waiting:
            verdict = self.policy.turn_to_prefill(self._situation(now))
            if verdict.yes:
                self._turn(Phase.PREFILL, verdict.reason, now)
        elif self.phase is Phase.IDLE and self.waiting:
            self._turn(Phase.PREFILL, Reason("work arrived", {"waiting": len(self.waiting)}), now)
        if self.phase is Phase.PREFILL:
            self._prefill(now)
        if self.phase is Phase.DECODE:
            self._decode(now)

    def _situation(self, now: float) -> Situation:
        first = self.waiting.first
        held_up_since = max(self.phase_since, first.arrived) if first else now
        return Situation(
            stages=self._stages,
            microbatches=len(self.batches.batches),
            waiting=len(self.waiting),
            oldest_wait=now - held_up_since,
            decoding=len(self.batches),
            decoding_at_start=self._decoding_at_start,
            blocks_free=self.ledger.free,
            blocks_total=self.ledger.total,
            next_fits=first is not None and self._fits(first),
        )

    def _fits(self, candidate: Sequence) -> bool:
        return fits(candidate, self._running.values(), self.ledger, self.config.admission)

    def _prefill(self, now: float) -> None:
        # One step more than stages: each computes one, and the first has its next one waiting.
        while self._steps.in_flight <= self._stages:
            rows: list[tuple[Sequence, int]] = []
            budget = self.config.prefill_tokens
            while budget > 0 and (sequence := self._next_to_prefill()):
                count = min(budget, sequence.length - sequence.planned)
                rows.append((sequence, count))
                sequence.planned += count
                budget -= count
                if sequence.planned == sequence.length:
                    self._prefilling.remove(sequence)
            if not rows:
                reason = self._why_no_prefill()
                after = Phase.DECODE if self._running else Phase.IDLE
                self._turn(after, reason, now)
                return
            self._actions.append(self._steps.prefill(rows))

    def _next_to_prefill(self) -> Sequence | None:
        """The sequence whose prompt is under way, or the next one that may be admitted."""
        if self._prefilling:
            return self._prefilling[0]
        candidate = self.waiting.first
        if candidate is None or not self._fits(candidate):
            return None
        self.waiting.take()
        candidate.state = State.PREFILL
        candidate.key = self._steps.new_key()
        candidate.admitted_order = candidate.key
        self._running[candidate.sequence_id] = candidate
        self._prefilling.append(candidate)
        # All blocks of the prompt at once: a prompt under way never starves.
        self.ledger.extend(candidate.blocks, candidate.length)
        return candidate

    def _why_no_prefill(self) -> Reason:
        numbers = {"running": float(len(self._running)), "waiting": float(len(self.waiting))}
        if not self.waiting:
            return Reason("no prompt waits", numbers)
        numbers |= {"free": self.ledger.free, "blocks": self.ledger.total}
        return Reason("no room for the next prompt", numbers)

    def _decode(self, now: float) -> None:
        arriving = len(self._running) - len(self.batches)
        for batch in self.batches.idle():
            self.stats.steals += self.batches.rebalance(batch, arriving)
            if self.batches.lacks_company(batch, arriving):
                continue
            self._make_room(batch)
            if batch.members:
                batch.in_flight = True
                self._actions.append(self._steps.decode(batch, self.ledger))
        if not self._running:
            if self.waiting:
                self._turn(
                    Phase.PREFILL, Reason("nothing left to decode", {"waiting": len(self.waiting)}), now
                )
                self._prefill(now)
            else:
                self._turn(Phase.IDLE, Reason("all done"), now)

    def _make_room(self, batch: MicroBatch) -> None:
        """Preempt (recompute, newest first) until every member has a block for its next token."""
        while (needed := self._blocks_needed(batch)) > self.ledger.free:
            decoding = [s for s in self._running.values() if s.state is State.DECODE]
            victim = max(decoding, key=lambda s: s.admitted_order)
            if victim.in_flight:
                # It cannot lose its blocks now, and an older one should not for its sake:
                # whoever lacks a block sits this step out.
                short = [s for s in batch.members if self.ledger.missing(s.blocks, s.length)]
                loser = max(short, key=lambda s: s.admitted_order)
                batch.members.remove(loser)
                self.batches.add(loser)
            else:
                reason = Reason("KV blocks ran out", {"needed": needed, "free": self.ledger.free})
                self._preempt(victim, reason)

    def _blocks_needed(self, batch: MicroBatch) -> int:
        return sum(self.ledger.missing(s.blocks, s.length) for s in batch.members)

    def _turn(self, phase: Phase, reason: Reason, now: float) -> None:
        if phase is self.phase:
            return
        self._actions.append(PhaseSwitched(self.phase, phase, reason))
        self.stats.count_switch(self.phase, phase, reason)
        self.phase, self.phase_since = phase, now
        if phase is Phase.DECODE:
            self._decoding_at_start = len(self._running)
