"""The simulated driver: the pure scheduler, fed by stages that exist in virtual time only."""

from __future__ import annotations

from collections import deque

from controller.scheduler.actions import Dispatch, Finish, PhaseSwitched, Refused
from controller.scheduler.events import (
    Event,
    LengthPredicted,
    NewSequence,
    SequencesArrived,
    StagesReady,
    StepDone,
)
from controller.scheduler.scheduler import Scheduler
from simulator.balance import StepBalance
from simulator.predictions import Quantiles
from simulator.record import MemoryRecord, Recording, RunResult, StepRecord
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.dispatch import DISPATCH_S
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.work import StepWork, work_of
from tidepipe_common.types.plan import Phase, SampledTokens, StepPlan
from tidepipe_common.types.sampling import SamplingParams
from workloads.mixes import SimRequest

STOP, GO_ON = 0, 1
"""The two tokens of the simulated model; the scheduler must have STOP among its end tokens."""


class SimulatedStages:
    """Stages that compute steps one after the other, as long as the cost model says.

    Stage i starts step k at max(its own end of step k - 1, stage i - 1's end of step k + transfer), so that
    bubbles come out exactly. dispatch_s: from a result at the last stage to the next plan at the first one.
    """

    def __init__(self, cost: StepCost, stages: int, dispatch_s: float, split: tuple[int, ...] = ()) -> None:
        """split: layers of each stage, the last of which has the LM head; empty if all are alike."""
        self._split = split
        self.free_at = [0.0] * stages
        self.busy_s = [0.0] * stages
        self._cost = cost
        self._dispatch_s = dispatch_s

    def compute(self, work: StepWork, now: float) -> tuple[tuple[float, float], ...]:
        """Start and end of a step at each stage, whose plan is sent now."""
        cost, split, last = self._cost, self._split, len(self.free_at) - 1
        even = cost.step_s(work)
        transfer = cost.transfer_s(work.tokens)
        arrives = now + self._dispatch_s
        spans = []
        for stage, free in enumerate(self.free_at):
            start = max(free, arrives)
            spent = cost.stage_s(work, split[stage], last=stage == last) if split else even
            end = start + spent
            self.free_at[stage] = end
            self.busy_s[stage] += spent
            spans.append((start, end))
            arrives = end + transfer
        return tuple(spans)


