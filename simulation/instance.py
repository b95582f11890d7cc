"""An instance in virtual time that skips over what cannot matter.

It follows the rules of the controller's policies step by step while prompts are computed. While it only
decodes, nothing changes from round to round but the context's length, so all rounds until the next event (an
output ends, memory runs out, the router looks) are done in one stroke, in closed form. That makes it about a
hundred times as fast as the scheduler itself, and near enough: see `docs/ecoserve.md` for the comparison and
`exact.py` for the scheduler in its place.

A pipeline of S stages has S micro-batches; a round is one token for each sequence of all of them.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

from common.latency.model import StepCost
from common.latency.work import StepWork, chunk_pairs
from common.plan import Phase
from controller.core.report import PROMISED
from router.core.prefill import NOTHING, PrefillWork, prompt_work
from router.core.status import FOREVER, InstanceStatus, Slack
from simulation.job import NOT_YET, Job
from simulation.plant import DISPATCH_S

WATERMARK = 0.99
MEMORY_S = 20.0
"""Seconds over which an instance reckons the share of its time that prompts take."""
SLACK_S = 0.4
"""Age that slack may reach in a report: reckoning it takes longer than simulating."""
ROUNDING = 8
"""KV tokens that a sequence wastes in its last block, on average."""


@dataclass(frozen=True, slots=True)
class InstanceRules:
    """mixed: prompts ride on decode steps in chunks (hybrid batching); else they go first, in steps of their
    own (separate batching, PaDG). budget: tokens of a step at most.

    prefill_only: the sequence leaves after its prompt (disaggregation).
    """

    mixed: bool = False
    budget: int = 2048
    prefill_only: bool = False


class SkippingInstance:
    """See the module. All times in seconds, memory in tokens."""

    def __init__(
        self, name: str, rules: InstanceRules, cost: StepCost, stages: int, kv_tokens: int, born: float = 0.0
    ) -> None:
        self.name = name
        self.clock = born
        self.accepted = 0
        self.preemptions = 0
        self.first_tokens: list[Job] = []
        self._rules = rules
        self._cost = cost
        self._stages = stages
        self._kv_total = kv_tokens
        self._kv_used = 0
        self._waiting: deque[Job] = deque()
        self._started: list[Job] = []  # prompt done, decodes with the next round
        self._last: list[tuple[int, int, Job]] = []  # heap by last round
        self._newest: list[Job] = []
        self._decoding = 0
        self._context = 0
        self._round = 0
        self._phase = Phase.IDLE
        self._switched = born
        self._window = NOTHING
        self._left = 0
        self._left_pairs = 0.0
        self._tokens = 0
        self._prefill_stage_s = 0.0
        self._prefill_s = 0.0
        self._prefill_noted = born
        self._per_kv = cost.attention_s(1, 0.0)
        self._round_s: dict[int, float] = {}
        self._slack = Slack()
        self._growth = 0
        self._slack_at = -1.0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._started) + self._decoding

    @property
    def unfinished_tokens(self) -> int:
        """Prompt tokens that are still to be computed."""
        return self._left

    @property
    def held_tokens(self) -> int:
        """Prompt and output so far of all its requests."""
        return self._tokens

    # -- work comes -----------------------------------------------------------------------------------

    def submit(self, job: Job, now: float) -> None:
        """A request; its prompt is to be computed."""
        self.advance(now)
        self.accepted += 1
        self._wait(job)
        self._waiting.append(job)
        self._tokens += job.to_compute

    def deliver(self, job: Job, now: float) -> None:
        """A request whose prompt was computed elsewhere; its KV cache is here once there is room."""
        self.advance(now)
        job.computed = job.to_compute
        self._waiting.append(job)
        self._tokens += job.to_compute

    def _wait(self, job: Job) -> None:
        job.computed = 0
        work = prompt_work(job.to_compute)
        self._window = self._window.plus(work)
        self._left += work.tokens
        self._left_pairs += work.pairs

    # -- time passes ----------------------------------------------------------------------------------

    def advance(self, until: float) -> None:
        """Do everything that begins by then."""
        while self.clock <= until:
            if self._waiting and self._step(until):
                continue
            if self._started:
                self._begin_decoding()
            if not self._decoding:
                self._turn(Phase.IDLE)
                self.clock = max(self.clock, until)
                return
            self._decode(until)

    def drain(self) -> None:
        """Do all there is."""
        while len(self):
            before = len(self), self._round, self._left
            self.advance(self.clock + 600.0)
            if (len(self), self._round, self._left) == before:
                raise RuntimeError(f"instance {self.name} stalled with {len(self)} requests")

    def _step(self, until: float) -> bool:
        """A step with prompt tokens; False if none can be admitted."""
        rules, stages = self._rules, self._stages
        if rules.mixed and self._started:
            self._begin_decoding()
        rows = -(-self._decoding // stages) if rules.mixed else 0
        room = max(0, rules.budget - rows) * (stages if rules.mixed else 1)
        chunks: list[tuple[Job, int]] = []
        tokens = kv = 0
        pairs = 0.0
        while self._waiting and room > 0:
            job = self._waiting[0]
            rest = job.to_compute - job.computed
            if job.computed == 0 or rest == 0:
                needed = job.to_compute + ROUNDING
                full = self._kv_used + needed > WATERMARK * self._kv_total
                if full and (self._decoding or self._started or chunks):
                    break
                # Whole prompts share a step; one that is longer than a step is cut.
                if not rules.mixed and chunks and rest > room:
                    break
                self._kv_used += needed
                job.held = needed
            if rest == 0:  # delivered from elsewhere
                self._waiting.popleft()
                self._start(job)
                continue
            count = min(rest, room)
            pairs += chunk_pairs(job.computed, count)
            kv += job.computed
            job.computed += count
            room -= count
            tokens += count
            chunks.append((job, count))
            if job.computed == job.to_compute:
                self._waiting.popleft()
        if not chunks:
            return False
        self._left -= tokens
        self._left_pairs = max(0.0, self._left_pairs - pairs)
        if rules.mixed:
            self._mixed_round(chunks, tokens, kv, pairs)
        else:
            self._turn(Phase.PREFILL)
            self._prefill(chunks, tokens, kv, pairs)
        return True

    def _prefill(self, chunks: list[tuple[Job, int]], tokens: int, kv: int, pairs: float) -> None:
        done = sum(job.computed == job.to_compute for job, _ in chunks)
        spent = self._cost.step_s(StepWork(tokens, kv + tokens, pairs, len(chunks), done))
        if self._stages == 1:
            spent += DISPATCH_S
        self.clock += spent
        self._prefill_stage_s = spent
        self._forget(self.clock)
        self._prefill_s += spent
        behind = (self._stages - 1) * (spent + self._cost.transfer_s(tokens)) if self._stages > 1 else 0.0
        self._prompts_done(chunks, self.clock + behind)

    def _mixed_round(self, chunks: list[tuple[Job, int]], tokens: int, kv: int, pairs: float) -> None:
        self._turn(Phase.MIXED)
        self._make_room()
        stages, decoding = self._stages, self._decoding
        per_step = -(-(decoding + tokens) // stages)
        rows = -(-(decoding + len(chunks)) // stages)
        spent = stages * self._cost.step_s(StepWork(per_step, 0, 0.0, rows, rows))
        spent += stages * self._cost.transfer_s(per_step) + DISPATCH_S
        spent += self._cost.attention_s(self._context + kv + tokens, pairs)
        self.clock += spent
        self._rounds_done(1 if decoding else 0)
        self._prompts_done(chunks, self.clock)

    def _prompts_done(self, chunks: list[tuple[Job, int]], at: float) -> None:
        for job, _ in chunks:
            if job.computed < job.to_compute:
                continue
            if job.first == NOT_YET:
                job.first = at
                job.generated = 1
                self._tokens += 1
                self.first_tokens.append(job)
            if job.generated >= job.output or self._rules.prefill_only:
                job.finished = at if job.generated >= job.output else NOT_YET
                self._kv_used -= job.held
                self._tokens -= job.to_compute
            else:
                self._start(job)

    def _start(self, job: Job) -> None:
        self._started.append(job)

    def _begin_decoding(self) -> None:
        """Those whose prompts are done join the rounds: the prefill window, if there was one, is over."""
        if not self._rules.mixed and self._stages > 1 and self._phase is Phase.PREFILL:
            # Decode steps are shorter than the last prefill step: each stage waits for it.
            step = self._empty_round_s(self._decoding + len(self._started)) / self._stages
            self.clock += (self._stages - 1) * max(0.0, self._prefill_stage_s - step)
        for job in self._started:
            job.resumed = min(job.resumed, max(self.clock, job.first))
            job.start_round = self._round
            job.last_round = self._round + job.output - job.generated
            job.decoding = True
            job.due_at_zero = job.first + (job.generated - 1 - self._round) * job.slo.tpot_s
            job.expected_round = self._round + job.expected - job.generated
            self._decoding += 1
            self._context += job.to_compute
            heapq.heappush(self._last, (job.last_round, job.index, job))
            self._newest.append(job)
        self._started.clear()

    def _decode(self, until: float) -> None:
        self._turn(Phase.DECODE)
        if not self._make_room():
            return
        n = self._decoding
        fixed = self._empty_round_s(n)
        per = self._per_kv
        most = min(self._last[0][0] - self._round, (self._kv_total - self._kv_used) // n)
        # Rounds until the clock passes `until`: k a + b k^2 > until - clock, with
        first = fixed + per * (self._context - n / 2)
        bend = per * n / 2
        span = until - self.clock
        count = (math.sqrt(first * first + 4 * bend * span) - first) / (2 * bend) if bend else span / first
        rounds = max(1, min(most, int(count) + 1))
        spent = rounds * first + bend * rounds * rounds
        self.clock += spent
        self._rounds_done(rounds)

    def _empty_round_s(self, sequences: int) -> float:
        """A token for each of so many sequences, their contexts left out."""
        known = self._round_s.get(sequences)
        if known is None:
            rows = -(-sequences // self._stages)
            step = self._cost.step_s(StepWork(rows, 0, 0.0, rows, rows)) + self._cost.transfer_s(rows)
            known = self._round_s[sequences] = self._stages * step + DISPATCH_S
        return known

    def _rounds_done(self, rounds: int) -> None:
        if not rounds:
            return
        grown = rounds * self._decoding
        self._round += rounds
        self._context += grown
        self._kv_used += grown
        self._tokens += grown
        last = self._last
        while last and last[0][0] <= self._round:
            _, _, job = heapq.heappop(last)
            if not job.decoding or job.last_round > self._round:
                continue  # preempted since
            self._stop(job, job.output)
            job.finished = self.clock
            self._tokens -= job.prompt + job.output
        while self._newest and not self._newest[-1].decoding:
            self._newest.pop()

    def _stop(self, job: Job, generated: int) -> None:
        """Take it out of the rounds."""
        self._kv_used -= job.held + self._round - job.start_round
        job.generated = generated
        job.decoding = False
        self._decoding -= 1
        self._context -= job.to_compute

    def _make_room(self) -> bool:
        """Every sequence needs a token's room: the newest give way, and are computed again. False: nobody
        decodes any more."""
        while self._decoding > 1 and self._kv_total - self._kv_used < self._decoding:
            job = self._newest.pop()
            if not job.decoding:
                continue
            self._stop(job, job.generated + self._round - job.start_round)
            self._last = [entry for entry in self._last if entry[2] is not job]
            heapq.heapify(self._last)
            job.preemptions += 1
            self.preemptions += 1
            self._wait(job)
            self._waiting.appendleft(job)
        return self._decoding > 0

    def _turn(self, phase: Phase) -> None:
        if phase is self._phase:
            return
        self._phase, self._switched = phase, self.clock
        if phase is not Phase.PREFILL:
            self._window = PrefillWork(self._left, self._left_pairs)

    # -- what the router hears ------------------------------------------------------------------------

    def status(self, now: float, *, slack: bool) -> InstanceStatus:
        """A report. slack: reckon it anew, unless that was done within SLACK_S."""
        if slack and now - self._slack_at > SLACK_S:
            self._slack, self._slack_at = self._reckon_slack(), now
        waiting = self._waiting
        deadline = FOREVER
        if waiting or self._started:
            dues = [job.arrival + job.slo.ttft_s for job in (*waiting, *self._started)]
            deadline = min((due for due in dues if due > now), default=FOREVER)
        return InstanceStatus(
            taken=now,
            accepted=self.accepted,
            phase=self._phase,
            switched=self._switched,
            sequences=len(self),
            tokens=self._tokens,
            kv_free=max(0, self._kv_total - self._kv_used - self._left),
            kv_total=self._kv_total,
            kv_peak=self._kv_used + self._left + (self._growth if slack else 0),
            window=self._window,
            left=PrefillWork(self._left, self._left_pairs),
            window_deadline=deadline,
            slack=self._slack if slack else Slack(),
        )

    def _reckon_slack(self) -> Slack:
        n = self._decoding
        self._growth = 0
        everyone = len(self)
        if not everyone:
            return Slack()
        step = self._empty_round_s(everyone) + self._per_kv * self._tokens
        # Prompts will go on taking the share of the time that they took lately.
        step /= max(0.05, 1.0 - self._prefill_share())
        # Round by round a sequence is due a TPOT later, and has one round less to go.
        now = self._round
        alive = [job for _, _, job in self._last if job.decoding]
        dues = [job.due_at_zero + now * job.slo.tpot_s for job in alive]
        rests = [rest if (rest := job.expected_round - now) > 0 else 0 for job in alive]
        latest = [
            due + rest * (PROMISED * job.slo.tpot_s - step)
            for job, due, rest in zip(alive, dues, rests, strict=True)
        ]
        ends = [
            (rest, job.prompt + job.generated + now - job.start_round)
            for job, rest in zip(alive, rests, strict=True)
        ]
        # Those without a second token have no time to lose yet, but must not find the instance too slow.
        latest += [
            FOREVER if step <= PROMISED * job.slo.tpot_s else -FOREVER
            for job in (*self._waiting, *self._started)
        ]
        self._growth = _peak(ends) - self._context
        low = sorted(latest)[len(latest) // 10]
        if not dues:
            return Slack(0, low_latest=low)
        return Slack(n, sum(dues) / n, sorted(dues)[len(dues) // 10], low)

    def _prefill_share(self) -> float:
        """Of the time lately, exponentially forgotten."""
        self._forget(self.clock)
        return min(1.0, self._prefill_s / MEMORY_S)

    def _forget(self, now: float) -> None:
        self._prefill_s *= math.exp(-max(0.0, now - self._prefill_noted) / MEMORY_S)
        self._prefill_noted = now


def _peak(ends: list[tuple[int, int]]) -> int:
    """Most tokens at any time, of sequences that grow by one a round: (rounds left, tokens now) of each."""
    ends.sort()
    growing, held, peak = len(ends), sum(tokens for _, tokens in ends), 0
    for rest, tokens in ends:
        peak = max(peak, held + growing * rest)
        growing -= 1
        held -= tokens
    return peak
