"""An instance in virtual time that skips over what cannot matter.

It follows the rules of the controller's policies step by step while prompts are computed. While it only
decodes, nothing changes from round to round but the context's length, so all rounds until the next event (an
output ends, memory runs out, the router looks) are done in one stroke, in closed form. It knows the end of
its present step and tells what is so before it: `docs/results/online.md` says how near that is to the
scheduler itself, `exact_instance.py`.

What it has is kept by `prompts.py` and `decode_batch.py`; `step_times.py` says how long its work takes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np

from controller.scheduler.expectation import SeenLengths, expected_answer
from controller.scheduler.fetch_rule import FetchRule
from controller.scheduler.grants import Held
from controller.scheduler.holdings import HeldPrefixes, HoldingsReader
from controller.scheduler.passing_on import HELD_S, PassingOn
from controller.scheduler.prompt_pace import PromptPace
from controller.scheduler.slack import (
    Rows,
    SlackReport,
    WindowPrompt,
    in_window,
    rounds_beside_prompts,
    slack_of,
    window_left_s,
    window_of,
)
from controller.scheduler.step_budget import (
    MOST_PROMPTS,
    StepBudget,
    StepLoad,
    WaitingPrompt,
    coming_of,
    turnover_of,
)
from router.scheduler.instance_report import FOREVER, InstanceReport, Slack
from router.scheduler.policies.roles import PACED_POLICY
from simulator.borrowed import Loans
from simulator.coming import Coming
from simulator.decode_batch import DecodeBatch
from simulator.job import NOT_YET, Job
from simulator.kv_memory import KvMemory
from simulator.prompts import PromptLine, PromptStep
from simulator.slack import as_points, decoding_job, decoding_rows, running_rows
from simulator.step_times import StepTimes
from simulator.transfers import NOT_FETCHED, Arriving, Left, handle_of
from tidepipe_common.latency.dispatch import DISPATCH_S
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.transfer import TransferCosts
from tidepipe_common.settings.defaults import BLOCK_SIZE
from tidepipe_common.types.kv_transfer import NO_TRANSFER, KvTransfer
from tidepipe_common.types.plan import Phase

_SHORT = (1.0, 0.5)
"""Of a round, what is missing while it is under way: all; of one with several steps half, in the mean."""


@dataclass(slots=True)
class _UnderWay:
    """A step, or the last round of several, until it is over: nobody has heard of it.

    tokens: of prompts. steps: that it consists of, each of so many seconds, until `ends`. short: see _SHORT.
    ended: whose last token it has.
    """

    tokens: int
    riding: bool
    steps: int
    each_s: float
    ends: float
    short: float = 0.0
    ended: list[Job] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class InstanceRules:
    """mixed: prompts ride on decode steps in chunks (hybrid batching); else they go first, in steps of their
    own (separate batching, PaDG). budget: tokens of a step at most. paced: as many as targets allow instead.

    prefill_only: the sequence leaves after its prompt (disaggregation). context: of one sequence at most.
    reuse: what is preempted is found again, as far as its memory was not needed. (What requests with content
        find is up to their keys.) tells: reports say what can be found. dispatch_s: what a step costs beside
        computing.
    """

    mixed: bool = False
    budget: int = 2048
    paced: bool = False
    prefill_only: bool = False
    context: int = 1 << 30
    reuse: bool = True
    tells: bool = False
    dispatch_s: float = DISPATCH_S


@dataclass(frozen=True, slots=True)
class _Look:
    """What is told of those who are here, as long as no step has ended and nobody has come: `at` is when.

    decoding, idle, round_s, lost: as of slack_of. peak: tokens of memory. expected: output of an answer.
    """

    at: tuple[float, int, int] | None = None
    decoding: Rows = field(default_factory=lambda: np.empty((0, 4)))
    idle: list[float] = field(default_factory=list)
    round_s: float = 0.0
    lost: float = 1.0
    peak: int = 0
    expected: int = 0


class FastForwardInstance:
    """See the module. All times in seconds, memory in tokens."""

    def __init__(
        self,
        name: str,
        rules: InstanceRules,
        cost: StepCost,
        stages: int,
        kv_tokens: int,
        born: float = 0.0,
        transfer: KvTransfer = NO_TRANSFER,
    ) -> None:
        """transfer: of KV blocks that come here."""
        self.name = name
        self.clock = born
        self.accepted = 0
        self.preemptions = 0
        self.first_tokens: list[Job] = []
        self.ended: list[Job] = []
        self.left: list[Left] = []
        self.arriving: list[Arriving] = []
        self.begun: list[Left] = []
        self._said, self._token_bytes = transfer, transfer.token_bytes
        self._transfers = TransferCosts.of(transfer)
        self._fetch_rule = FetchRule(cost, self._transfers)
        self._fetch_rule.node = transfer.node
        self._lent: dict[Job, Held] = {}
        self._leaving: list[Job] = []
        self._rules = rules
        self._stages = stages
        self._cost = cost
        self._times = StepTimes(cost, stages, rules.dispatch_s)
        self._memory = KvMemory(kv_tokens, rules.context)
        self._reviews: list[tuple[int, int, Job]] = []  # heap by the round in which they are due
        self._loans = Loans(self._memory, self._fetch_rule, rules.budget)
        self._coming = Coming(self._memory, self._loans, self._fetch_rule, transfer.token_bytes, rules.budget)
        self._holdings: HoldingsReader | None = None
        if rules.tells:
            held = HeldPrefixes(BLOCK_SIZE)
            self._memory.listen(held)
            self._holdings = HoldingsReader(held)
        self._tokens = 0
        self._line = PromptLine()
        self._started: list[Job] = []  # prompt done, decodes with the next round
        self._decode_batch = DecodeBatch()
        self._phase = Phase.IDLE
        self._switched = born
        self._last_prefill_s = 0.0
        self._pace = PromptPace()
        self._budget = StepBudget(cost) if rules.paced else None
        self._passing = PassingOn()
        self._seen = SeenLengths()
        self._under: _UnderWay | None = None
        self._looked = _Look()

    def __len__(self) -> int:
        here = len(self._line) + len(self._started) + len(self._decode_batch)
        return here + len(self._coming) + self._loans.waiting

    @property
    def unfinished_tokens(self) -> int:
        """Prompt tokens that are still to be computed."""
        return self._line.left_tokens

    @property
    def held_tokens(self) -> int:
        """Prompt and output so far of all its requests."""
        return self._tokens

    # -- work comes -----------------------------------------------------------------------------------

    def submit(self, job: Job, now: float) -> None:
        """A request; its prompt is to be computed."""
        self.advance(now)
        self._accept(job, now)
        self._queue(job)

    def _accept(self, job: Job, now: float) -> None:
        self.accepted += 1
        job.submitted = now
        self._tokens += job.to_compute

    def _queue(self, job: Job) -> None:
        self._line.add(job)
        self._memory.wait(job)

    def deliver(self, job: Job, now: float) -> None:
        """A request whose prompt was computed elsewhere; its KV cache is here once there is room."""
        self.advance(now)
        job.begun_at, job.given = now, job.generated
        self._line.add_computed(job)
        self._memory.wait(job)
        self._tokens += job.to_compute

    # -- between instances --------------------------------------------------------------------------

    def leave(self, job: Job, now: float) -> None:
        """It is to go on elsewhere, if its prompt is done and it has not ended; `left` says since when. Its
        memory is held until it is released."""
        self.advance(now)
        if job.decoding and self.clock > now:
            self._leaving.append(job)  # behind the step that it is in
        else:
            self._leave(job, now)

    def _leave(self, job: Job, now: float) -> None:
        if job in self._started:
            self._started.remove(job)
            self._passing.left(job.generated - job.given)
            grown = 0
        elif job.decoding and job in self._decode_batch:
            before = job.generated
            grown = self._decode_batch.leave(job)
            self._passing.left(before + grown - job.given)
        else:
            return
        self._lent[job] = self._memory.hand_out(job, grown)
        self._tokens -= job.to_compute
        self.left.append(Left(now, job))
        self._looked = _Look()

    def release(self, job: Job, now: float) -> None:
        """Nobody fetches it any more."""
        if (held := self._lent.pop(job, None)) is not None:
            self._memory.let_go(held)
            self._looked = _Look()

    def receive(self, job: Job, giver: str, now: float) -> None:
        """A request comes from another instance, of that node; `arriving` says what is to be fetched."""
        self.advance(now)
        self.accepted += 1
        self._tokens += job.to_compute
        self._coming.come(job, giver)
        self._plan_coming(now)

    def _plan_coming(self, now: float) -> None:
        self._looked = _Look()
        arriving, computed = self._coming.plan(self._running, now)
        self.arriving += arriving
        for job in reversed(computed):
            self._line.put_back(job)
            self._memory.wait(job)

    @property
    def _running(self) -> int:
        """Requests that have memory, but for those whose blocks are on their way."""
        under_way = sum(0 < job.computed < job.to_compute for job in islice(self._line, 1))
        return len(self._decode_batch) + len(self._started) + under_way

    def fetched(self, one: Arriving, seconds: float, now: float) -> None:
        """Its blocks are here."""
        if one.number == NOT_FETCHED:
            return
        waited = self._loans.fetched(one.number, seconds, now, ahead=one.ahead)
        if waited is not None:
            for job in waited:
                self._queue(job)
        else:
            self._coming.fetched(one.job, one.nbytes, seconds, now)
            self._started.append(one.job)
        self._plan_coming(now)

    def offer(self, job: Job, giver: str, now: float) -> None:
        """Its prompt is being computed at an instance of that node, and it is to go on here; `arriving` says
        what is fetched of its blocks meanwhile."""
        self.advance(now)
        self._looked = _Look()
        job.make_keys()
        if count := whole_blocks(job):
            nbytes = self._loans.offer(job, handle_of(giver, count, self._token_bytes), self._running, now)
            if nbytes:
                self.arriving.append(Arriving(job, nbytes, job.index, ahead=True))

    def decoding(self) -> list[tuple[Job, int]]:
        """All that decode, with their tokens so far."""
        rounds = self._decode_batch
        return [(job, job.generated + rounds.grown(job)) for job in rounds]

    def lend(self, job: Job, now: float) -> int:
        """Keep what is here of its prompt's beginning for another instance: so many tokens."""
        self.advance(now)
        return self._loans.lend(job)

    def take_back(self, job: Job, now: float) -> None:
        """Nobody needs that any more."""
        self._loans.take_back(job)

    def borrow(self, job: Job, tokens: int, giver: str, now: float) -> None:
        """A request, of whose beginning another instance lends so much; `arriving` says what is to be fetched
        for it, if at all."""
        self.advance(now)
        self._accept(job, now)
        handle = handle_of(giver, tokens, self._token_bytes)
        nbytes = self._loans.borrow(job, handle, self._running, now)
        if nbytes is None:
            self._queue(job)
        number = job.index if nbytes else NOT_FETCHED
        self.arriving.append(Arriving(job, nbytes or 0, number))

    # -- time passes ----------------------------------------------------------------------------------

    def advance(self, until: float) -> None:
        """Do everything that begins by then."""
        while self.clock <= until:
            self._hear()
            if self._coming:
                self._plan_coming(self.clock)
            for job in self._loans.late(self.clock):
                self._queue(job)
            if self._line and self._compute_prompts():
                continue
            if self._started:
                self._begin_decoding()
            if not self._decode_batch:
                if self._started and (kept_until := self._started[0].first + HELD_S) < until:
                    self.clock = max(self.clock, kept_until)
                    continue
                self._turn(Phase.IDLE)
                self.clock = max(self.clock, until)
                return
            self._decode(until)

    def drain(self) -> None:
        """Do all there is."""
        while len(self):
            before = len(self), self._decode_batch.number, self._line.left_tokens
            self.advance(self.clock + 600.0)
            if (len(self), self._decode_batch.number, self._line.left_tokens) == before:
                raise RuntimeError(f"instance {self.name} stalled with {len(self)} requests")

    def _compute_prompts(self) -> bool:
        """A step with prompt tokens; False if none can be admitted."""
        rules = self._rules
        room = rules.budget
        if rules.mixed:
            if self._started:
                self._begin_decoding()
            rows = -(-len(self._decode_batch) // self._stages)
            room = max(0, rules.budget - rows) * self._stages
            if self._budget is not None:
                room = self._paced_tokens(rows) * self._stages
        alone = not (self._decode_batch or self._started)
        step = self._line.pack(room, self._memory, whole=not rules.mixed, alone=alone)
        self._started += step.ready
        if not step.jobs:
            return False
        for job in step.jobs:
            if job.passes_on:
                job.passes_on = False
                self.begun.append(Left(self.clock, job))
        if rules.mixed:
            self._mixed_round(step)
        else:
            self._prefill(step)
        return True

    def _paced_tokens(self, rows: int) -> int:
        """Prompt tokens of the next step, as `auto` chooses them."""
        assert self._budget is not None
        rounds = self._decode_batch
        turnover, decoding = running_rows(rounds, self._rules.context)
        waiting = list(islice(self._line, MOST_PROMPTS))
        load = StepLoad(
            rows,
            self._stages,
            rounds.context,
            decoding,
            [WaitingPrompt(_left(job), _due(job) if job.first == NOT_YET else FOREVER) for job in waiting],
            coming_of(self._pace, turnover),
            turnover_of(turnover, self._memory.total),
            self._memory.free,
            self._rules.dispatch_s,
        )
        return self._budget.choose(load, self.clock).prompts

    def _prefill(self, step: PromptStep) -> None:
        self._turn(Phase.PREFILL)
        began = self.clock
        spent = self._times.prompts(step, sum(job.computed == job.to_compute for job in step.jobs))
        self.clock += spent
        self._last_prefill_s = spent
        self._under = _UnderWay(step.tokens, False, 1, spent, self.clock)
        self._prompts_done(step.jobs, began, self.clock + self._times.through(spent, step.tokens))

    def _mixed_round(self, step: PromptStep) -> None:
        self._turn(Phase.MIXED)
        self._make_room()
        rounds = self._decode_batch
        spent = self._times.mixed_round(step, len(rounds), rounds.context)
        self.clock += spent
        self._under = _UnderWay(step.tokens, len(rounds) > 0, 1, spent, self.clock)
        if rounds:
            self._rounds_done(1)
        self._prompts_done(step.jobs, self.clock - spent, self.clock)

    def _prompts_done(self, jobs: list[Job], began: float, at: float) -> None:
        for job in jobs:
            if job.computed < job.to_compute:
                continue
            job.generated += 1
            self._tokens += 1
            if job.first == NOT_YET:
                job.first = at
                self.first_tokens.append(job)
            elif job.resumed == NOT_YET:
                job.resumed = max(job.first, began)
            if job.begun_at == NOT_YET:
                job.begun_at = at
            if job.generated >= job.output or self._rules.prefill_only:
                if job.generated >= job.output:
                    self._end(job, at)
                self._memory.leave(job, 0)
                self._tokens -= job.to_compute
            else:
                self._started.append(job)

    def _begin_decoding(self) -> None:
        """Those whose prompts are done join the rounds: the prefill window, if there was one, is over."""
        if not self._rules.mixed and self._stages > 1 and self._phase is Phase.PREFILL:
            # Decode steps are shorter than the last prefill step: each stage waits for it.
            step = self._times.empty_round(len(self._decode_batch) + len(self._started)) / self._stages
            self.clock += (self._stages - 1) * max(0.0, self._last_prefill_s - step)
        kept = [job for job in self._started if self._keeps(job)]
        begin = [job for job in self._started if job not in kept] if kept else self._started
        for job in begin:
            job.resumed = min(job.resumed, max(self.clock, job.first))
            if job.generated == 1 and self._passing.expected:
                self._passing.waited_for()
        self._decode_batch.join(begin)
        for job in begin:
            self._review_later(job, job.generated)
        self._started = kept

    def _keeps(self, job: Job) -> bool:
        """Does it wait for its way out?"""
        return self._budget is not None and self._passing.keeps(job.first, self.clock)

    def _decode(self, until: float) -> None:
        self._turn(Phase.DECODE)
        self._make_room()
        sequences = len(self._decode_batch)
        time = self._times.rounds(sequences, self._decode_batch.context)
        most = min(self._decode_batch.to_next_end, self._memory.free // sequences)
        count = max(1, min(most, time.rounds(until - self.clock)))
        began, stages = self.clock, self._stages
        self.clock += time.seconds(count)
        each = (self.clock - began) / (count * stages)
        if count > 1:
            self._pace.decoded((count - 1) * stages, began + each, self.clock - stages * each)
        self._under = _UnderWay(0, False, stages, each, self.clock)
        self._rounds_done(count)

    def _rounds_done(self, count: int) -> None:
        grown = count * len(self._decode_batch)
        self._memory.grow(grown)
        self._memory.forecast.advance(count)
        self._tokens += grown
        assert self._under is not None, "it has begun"
        self._under.short = _SHORT[self._stages > 1]
        self._under.ended = self._decode_batch.go(count)
        for job in self._under.ended:
            self._end(job, self.clock)

    def _hear(self) -> None:
        """What was under way is over."""
        if (step := self._under) is None:
            return
        self._under = None
        if step.tokens:
            self._pace.computed(step.tokens, riding=step.riding, now=step.ends)
        else:
            self._pace.decoded(step.steps, step.ends - (step.steps - 1) * step.each_s, step.ends)
        rounds = self._decode_batch
        for job in step.ended:
            # What ends it is none of its tokens.
            self._seen.note(job.output - 1, (one.generated + rounds.grown(one) for one in rounds))
            self._memory.leave(job, rounds.grown(job))
            self._tokens -= job.to_compute
        leaving, self._leaving = self._leaving, []
        for job in leaving:
            self._leave(job, step.ends)
        self._review()

    def _review_later(self, job: Job, produced: int) -> None:
        due = self._decode_batch.number + max(1, job.review_at - produced)
        heapq.heappush(self._reviews, (due, job.index, job))

    def _review(self) -> None:
        """Forecasts of those that outlived them are made anew."""
        rounds = self._decode_batch
        while self._reviews and self._reviews[0][0] <= rounds.number:
            _, _, job = heapq.heappop(self._reviews)
            if job.decoding and job.index in self._memory.forecast:
                produced = job.generated + rounds.grown(job)
                self._memory.foresee(job, produced)
                self._review_later(job, produced)

    def _end(self, job: Job, at: float) -> None:
        # What ends it is none of its tokens.
        self._passing.stayed(job.output - 1 - job.given)
        job.finished = at
        self.ended.append(job)

    def _make_room(self) -> None:
        """Every sequence needs a token's room: the newest give way, and are computed again."""
        rounds = self._decode_batch
        while len(rounds) > 1 and self._memory.free < len(rounds):
            job = rounds.give_way()
            if self._rules.reuse:
                job.make_keys()
            self._memory.leave(job, rounds.grown(job))
            job.preemptions += 1
            self.preemptions += 1
            self._line.put_back(job)
            self._memory.wait(job)

    def _turn(self, phase: Phase) -> None:
        if phase is self._phase:
            return
        self._phase, self._switched = phase, self.clock

    def check(self) -> None:
        """AssertionError unless its memory is accounted for (for tests)."""
        ended = self._under.ended if self._under else []
        here = [*self._line, *self._started, *self._decode_batch, *ended, *self._coming.fetching]
        self._memory.check(here, [*self._loans.held, *self._lent.values()])

    # -- what the router hears ------------------------------------------------------------------------

    def status(self, now: float, *, slack: bool) -> InstanceReport:
        """A report of how it is now, though the end of the step under way is known. slack: reckon it."""
        if self.clock <= now:
            self._hear()
        under = self._under
        memory = self._memory
        not_yet = [job for job in self._started if job.first > now]
        window, left = window_of(
            chain(
                (_waiting(job) for job in self._line),
                (
                    WindowPrompt(min(job.begins_at, job.prompt), job.prompt, job.prompt)
                    for job in self._started
                    if job.first > now or in_window(job.first, self._phase, self._switched)
                ),
            )
        )
        until = window_left_s((_due(job) for job in chain(self._line, not_yet)), now)
        # Those that came with their blocks and wait for memory were promised it.
        came = sum(job.to_compute for job in self._line if job.computed == job.to_compute)
        waiting = [job for job in self._line if not job.computed]
        promised = sum(job.to_compute + 1 - job.expected_cached for job in waiting)
        coming = self._coming.tokens + came
        rows = len(self._decode_batch) + (len(under.ended) if under else 0)
        found, peak, expected = Slack(), memory.used + promised, 0
        if slack:
            found = as_points(self.reckon_slack(now), now)
            peak, expected = self._looked.peak, self._looked.expected
        return InstanceReport(
            taken=now,
            accepted=self.accepted,
            phase=self._phase,
            switched=self._switched,
            sequences=len(self) + (len(under.ended) if under else 0),
            tokens=self._tokens - len(not_yet) - round(under.short * rows if under else 0.0),
            kv_free=max(0, memory.free - promised - coming),
            kv_total=memory.total,
            kv_peak=peak + coming,
            expected_output=expected,
            window=window,
            left=left,
            window_deadline=FOREVER if until is None else now + until,
            slack=found,
            policy=PACED_POLICY if self._rules.paced else "",
            holdings=None if self._holdings is None else self._holdings.next(),
            transfer=replace(
                self._said, far=self._transfers.far.way(now), near=self._transfers.near.way(now)
            ),
        )

    def _expected(self) -> int:
        """Of an answer here; of those that are here only if that is needed."""
        if (seen := self._seen.belief) is not None:
            return expected_answer(seen, ())
        ended = self._under.ended if self._under else []
        everybody = chain(self._line, self._started, self._decode_batch, ended, self._coming.jobs)
        return expected_answer(None, [job.expected for job in everybody])

    def reckon_slack(self, now: float) -> SlackReport | None:
        """Slack as the controller reports it, who has not heard of the step under way."""
        here = self.clock, self.accepted, len(self._line)
        if self._looked.at != here:
            self._looked = self._look(now, here)
        look = self._looked
        return slack_of(look.decoding, look.idle, look.round_s, now, look.lost)

    def _look(self, now: float, at: tuple[float, int, int]) -> _Look:
        rules, under = self._rules, self._under
        ended = under.ended if under else []
        decoding = decoding_rows(self._decode_batch, rules.context, under.short if under else 0.0)
        beside = [decoding_job(job, job.output - 1, rules.context) for job in ended]
        idle = [job.slo.tpot_s for job in self._line]
        done = 0
        for job in self._started:
            if job.first > now:
                idle.append(job.slo.tpot_s)
                continue
            done += 1
            if not in_window(job.first, self._phase, self._switched):
                beside.append(decoding_job(job, job.generated, rules.context))
        if beside:
            decoding = np.concatenate((decoding, np.array(beside, float)))
        pinned = sum(len(one.blocks) for one in chain(self._loans.held, self._lent.values()))
        round_s, lost = rounds_beside_prompts(
            self._cost,
            self._pace,
            here=len(self) + len(ended),
            decoding=len(self._decode_batch) + len(ended) + done,
            context=self._memory.context - pinned * BLOCK_SIZE,
            stages=self._stages,
            step_tokens=rules.budget,
            paid_s=self._budget.paid_s if self._budget is not None else 0.0,
            rides=rules.mixed,
            dispatch_s=rules.dispatch_s,
        )
        waiting = [job for job in self._line if not job.computed]
        return _Look(
            at, decoding, idle, round_s, lost, int(self._memory.peak_with(waiting)), self._expected()
        )


def whole_blocks(job: Job) -> int:
    """Tokens of its prompt that can go ahead of it: but for the block of the last one."""
    return (job.prompt - 1) // BLOCK_SIZE * BLOCK_SIZE


def _due(job: Job) -> float:
    """When its first token must be there."""
    return job.arrival + job.slo.ttft_s


def _left(job: Job) -> int:
    """Tokens of its prompt that are to be computed, as far as that is known."""
    return job.to_compute - (job.computed or job.expected_cached)


def _waiting(job: Job) -> WindowPrompt:
    """One whose prompt is not computed yet."""
    if job.computed:
        return WindowPrompt(job.begins_at, job.computed, job.to_compute)
    return WindowPrompt(job.expected_cached, job.expected_cached, job.to_compute)
