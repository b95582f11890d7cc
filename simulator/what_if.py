"""What a recorded live run would have been under other circumstances, in virtual time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from controller.runtime.journal import checksum, read_checked, read_scheduler_spec
from controller.runtime.scheduler_spec import SchedulerSpec
from controller.scheduler.actions import Dispatch, Emit, Finish, PrefixFound
from controller.scheduler.events import LengthPredicted, SequencesArrived, StagesReady, StepDone
from simulator.pipeline import SimulatedInstance
from simulator.predictions import Quantiles
from simulator.record import Recording, RunResult
from simulator.simulated_model import STOP, Transcript
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.correction import CorrectedCost
from tidepipe_common.latency.work import StepWork, work_of
from tidepipe_common.types.plan import Phase
from workloads.mixes import SimRequest


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What happened, as a journal tells it.

    makespan_s: from the first arrival to the last step that gave a token. stage_busy: share of it that each
    stage computed. differing: events after which the replay decided otherwise than the live run.
    requests, predictions, transcripts: those that produced something. cached_tokens: of their prompts, found.
    pace: what steps took over what the instance's cost
    model says, by kind of step (with a prompt in it: PREFILL); empty if it has none. dispatch_s: what a step
    cost beside computing, as it was measured by so many steps; 0: as was assumed.
    """

    spec: SchedulerSpec
    events: int
    differing: int
    first_difference: int
    requests: tuple[SimRequest, ...]
    predictions: tuple[Quantiles, ...]
    transcripts: tuple[Transcript, ...]
    kv_blocks: int
    epochs: int
    makespan_s: float
    output_tokens: int
    stage_busy: tuple[float, ...]
    phase_switches: int
    preemptions: int
    steals: int
    cached_tokens: int
    pace: Mapping[Phase, float]
    dispatch_s: float
    dispatch_steps: int


@dataclass(slots=True)
class _Seen:
    """A sequence while the journal is read."""

    prompt: tuple[int, ...]
    root: str
    limit: int
    arrived: float
    output: list[int]
    prediction: Quantiles = None


class _Pace:
    """Adds up what steps took, and what they should have taken."""

    def __init__(self, spec: SchedulerSpec) -> None:
        self._cost = spec.costs()
        self._split = spec.split
        self._works: dict[int, StepWork] = {}
        self._measured: defaultdict[Phase, float] = defaultdict(float)
        self._expected: defaultdict[Phase, float] = defaultdict(float)

    def planned(self, action: Dispatch) -> None:
        self._works[action.plan.step_id] = work_of(action.plan)

    def done(self, event: StepDone) -> None:
        work = self._works.pop(event.step_id, None)
        if self._cost is None or work is None:
            return
        phase = Phase.PREFILL if work.pairs else Phase.DECODE
        for stage, (layers, spent) in enumerate(zip(self._split, event.stage_s, strict=False)):
            self._measured[phase] += spent
            self._expected[phase] += self._cost.stage_s(work, layers, last=stage == len(self._split) - 1)

    @property
    def factors(self) -> dict[Phase, float]:
        return {
            phase: self._measured[phase] / expected
            for phase, expected in self._expected.items()
            if expected > 0
        }


def replay_journal(path: Path) -> LiveRun:
    """Replay the journal with the settings that it names, and compare each decision."""
    spec = read_scheduler_spec(path)
    scheduler, _ = spec.build()
    seen: dict[str, _Seen] = {}
    pace = _Pace(spec)
    events = differing = first_difference = kv_blocks = epochs = cached = 0
    begin: float | None = None
    end = 0.0
    computed = [0.0] * len(spec.split)
    for now, event, did in read_checked(path):
        events += 1
        match event:
            case SequencesArrived(sequences):
                for one in sequences:
                    begin = now if begin is None else begin
                    limit = one.sampling.max_tokens or 0
                    new = _Seen(one.prompt, one.prefix_root, limit, now, list(one.output))
                    seen.setdefault(one.sequence_id, new)
            case LengthPredicted(name, p50, p90, 0) if name in seen:
                seen[name].prediction = (p50, p90)
            case StagesReady():
                kv_blocks, epochs = event.kv_blocks, epochs + 1
            case StepDone():
                pace.done(event)
                for stage, spent in enumerate(event.stage_s):
                    computed[stage] += spent
        actions = scheduler.on(event, now)
        if did != (checksum(actions) if actions else 0):
            differing += 1
            first_difference = first_difference or events
        for action in actions:
            if isinstance(action, Dispatch):
                pace.planned(action)
            elif isinstance(action, Emit):
                end = now
                for name, token in zip(action.sequence_ids, action.token_ids, strict=True):
                    seen[name].output.append(token)
            elif isinstance(action, PrefixFound):
                cached += action.cached_tokens
            elif isinstance(action, Finish):
                end = now
    ran = [one for one in seen.values() if one.output]
    if begin is None or not ran:
        raise ConfigError(f"{path} tells of no sequence that produced anything")
    stats, makespan = scheduler.stats, max(1e-9, end - begin)
    return LiveRun(
        spec=spec,
        events=events,
        differing=differing,
        first_difference=first_difference,
        requests=tuple(
            SimRequest(len(one.prompt), len(one.output), one.limit, one.arrived - begin) for one in ran
        ),
        transcripts=tuple(Transcript(one.prompt, tuple(one.output), one.root) for one in ran),
        predictions=tuple(one.prediction for one in ran),
        kv_blocks=kv_blocks,
        epochs=epochs,
        makespan_s=makespan,
        output_tokens=sum(len(one.output) for one in ran),
        stage_busy=tuple(spent / makespan for spent in computed),
        phase_switches=stats.phase_switches,
        preemptions=stats.preemptions,
        steals=stats.steals,
        cached_tokens=cached,
        pace=pace.factors,
        dispatch_s=scheduler.state.dispatch.seconds,
        dispatch_steps=scheduler.state.dispatch.measured,
    )


def what_if(
    run: LiveRun, spec: SchedulerSpec, recording: Recording | None = None, *, paced: bool = True
) -> RunResult:
    """The same arrivals, lengths, predictions and memory, scheduled by `spec` in virtual time.

    paced: steps are as fast as they were in that run, on the whole, and so are ways of results; else as the
    profile and `spec` say, which know nothing of a slower clock, or of other work on the machine.
    ConfigError if it knows no costs: a live run without a profile has none to go by.
    """
    known = spec.costs()
    if known is None:
        raise ConfigError(
            "the journal's instance had no latency profile, so nobody knows what its steps would take; "
            "give one with --profile (`tidepipe profile` makes it)"
        )
    cost = CorrectedCost(known, factors=run.pace) if paced else known
    dispatch_s = run.dispatch_s if paced else spec.dispatch_s
    scheduler, _ = replace(spec, dispatch_s=dispatch_s).build(eos_token_ids=(STOP,))
    instance = SimulatedInstance(
        scheduler, cost, len(spec.split), run.kv_blocks, split=spec.split, recording=recording
    )
    return instance.run(run.requests, list(run.predictions), serving=True, transcripts=run.transcripts)
