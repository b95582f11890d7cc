"""An instance in virtual time that skips over what cannot matter.

It follows the rules of the controller's policies step by step while prompts are computed. While it only
decodes, nothing changes from round to round but the context's length, so all rounds until the next event (an
output ends, memory runs out, the router looks) are done in one stroke, in closed form. That makes it ten to
twenty times as fast as the scheduler itself, and near enough: see `docs/results/online.md` for the comparison
and `exact_instance.py` for the scheduler in its place.

What it has is kept by `prompts.py` and `decode_batch.py`; `step_times.py` says how long its work takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np

from controller.scheduler.fetch_rule import Fetching, FetchRule
from controller.scheduler.holdings import HeldPrefixes, HoldingsReader
from controller.scheduler.passing_on import HELD_S, PassingOn
from controller.scheduler.prompt_pace import PromptPace
from controller.scheduler.slack import (
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
from simulator.decode_batch import DecodeBatch
from simulator.job import NOT_YET, Job
from simulator.kv_memory import KvMemory
from simulator.prompts import PromptLine, PromptStep
from simulator.slack import as_points, decoding_job, decoding_rows, expected_mean, growth, running_rows
from simulator.step_times import StepTimes
from simulator.transfers import NOT_FETCHED, Arriving, Left, handle_of
from tidepipe_common.latency.dispatch import DISPATCH_S
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.transfer import TransferCosts
from tidepipe_common.settings.defaults import BLOCK_SIZE
from tidepipe_common.types.kv_transfer import NO_TRANSFER, KvFetched, KvTransfer
from tidepipe_common.types.plan import Phase

SLACK_S = 0.4
"""Age that slack may reach in a report: reckoning it takes longer than simulating."""


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
        self._ahead: set[Job] = set()
        self._fetches: dict[tuple[Job, bool], Fetching] = {}
        """Of those that come, and of what goes ahead of them (True)."""
        self._said, self._token_bytes = transfer, transfer.token_bytes
        self._transfers = TransferCosts.of(transfer)
        self._fetch_rule = FetchRule(cost, self._transfers)
        self._fetch_rule.node = transfer.node
        self._coming = self._under_way = 0
        self._lent: dict[Job, int] = {}
        self._rules = rules
        self._stages = stages
        self._cost = cost
        self._times = StepTimes(cost, stages, rules.dispatch_s)
        self._memory = KvMemory(kv_tokens)
        self._loans = Loans(self._memory, self._fetch_rule, rules.budget)
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
        self._slack = Slack()
        self._growth = self._expected = 0
        self._slack_at = -1.0

    def __len__(self) -> int:
        here = len(self._line) + len(self._started) + len(self._decode_batch)
        return here + self._under_way + self._loans.waiting

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
        self._line.add_computed(job)
        self._memory.wait(job)
        self._tokens += job.to_compute

    # -- between instances --------------------------------------------------------------------------

    def leave(self, job: Job, now: float) -> None:
        """It is to go on elsewhere, if its prompt is done and it has not ended; `left` says since when. Its
        memory is held until it is released."""
        if job in self._started:
            self._started.remove(job)
            self._passing.left(job.generated)
            grown = 0
        elif job.decoding and job in self._decode_batch:
            before = job.generated
            grown = self._decode_batch.leave(job)
            self._passing.left(before + grown)
        else:
            return
        self._lent[job] = grown
        self._tokens -= job.to_compute
        self.left.append(Left(max(now, self.clock), job))

    def release(self, job: Job, now: float) -> None:
        """Nobody fetches it any more."""
        if job in self._lent:
            self._memory.leave(job, self._lent.pop(job))

    def receive(self, job: Job, giver: str, now: float) -> None:
        """A request comes from another instance, of that node; `arriving` says what is to be fetched."""
        self.accepted += 1
        self._under_way += 1
        self._coming += job.to_compute
        self._tokens += job.to_compute
        here = whole_blocks(job) if job in self._ahead else 0
        self._ahead.discard(job)
        self._fetch(job, giver, job.to_compute - 1, here, now)

    def fetched(self, one: Arriving, ahead: float, seconds: float, now: float) -> None:
        """Its blocks are here. ahead: bytes that were under way before them."""
        if one.number == NOT_FETCHED:
            return
        news = KvFetched(one.number, nbytes=round(one.nbytes), seconds=seconds)
        if fetching := self._fetches.pop((one.job, one.ahead), None):
            self._fetch_rule.ended(fetching, news, now)
        if one.ahead:
            return
        if (waited := self._loans.fetched(one.number, ahead, seconds, now)) is not None:
            for job in waited:
                self._queue(job)
            return
        self._under_way -= 1
        self._coming -= one.job.to_compute
        self._tokens -= one.job.to_compute
        self.deliver(one.job, now)

    def offer(self, job: Job, giver: str, now: float) -> None:
        """Its prompt is being computed at an instance of that node, and it is to go on here; `arriving` says
        what is fetched of its blocks meanwhile."""
        if count := whole_blocks(job):
            self._ahead.add(job)
            self._fetch(job, giver, count, 0, now, ahead=True)

    def _fetch(
        self, job: Job, giver: str, tokens: int, here: int, now: float, *, ahead: bool = False
    ) -> None:
        """Of so many tokens of it what is not here, from an instance of that node."""
        handle, nbytes = handle_of(giver, tokens, self._token_bytes), (tokens - here) * self._token_bytes
        rest = tokens - here < here
        self._fetches[job, ahead] = self._fetch_rule.begin(handle, round(nbytes), now, ahead=ahead, rest=rest)
        self.arriving.append(Arriving(job, nbytes, job.index, ahead))

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
        others = len(self._started) + len(self._decode_batch)
        handle = handle_of(giver, tokens, self._token_bytes)
        nbytes = self._loans.borrow(job, handle, others, now)
        if nbytes is None:
            self._queue(job)
        number = job.index if nbytes else NOT_FETCHED
        self.arriving.append(Arriving(job, nbytes or 0, number))

    # -- time passes ----------------------------------------------------------------------------------

    def advance(self, until: float) -> None:
        """Do everything that begins by then."""
        while self.clock <= until:
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
        spent = self._times.prompts(step, sum(job.computed == job.to_compute for job in step.jobs))
        self.clock += spent
        self._last_prefill_s = spent
        self._pace.computed(step.tokens, riding=False, now=self.clock)
        self._prompts_done(step.jobs, self.clock + self._times.through(spent, step.tokens))

    def _mixed_round(self, step: PromptStep) -> None:
        self._turn(Phase.MIXED)
        self._make_room()
        rounds = self._decode_batch
        spent = self._times.mixed_round(step, len(rounds), rounds.context)
        self.clock += spent
        self._pace.computed(step.tokens, riding=len(rounds) > 0, now=self.clock)
        if rounds:
            self._rounds_done(1)
        self._prompts_done(step.jobs, self.clock)

    def _prompts_done(self, jobs: list[Job], at: float) -> None:
        for job in jobs:
            if job.computed < job.to_compute:
                continue
            if job.first == NOT_YET:
                job.first = at
                job.generated = 1
                self._tokens += 1
                self.first_tokens.append(job)
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
        began = self.clock
        self.clock += time.seconds(count)
        steps = count * self._stages
        self._pace.decoded(steps, began + (self.clock - began) / steps, self.clock)
        self._rounds_done(count)

    def _rounds_done(self, count: int) -> None:
        grown = count * len(self._decode_batch)
        self._memory.grow(grown)
        self._tokens += grown
        for job in self._decode_batch.go(count):
            self._end(job, self.clock)
            self._memory.leave(job, self._decode_batch.grown(job))
            self._tokens -= job.to_compute

    def _end(self, job: Job, at: float) -> None:
        self._passing.stayed(job.output)
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
        lent = [*self._lent]
        self._memory.check([*self._line, *self._started, *self._decode_batch, *lent], self._loans.held)

    # -- what the router hears ------------------------------------------------------------------------

    def status(self, now: float, *, slack: bool) -> InstanceReport:
        """A report. slack: reckon it anew, unless that was done within SLACK_S."""
        if slack and now - self._slack_at > SLACK_S:
            found, self._growth = self.reckon_slack(now)
            self._expected = expected_mean(self._decode_batch, chain(self._line, self._started))
            self._slack, self._slack_at = as_points(found, now), now
        memory = self._memory
        window, left = window_of(
            chain(
                (_waiting(job) for job in self._line),
                (
                    WindowPrompt(min(job.begins_at, job.prompt), job.prompt, job.prompt)
                    for job in self._started
                    if in_window(job.first, self._phase, self._switched)
                ),
            )
        )
        until = window_left_s((job.arrival + job.slo.ttft_s for job in self._line), now)
        return InstanceReport(
            taken=now,
            accepted=self.accepted,
            phase=self._phase,
            switched=self._switched,
            sequences=len(self),
            tokens=self._tokens,
            kv_free=max(0, memory.free - left.tokens - self._coming),
            kv_total=memory.total,
            kv_peak=memory.used + left.tokens + self._coming + (self._growth if slack else 0),
            expected_output=self._expected if slack else 0,
            window=window,
            left=left,
            window_deadline=FOREVER if until is None else now + until,
            slack=self._slack if slack else Slack(),
            policy=PACED_POLICY if self._rules.paced else "",
            holdings=None if self._holdings is None else self._holdings.next(),
            transfer=replace(
                self._said, far=self._transfers.far.way(now), near=self._transfers.near.way(now)
            ),
        )

    def reckon_slack(self, now: float) -> tuple[SlackReport | None, int]:
        """Slack as the controller reports it, and by how much the contexts will have grown at their peak."""
        rules = self._rules
        decoding = decoding_rows(self._decode_batch, rules.context)
        grown = growth(decoding, self._decode_batch, chain(self._line, self._started))
        beside = [
            decoding_job(job, job.generated, rules.context)
            for job in self._started
            if not in_window(job.first, self._phase, self._switched)
        ]
        if beside:
            decoding = np.concatenate((decoding, np.array(beside, float)))
        idle = [job.slo.tpot_s for job in self._line]
        round_s, lost = rounds_beside_prompts(
            self._cost,
            self._pace,
            here=len(self),
            decoding=len(self._decode_batch),
            context=self._memory.context,
            stages=self._stages,
            step_tokens=rules.budget,
            paid_s=self._budget.paid_s if self._budget is not None else 0.0,
            rides=rules.mixed,
            dispatch_s=rules.dispatch_s,
        )
        return slack_of(decoding, idle, round_s, now, lost), grown


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
