"""The scheduler of one pipeline: what happens to sequences. What the next steps contain is a policy's choice.

    actions = scheduler.on(event, now)

Steps travel through the stages in the order of dispatch (first in, first out), which makes two things safe:
blocks may be reused as soon as no *later* plan uses them, and the chunks of a long prompt may follow each
other without waiting for results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from controller.scheduler.actions import Action, Emit, Finish, PromptRead, Reason, Refusal, Refused
from controller.scheduler.admission import WaitingQueue
from controller.scheduler.background import Background
from controller.scheduler.block_store import BlockStore
from controller.scheduler.decode import DecodeBatches, MicroBatch
from controller.scheduler.events import (
    BlocksFetched,
    Event,
    HandOverAsked,
    LengthPredicted,
    NewSequence,
    PolicyChosen,
    PrefixAsked,
    PrefixCacheCleared,
    PrefixOffered,
    SequenceCancelled,
    SequencesArrived,
    StagesLost,
    StagesReady,
    StepDone,
    Tick,
)
from controller.scheduler.hand_over import HandOver
from controller.scheduler.inquest import Inquest, Span
from controller.scheduler.policies import Policy, TemporalPolicy
from controller.scheduler.policies.mixed import MixedSteps
from controller.scheduler.sequence import Sequence, State
from controller.scheduler.state import PipelineState, SchedulerConfig
from controller.scheduler.stats import SchedulerStats
from controller.scheduler.steps import Step
from tidepipe_common.latency.correction import LearningCost
from tidepipe_common.latency.transfer import TransferCost, TransferCosts
from tidepipe_common.latency.work import work_of
from tidepipe_common.types.plan import Phase, RowError, SampledTokens
from tidepipe_common.types.prompt_reading import PromptPiece
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs, SamplingParams

__all__ = ["Scheduler", "SchedulerConfig"]

_NONE: frozenset[int] = frozenset()
UNKNOWN_BYTES_PER_S = 1e9
"""Between instances, before anything is known of it."""


class Scheduler:
    """Decides what the stages of one pipeline do next. Pure: same events, same actions."""

    def __init__(
        self,
        config: SchedulerConfig,
        policy: Policy | None = None,
        cost: LearningCost | None = None,
        policies: Callable[[str], tuple[Policy, SchedulerConfig] | None] = lambda name: None,
        hand_over: HandOver | None = None,
    ) -> None:
        """cost: learns from the stage times of results; the policy may plan with it.

        policies: makes the policy of a name, with its settings, for those who choose another one later.
        hand_over: of sequences to other instances and from them; None: one that knows nothing yet.
        """
        self.policy: Policy = policy or TemporalPolicy()
        self.sequences: dict[str, Sequence] = {}
        self.state = PipelineState(config, cost)
        self.background = Background(cost)
        self.hand_over = hand_over or HandOver(cost, TransferCosts(TransferCost(UNKNOWN_BYTES_PER_S)))
        self._cost = cost
        self._policies = policies
        self._inquest = Inquest()
        self._in_flight: dict[Sequence, Span] = {}
        self._loss = ""
        self._eos = frozenset(config.eos_token_ids)
        self._deadlines = 0

    @property
    def config(self) -> SchedulerConfig:
        """Settings; another policy brings its own."""
        return self.state.config

    @property
    def stats(self) -> SchedulerStats:
        """Counters since start."""
        return self.state.stats

    @property
    def waiting(self) -> WaitingQueue:
        """Sequences that hold no KV blocks."""
        return self.state.waiting

    @property
    def allocator(self) -> BlockStore:
        """Who uses which KV block."""
        return self.state.allocator

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
        self.state.steps.now = now
        match event:
            case StepDone():
                self._step_done(event, now)
            case SequencesArrived():
                self._arrived(event.sequences, now)
            case SequenceCancelled():
                if sequence := self.sequences.get(event.sequence_id):
                    self._end(sequence, FinishReason.CANCELLED)
                else:
                    self.hand_over.release(event.sequence_id, self.state)
            case HandOverAsked():
                asked = [
                    (self.sequences[name], ticket)
                    for name, ticket in event.sequences
                    if name in self.sequences
                ]
                self.hand_over.leave(asked, event.lease_s, event.reason, self.state)
            case PrefixAsked():
                self.hand_over.loans.lend(event, self.state, now)
            case PrefixOffered():
                if self.state.stages:
                    self.hand_over.loans.fetch_ahead(event, self.state, now)
            case BlocksFetched():
                self._fetched(event, now)
            case LengthPredicted():
                if sequence := self.sequences.get(event.sequence_id):
                    self._predicted(sequence, event)
            case StagesReady():
                self._stages_ready(event)
            case StagesLost():
                self._stages_lost(event, now)
            case PolicyChosen():
                self._change_policy(event.name, now)
            case PrefixCacheCleared():
                self.state.forget_prefixes()
                self.hand_over.loans.forget_prefixes()
            case Tick():
                self._expire(now)
        state = self.state
        for sequence in self.hand_over.ready_to_leave(state):
            self.hand_over.hand_out(sequence, state, now)
            self._take_out(sequence)
        if state.stages:
            if self._inquest.open:
                self._try_suspects(now)
            if not self._inquest.open:
                for sequence in self.hand_over.plan(state, now):
                    self._wait(sequence)
                self.background.plan(state, now)
                self.policy.plan(state, now)
                self.hand_over.announcements.note(state, now)
        actions, state.actions = state.actions, []
        return actions

    def _arrived(self, arrivals: tuple[NewSequence, ...], now: float) -> None:
        taken = [sequence for arrival in arrivals if (sequence := self._take(arrival, now))]
        computed = [sequence for sequence in taken if not self.hand_over.arrive(sequence, self.state, now)]
        self.background.add(sequence for sequence in computed if sequence.background)
        self.state.waiting.add(sequence for sequence in computed if not sequence.background)
        for sequence in taken:
            if sequence.background and sequence.state is State.FETCHED:
                self.background.came(sequence)
        for sequence in taken:
            if len(sequence.output) >= sequence.max_tokens and not sequence.silent:
                self._end(sequence, FinishReason.LENGTH)

    def _take(self, arrival: NewSequence, now: float) -> Sequence | None:
        """None: it is here already, or was refused."""
        if arrival.sequence_id in self.sequences:
            return None
        longest = self.longest_sequence
        refused = refusal(arrival, longest, len(self.sequences), self.config.max_sequences)
        if refused is not None:
            self.state.actions.append(refused)
            return None
        sequence = new_sequence(arrival, longest, self._eos, now, reuse=self.config.prefix_caching)
        self.sequences[arrival.sequence_id] = sequence
        self._deadlines += sequence.deadline is not None
        return sequence

    def _stages_ready(self, event: StagesReady) -> None:
        microbatches = self.config.microbatches or self.policy.microbatches(event.stages)
        self.state.start_epoch(event.stages, event.kv_blocks, microbatches, event.offload)
        self.hand_over.rule.node = event.node
        if event.kv_bytes_per_s:
            self.hand_over.transfers.expect(event.kv_bytes_per_s)
        # A link that broke, however often at the same place, says nothing of what it carried.
        in_flight, self._in_flight = self._in_flight, {}
        self._blame(in_flight if event.replaced else {}, certain=False)
        longest = self.longest_sequence
        for sequence in list(self.sequences.values()):
            # Taken before the pool's size was known, or by a larger pool that is no more.
            sequence.max_tokens = min(sequence.max_tokens, longest - len(sequence.prompt))
            goes_on = sequence.silent and sequence.max_tokens > 0
            if len(sequence.output) >= sequence.max_tokens and not goes_on:
                reason = FinishReason.LENGTH if sequence.output else FinishReason.ERROR
                detail = f"the prompt does not fit into the instance's KV pool of {longest} tokens"
                self._end(sequence, reason, error="" if sequence.output else detail)

    def _stages_lost(self, event: StagesLost, now: float) -> None:
        state = self.state
        certain = event.failed_step is not None
        step_ids = event.open_steps if event.failed_step is None else (event.failed_step,)
        rows: dict[Sequence, Span] = {}
        for step in filter(None, map(state.steps.done, step_ids)):
            for sequence, begin, end in step.places():
                known = rows.get(sequence)
                rows[sequence] = Span(known.begin if known else begin, end)
        findable = state.allocator.findable
        for sequence in self.hand_over.stages_lost(state):
            self._wait(sequence)
        lost = state.end_epoch()
        numbers = {"recompute": len(lost), "forgotten_blocks": findable}
        state.turn(Phase.IDLE, Reason(f"stages lost: {event.detail}", numbers), now)
        self._loss, self._in_flight = event.detail, {} if certain else rows
        if certain:
            self._blame(rows, certain=True)

    def _blame(self, rows: dict[Sequence, Span], *, certain: bool) -> None:
        guilty = self._inquest.blame(rows, certain=certain)
        if guilty is not None:
            detail = f"the request cannot be computed, also alone: {self._loss}"
            self._end(guilty, FinishReason.ERROR, error=detail)

    def _try_suspects(self, now: float) -> None:
        """Run them apart, before all else; the policy goes on when none is left."""
        state = self.state
        numbers = {"suspects": self._inquest.suspects}
        state.turn(Phase.MIXED, Reason("suspects of a lost step run apart", numbers), now)
        self._inquest.plan(state)
        if not self._inquest.open:
            batches = self.config.microbatches or self.policy.microbatches(state.stages)
            take_over(state, self.policy, batches, Reason("no suspect is left"), now)

    def _expire(self, now: float) -> None:
        if not self._deadlines:
            return
        late = [s for s in self.sequences.values() if s.deadline is not None and now >= s.deadline]
        for sequence in late:
            self._end(sequence, FinishReason.DEADLINE)

    def _change_policy(self, name: str, now: float) -> None:
        chosen = None if name == self.policy.name else self._policies(name)
        if chosen is None:
            return
        policy, config = chosen
        before, self.policy = self.policy.name, policy
        self.state.adopt(config)
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
        # The time of copies is no model's, nor what is read off prompts.
        usual = not step.plan.copies and not event.sampled.prompts
        if self._cost is not None and event.stage_s and usual:
            self._cost.observe(step.phase, work_of(step.plan), max(event.stage_s))
        if event.waits_s and usual:
            links_s = (state.stages - 1) * self._cost.transfer_s(step.tokens) if self._cost else 0.0
            state.dispatch.observe(now - step.planned_at, event.stage_s, event.waits_s, links_s)
        if event.sampled.errors:
            self._end_failed(step, event.sampled.errors)
        if event.sampled.prompts:
            self._take_prompts(step, event.sampled.prompts)
        self._take_tokens(step, event.sampled, now)
        prompts = step.tokens - step.decode_rows
        state.stats.count_step(prompts, step.decode_rows)
        state.prompt_pace.computed(prompts, riding=step.decode_rows > 0, now=now)

    def _end_failed(self, step: Step, errors: tuple[RowError, ...]) -> None:
        """End those that the stages could name; the step result passes over who has ended."""
        by_key = {sequence.key: sequence for sequence in step.rows}
        for error in errors:
            sequence = by_key.get(error.key)
            if sequence is not None and sequence.state is not State.ENDED:
                self._end(
                    sequence, FinishReason.ERROR, error=error.detail, fault=error.fault, batch=step.batch
                )

    def _take_prompts(self, step: Step, pieces: tuple[PromptPiece, ...]) -> None:
        """Hand on what was read off prompts; who has ended is passed over."""
        by_key = {sequence.key: sequence for sequence in step.rows}
        for piece in pieces:
            sequence = by_key.get(piece.key)
            if sequence is None or sequence.state is State.ENDED:
                continue
            if piece.first + piece.count >= len(sequence.prompt):
                sequence.prompt_read = True
            self.state.actions.append(PromptRead(sequence.sequence_id, piece))

    def _predicted(self, sequence: Sequence, event: LengthPredicted) -> None:
        sequence.predicted_p50, sequence.predicted_p90 = event.p50, event.p90
        sequence.predicted_at = event.at
        if sequence.state is State.WAITING:
            self.state.waiting.changes += 1
        if sequence.sequence_id not in self.state.running:
            return
        # Such as one that has grown, or has begun to answer behind its thought.
        self.state.admission.admitted(sequence, self.state.seen.belief)
        if sequence.state is State.DECODE:
            sequence.decodes()

    def _take_tokens(self, step: Step, sampled: SampledTokens, now: float) -> None:
        """End, review or place whoever it is time for."""
        step_result = apply_samples(step.sampled, sampled)
        if step_result.emit is not None:
            self.state.stats.output_tokens += len(step_result.emit.token_ids)
            self.state.actions.append(step_result.emit)
        for sequence, token in step_result.stopped:
            self._end(sequence, FinishReason.STOP, token, batch=step.batch)
        state = self.state
        for sequence in step_result.due:
            if len(sequence.output) >= sequence.max_tokens or sequence.silent:
                self._end(sequence, FinishReason.LENGTH, batch=step.batch)
                continue
            if sequence.length >= sequence.review_at:
                state.admission.admitted(sequence, state.seen.belief)
            arrives = sequence.state is State.PREFILL
            sequence.decodes()
            if arrives:
                if sequence.first_token_at is None:
                    sequence.first_token_at = now
                self.policy.place(state, sequence, step.batch)

    def _fetched(self, event: BlocksFetched, now: float) -> None:
        """Blocks of a sequence have come, and it goes on behind them; or not."""
        state = self.state
        arrived = self.hand_over.fetched(event.fetched, state, now)
        if arrived is None:
            return
        sequence, positions = arrived
        if not positions:
            self._wait(sequence)
            return
        decodes = state.filled(sequence, positions)
        if decodes:
            sequence.first_token_at = now
            sequence.decodes()
            self.policy.place(state, sequence, None)
        if state.phase is Phase.IDLE:
            wake(state, self.policy, Reason("a sequence came with its blocks", {"positions": positions}), now)

    # -- life of a sequence -------------------------------------------------------------------------

    def _wait(self, sequence: Sequence) -> None:
        """One that came with blocks is to be computed here after all."""
        if sequence.background:
            self.background.ended(sequence)
            self.background.add([sequence])
        else:
            self.state.waiting.put_back([sequence])

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        stop_token: int | None = None,
        error: str = "",
        fault: str | None = None,
        batch: MicroBatch | None = None,
    ) -> None:
        """fault: see Finish. batch: where the sequence probably is, if known."""
        state = self.state
        self._take_out(sequence, batch)
        state.stats.finished += 1
        state.passing_on.stayed(len(sequence.output) - sequence.given)
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            state.seen.note(len(sequence.output), (len(one.output) for one in state.running.values()))
        state.actions.append(
            Finish(
                sequence.sequence_id,
                reason,
                len(sequence.output),
                stop_token,
                error,
                sequence.preemptions,
                fault,
            )
        )

    def _take_out(self, sequence: Sequence, batch: MicroBatch | None = None) -> None:
        """It holds nothing any more, and is not here any more. batch: see `_end`."""
        state, before = self.state, sequence.state
        outside = sequence.background and self.background.ended(sequence)
        self.hand_over.ended(sequence, state)
        if before is State.WAITING:
            if not outside:
                state.waiting.discard(sequence)
        elif before is not State.FETCHED:
            state.leave(sequence, batch)
        sequence.state = State.ENDED
        self._inquest.forget(sequence)
        del self.sequences[sequence.sequence_id]
        self._deadlines -= sequence.deadline is not None


# -- what a router hands over ----------------------------------------------------------------------


def refusal(arrival: NewSequence, longest: int, here: int, most: int) -> Refused | None:
    """Why it cannot be taken, if so.

    longest: tokens of the longest sequence. here: sequences that are here already; most: as many as may be.
    """
    if here >= most:
        detail = f"{here} sequences are here already, the most that are accepted"
        return Refused(arrival.sequence_id, Refusal.QUEUE_FULL, detail)
    if arrival.prompt and len(arrival.prompt) < longest:
        return None
    detail = (
        f"the prompt has {len(arrival.prompt)} tokens; it must have at least 1 and leave room for "
        f"output within {longest} tokens"
    )
    return Refused(arrival.sequence_id, Refusal.INVALID, detail)


def new_sequence(
    arrival: NewSequence, longest: int, eos: frozenset[int], now: float, *, reuse: bool = True
) -> Sequence:
    """One that waits. longest: its tokens at most. eos: what ends it unless it ignores that.

    reuse: it may share KV blocks, if it says with whom.
    """
    room = longest - len(arrival.prompt)
    limit, sampling = arrival.sampling.max_tokens, arrival.sampling
    silent = sampling.reads_prompt and limit is not None and len(arrival.output) >= limit
    if silent:
        # Its last step samples a token like any other's, which is not wanted.
        limit = len(arrival.output) + 1
    reuse = reuse and not sampling.needs_whole_prompt
    return Sequence(
        sequence_id=arrival.sequence_id,
        prompt=arrival.prompt,
        sampling=sampling,
        max_tokens=room if limit is None else min(limit, room),
        arrived=now,
        deadline=arrival.deadline,
        output=list(arrival.output),
        given=len(arrival.output),
        first_token_due=arrival.first_token_due,
        adapter=arrival.adapter,
        trace_context=arrival.trace_context,
        kv=arrival.kv,
        ahead=arrival.ahead if reuse else "",
        tpot_s=arrival.tpot_s,
        priority=arrival.priority,
        background=arrival.background,
        end_tokens=_end_tokens(arrival.sampling, eos),
        silent=silent,
        prefix_root=bytes.fromhex(arrival.prefix_root) if reuse else b"",
        keys=list(arrival.keys) if reuse else [],
    )


def _end_tokens(sampling: SamplingParams, eos: frozenset[int]) -> frozenset[int]:
    usual = _NONE if sampling.ignore_eos else eos
    # Mostly one set serves all sequences.
    return usual.union(sampling.stop_token_ids) if sampling.stop_token_ids else usual


# -- what a step's results do to its sequences ------------------------------------------------------


class StepResult(NamedTuple):
    """emit: the tokens to deliver, None if there are none.

    stopped: sequences that a token of theirs ends. due: sequences that it is time to look at.
    """

    emit: Emit | None
    stopped: list[tuple[Sequence, int]]
    due: list[Sequence]


def apply_samples(rows: tuple[Sequence, ...], sampled: SampledTokens) -> StepResult:
    """Append to each sequence of a step what was sampled for it."""
    marked: list[tuple[Sequence, int]] = []
    # Once per sequence and step, and so the most expensive loop of the controller.
    for sequence, token in zip(rows, sampled.token_ids, strict=True):
        length = sequence.length + 1
        if length >= sequence.next_check_length or token in sequence.end_tokens:
            marked.append((sequence, token))
        else:
            sequence.length = length
            sequence.output.append(token)
    due, stopped = [], []
    dropped: set[Sequence] = set()
    for sequence, token in marked:
        if sequence.state is State.ENDED:  # cancelled while its token was in flight
            dropped.add(sequence)
        elif sequence.silent:
            dropped.add(sequence)
            due.append(sequence)
        elif token in sequence.end_tokens:
            dropped.add(sequence)
            stopped.append((sequence, token))
        else:
            sequence.output.append(token)
            sequence.length += 1
            due.append(sequence)
    return StepResult(_emit(rows, sampled, dropped), stopped, due)


def _emit(rows: tuple[Sequence, ...], sampled: SampledTokens, dropped: set[Sequence]) -> Emit | None:
    """The tokens of all rows but the dropped ones."""
    token_ids, logprobs = sampled.token_ids, sampled.logprobs
    if dropped:
        kept = [index for index, sequence in enumerate(rows) if sequence not in dropped]
        rows = tuple([rows[index] for index in kept])
        token_ids = tuple([token_ids[index] for index in kept])
        logprobs = tuple([logprobs[index] for index in kept]) if logprobs else ()
    if not rows:
        return None
    wanted: list[PositionLogprobs | None] = [
        None if sequence.sampling.logprobs is None else own
        for sequence, own in zip(rows, logprobs, strict=False)
    ]
    ids = tuple([sequence.sequence_id for sequence in rows])
    return Emit(ids, token_ids, tuple(wanted))


# -- from one policy to another, while steps are in flight ------------------------------------------


def take_over(state: PipelineState, policy: Policy, microbatches: int, reason: Reason, now: float) -> None:
    """Put the pipeline's state into a form that `policy` goes on from. Nothing is lost or recomputed.

    A policy with phases finds itself in one: it finishes prompts that are under way first. One with mixed
    steps knows no phases, and finds prompts under way in `prefilling` and decoding sequences in batches.
    """
    state.batches.resize(microbatches)
    if state.phase is not Phase.IDLE:
        wake(state, policy, reason, now)


def wake(state: PipelineState, policy: Policy, reason: Reason, now: float) -> None:
    """Turn to the phase in which a policy goes on with what is there."""
    if isinstance(policy, MixedSteps):
        state.turn(Phase.MIXED, reason, now)
    else:
        state.turn(Phase.PREFILL if state.prefilling or state.waiting else Phase.DECODE, reason, now)
