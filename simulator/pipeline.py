"""The simulated driver: the pure scheduler, fed by stages that exist in virtual time only."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

from controller.scheduler.actions import Dispatch, Emit, Finish, PhaseSwitched, PrefixFound, Refused
from controller.scheduler.background import ALONE_S
from controller.scheduler.events import (
    Event,
    LengthPredicted,
    NewSequence,
    SequencesArrived,
    StagesReady,
    StepDone,
    Tick,
)
from controller.scheduler.scheduler import Scheduler
from simulator.balance import StepBalance
from simulator.job import ROOT
from simulator.predictions import Quantiles
from simulator.record import MemoryRecord, Recording, RunResult, StepRecord
from simulator.simulated_model import SimulatedModel, Transcript, prompt_ids
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.work import StepWork, work_of
from tidepipe_common.types.plan import SampledTokens, StepPlan
from tidepipe_common.types.sampling import SamplingParams
from workloads.mixes import SimRequest, followers


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
        split: tuple[int, ...] = (),
        recording: Recording | None = None,
    ) -> None:
        """split: see SimulatedStages. Beside computing a step costs what the scheduler reckons with."""
        self.scheduler = scheduler
        self.now = 0.0
        self._stages = SimulatedStages(cost, stages, scheduler.config.dispatch_s, split)
        self._ready = StagesReady(1, stages, kv_blocks)
        self._recording = recording
        self._balance = StepBalance(stages)
        self._in_flight: deque[tuple[float, StepDone]] = deque()
        self._model = SimulatedModel()
        self._requests: tuple[SimRequest, ...] = ()
        self._transcripts: Sequence[Transcript] = ()
        self._predictions: list[Quantiles] = []
        self._refined: dict[str, Quantiles] = {}
        # When each request comes, as far as that is known: a turn waits for an answer.
        self._coming: list[tuple[float, int]] = []
        self._next_turn: dict[int, int] = {}
        self._finished = 0
        self._cached = 0
        self._steps = self._computed = 0
        self._used_time = 0.0

    def run(
        self,
        requests: tuple[SimRequest, ...],
        predictions: list[Quantiles],
        *,
        serving: bool = False,
        transcripts: Sequence[Transcript] = (),
        refined: Sequence[Quantiles] = (),
    ) -> RunResult:
        """Serve all requests, each from its arrival on; a turn, from its think time after the answer before.

        refined: what is predicted of each when it has its first token, as live with length signals.

        serving: the stages are ready before the first one comes, as live: the first step knows no lengths.
        transcripts: the tokens of each request, if it is those of a recorded run.
        """
        self._requests, self._transcripts, self._predictions = requests, transcripts, predictions
        self._refined = {f"r{index}": one for index, one in enumerate(refined)}
        self._next_turn = followers(requests)
        later = set(self._next_turn.values())
        self._coming = [(one.arrival_s, i) for i, one in enumerate(requests) if i not in later]
        heapq.heapify(self._coming)
        if serving:
            self._hear(self._ready)
        self._arrive()
        if not serving:
            self._hear(self._ready)
        while self._finished < len(requests):
            arrival = self._coming[0][0] if self._coming else float("inf")
            if self._in_flight and self._in_flight[0][0] <= arrival:
                time, done = self._in_flight.popleft()
                self._advance(time)
                self._hear(done)
            elif len(self.scheduler.background) and self.now + ALONE_S < arrival:
                self._advance(self.now + ALONE_S)
                self._hear(Tick())
            elif self._coming:
                self._advance(arrival)
                self._arrive()
            else:
                raise ConfigError(f"the policy stalled with {len(requests) - self._finished} requests left")
        return self._result()

    def _arrive(self) -> None:
        due: list[int] = []
        while self._coming and self._coming[0][0] <= self.now:
            due.append(heapq.heappop(self._coming)[1])
        self._hear(SequencesArrived(tuple(self._sequence(index) for index in due)))
        for index in due:
            if (quantiles := self._predictions[index]) is not None:
                self._hear(LengthPredicted(f"r{index}", *quantiles))

    def _sequence(self, index: int) -> NewSequence:
        request = self._requests[index]
        exact = 0 < request.max_tokens <= request.output_tokens
        sampling = SamplingParams(max_tokens=request.max_tokens or None, ignore_eos=exact, seed=index)
        if self._transcripts:
            known = self._transcripts[index]
            self._model.expect(index, request.output_tokens, known.output)
            return NewSequence(f"r{index}", known.prompt, sampling, prefix_root=known.root)
        self._model.expect(index, request.output_tokens)
        return NewSequence(f"r{index}", prompt_ids(request, index), sampling, prefix_root=ROOT.hex())

    def _ended(self, index: int) -> None:
        self._finished += 1
        self._model.forget(index)
        if (following := self._next_turn.get(index)) is not None:
            heapq.heappush(self._coming, (self.now + self._requests[following].think_s, following))

    def _hear(self, event: Event) -> None:
        for action in self.scheduler.on(event, self.now):
            kind = type(action)
            if kind is Dispatch:
                assert isinstance(action, Dispatch)
                self._compute(action.plan)
            elif kind is Finish:
                assert isinstance(action, Finish)
                self._ended(int(action.sequence_id[1:]))
            elif kind is Emit:
                if self._refined:
                    assert isinstance(action, Emit)
                    self._first_tokens(action.sequence_ids)
            elif kind is PrefixFound:
                assert isinstance(action, PrefixFound)
                self._cached += action.cached_tokens
            elif kind is PhaseSwitched:
                assert isinstance(action, PhaseSwitched)
                if self._recording is not None:
                    switch = (self.now, action.before, action.after, str(action.reason))
                    self._recording.switches.append(switch)
            elif kind is Refused:
                assert isinstance(action, Refused)
                raise ConfigError(f"request {action.sequence_id} cannot be served: {action.detail}")

    def _first_tokens(self, names: Sequence[str]) -> None:
        """What the model's state tells of their lengths comes with them."""
        for name in [one for one in names if one in self._refined]:
            if (quantiles := self._refined.pop(name)) is not None:
                self._hear(LengthPredicted(name, *quantiles))

    def _compute(self, plan: StepPlan) -> None:
        sampled = self._model.sample(plan)
        work = work_of(plan)
        spans = self._stages.compute(work, self.now)
        self._balance.note(plan.phase, spans[0][1] - spans[0][0])
        self._in_flight.append((spans[-1][1], StepDone(plan.step_id, SampledTokens(sampled))))
        self._steps += 1
        self._computed += work.tokens
        if self._recording is not None:
            self._record(self._recording, StepRecord(plan.phase, work.tokens, len(plan.decode), spans))

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
            preemptions=stats.preemptions,
            recomputed_tokens=self._computed + self._cached - needed,
            cached_tokens=self._cached,
            evicted_blocks=stats.reuse.evicted_blocks,
            steals=stats.steals,
            steps=self._steps,
            kv_used_mean=self._used_time / max(1e-12, makespan) / self.scheduler.allocator.total,
            imbalance=self._balance.mean,
            forecast_error=stats.forecast_accuracy.mean_error,
        )