class SimulatedInstance:
    """One instance in virtual time. Deterministic: nothing here is random or reads a clock."""

    def __init__(
        self,
        scheduler: Scheduler,
        cost: StepCost,
        stages: int,
        kv_blocks: int,
        *,
        dispatch_s: float = DISPATCH_S,
        split: tuple[int, ...] = (),
        recording: Recording | None = None,
    ) -> None:
        """dispatch_s, split: see SimulatedStages."""
        self.scheduler = scheduler
        self.now = 0.0
        self._stages = SimulatedStages(cost, stages, dispatch_s, split)
        self._ready = StagesReady(1, stages, kv_blocks)
        self._recording = recording
        self._balance = StepBalance(stages)
        self._in_flight: deque[tuple[float, StepDone]] = deque()
        # What the simulated model knows of a sequence: after so many tokens its last one is sampled.
        self._last_at: dict[int, int] = {}
        self._requests: tuple[SimRequest, ...] = ()
        self._finished = 0
        self._switches = self._turns = self._steps = self._computed = 0
        self._phase = Phase.IDLE
        self._used_time = 0.0

    def run(
        self, requests: tuple[SimRequest, ...], predictions: list[Quantiles], *, serving: bool = False
    ) -> RunResult:
        """Serve all requests, each from its arrival on.

        serving: the stages are ready before the first one comes, as live: the first step knows no lengths.
        """
        self._requests = requests
        waiting = deque(sorted(range(len(requests)), key=lambda i: requests[i].arrival_s))
        if serving:
            self._hear(self._ready)
        self._arrive(waiting, predictions)
        if not serving:
            self._hear(self._ready)
        while self._finished < len(requests):
            arrival = requests[waiting[0]].arrival_s if waiting else float("inf")
            if self._in_flight and self._in_flight[0][0] <= arrival:
                time, done = self._in_flight.popleft()
                self._advance(time)
                self._hear(done)
            elif waiting:
                self._advance(arrival)
                self._arrive(waiting, predictions)
            else:
                raise ConfigError(f"the policy stalled with {len(requests) - self._finished} requests left")
        return self._result()

    def _arrive(self, waiting: deque[int], predictions: list[Quantiles]) -> None:
        due: list[int] = []
        while waiting and self._requests[waiting[0]].arrival_s <= self.now:
            due.append(waiting.popleft())
        self._hear(SequencesArrived(tuple(self._sequence(index) for index in due)))
        for index in due:
            if (quantiles := predictions[index]) is not None:
                self._hear(LengthPredicted(f"r{index}", *quantiles))

    def _sequence(self, index: int) -> NewSequence:
        request = self._requests[index]
        exact = 0 < request.max_tokens <= request.output_tokens
        sampling = SamplingParams(max_tokens=request.max_tokens or None, ignore_eos=exact)
        # The simulated model recognizes a request by its first token.
        return NewSequence(f"r{index}", (index,) * request.prompt_tokens, sampling)

    def _hear(self, event: Event) -> None:
        for action in self.scheduler.on(event, self.now):
            kind = type(action)
            if kind is Dispatch:
                assert isinstance(action, Dispatch)
                self._compute(action.plan)
            elif kind is Finish:
                self._finished += 1
            elif kind is PhaseSwitched:
                assert isinstance(action, PhaseSwitched)
                if self._recording is not None:
                    switch = (self.now, action.before, action.after, str(action.reason))
                    self._recording.switches.append(switch)
            elif kind is Refused:
                assert isinstance(action, Refused)
                raise ConfigError(f"request {action.sequence_id} cannot be served: {action.detail}")

    def _compute(self, plan: StepPlan) -> None:
        last_at = self._last_at
        for key in plan.releases:
            last_at.pop(key, None)
        starts = {start.key: start.prompt_tokens for start in plan.starts}
        decode = plan.decode
        sampled = [
            STOP if position + 1 >= last_at[key] else GO_ON
            for key, position in zip(decode.keys, decode.positions, strict=True)
        ]
        for row in plan.listed:
            if row.key in starts:
                request = self._requests[row.token_ids[0]]
                last_at[row.key] = starts[row.key] + request.output_tokens - 1
            if row.sample:
                sampled.append(STOP if row.first_position + row.count >= last_at[row.key] else GO_ON)
        work = work_of(plan)
        spans = self._stages.compute(work, self.now)
        self._balance.note(plan.phase, spans[0][1] - spans[0][0])
        self._in_flight.append((spans[-1][1], StepDone(plan.step_id, SampledTokens(tuple(sampled)))))
        self._steps += 1
        self._computed += work.tokens
        self._turns += Phase.IDLE is not self._phase is not plan.phase
        self._phase = plan.phase
        if self._recording is not None:
            self._record(self._recording, StepRecord(plan.phase, work.tokens, len(decode), spans))

    def _record(self, recording: Recording, step: StepRecord) -> None:
        recording.steps.append(step)
        if len(recording.steps) % recording.memory_every == 0:
            state = self.scheduler.state
            capacity = max(1, state.allocator.capacity_tokens)
            peak = state.admission.forecast.peak_tokens() / capacity
            recording.memory.append(
                MemoryRecord(self.now, state.allocator.used / state.allocator.total, peak)
            )

    def _advance(self, time: float) -> None:
        self._used_time += (time - self.now) * self.scheduler.allocator.used
        self.now = time

    def _result(self) -> RunResult:
        stats = self.scheduler.stats
        prompts = sum(one.prompt_tokens for one in self._requests)
        outputs = sum(one.output_tokens for one in self._requests)
        start = min(one.arrival_s for one in self._requests)
        makespan = self.now - start
        # The last sampled token of a sequence is never computed itself.
        needed = prompts + outputs - len(self._requests)
        return RunResult(
            requests=len(self._requests),
            prompt_tokens=prompts,
            output_tokens=outputs,
            makespan_s=makespan,
            stage_busy=tuple(busy / makespan for busy in self._stages.busy_s),
            phase_switches=stats.phase_switches,
            step_turns=self._turns,
            preemptions=stats.preemptions,
            recomputed_tokens=self._computed - needed,
            steals=stats.steals,
            steps=self._steps,
            kv_used_mean=self._used_time / max(1e-12, makespan) / self.scheduler.allocator.total,
            imbalance=self._balance.mean,
            forecast_error=stats.forecast_accuracy.mean_error,
        )
