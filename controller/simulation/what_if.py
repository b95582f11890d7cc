"""What a recorded live run would have been under other circumstances, in virtual time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from controller.core.actions import Emit, Finish
from controller.core.events import LengthPredicted, SequencesArrived, StagesReady, StepDone
from controller.drivers.blueprint import Blueprint
from controller.drivers.journal import checksum, read_blueprint, read_checked
from controller.drivers.simulated import STOP, SimulatedInstance
from controller.simulation.predictions import Quantiles
from controller.simulation.record import Recording, RunResult
from controller.simulation.workload import SimRequest


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What happened, as a journal tells it.

    makespan_s: from the first arrival to the last step that gave a token. stage_busy: share of it that each
    stage computed. differing: events after which the replay decided otherwise than the live run.
    requests, predictions: those that produced something.
    """

    blueprint: Blueprint
    events: int
    differing: int
    first_difference: int
    requests: tuple[SimRequest, ...]
    predictions: tuple[Quantiles, ...]
    kv_blocks: int
    epochs: int
    makespan_s: float
    output_tokens: int
    stage_busy: tuple[float, ...]
    phase_switches: int
    preemptions: int
    steals: int


@dataclass(slots=True)
class _Seen:
    """A sequence while the journal is read."""

    prompt_tokens: int
    limit: int
    arrived: float
    output_tokens: int = 0
    prediction: Quantiles = None


def replay_journal(path: Path) -> LiveRun:
    """Replay the journal with the settings that it names, and compare each decision."""
    blueprint = read_blueprint(path)
    scheduler, _ = blueprint.build()
    seen: dict[str, _Seen] = {}
    events = differing = first_difference = kv_blocks = epochs = 0
    begin: float | None = None
    end = 0.0
    computed = [0.0] * len(blueprint.split)
    for now, event, did in read_checked(path):
        events += 1
        match event:
            case SequencesArrived(sequences):
                for one in sequences:
                    begin = now if begin is None else begin
                    limit = one.sampling.max_tokens or 0
                    seen.setdefault(one.sequence_id, _Seen(len(one.prompt), limit, now, len(one.output)))
            case LengthPredicted(name, p50, p90) if name in seen:
                seen[name].prediction = (p50, p90)
            case StagesReady():
                kv_blocks, epochs = event.kv_blocks, epochs + 1
            case StepDone():
                for stage, spent in enumerate(event.stage_s):
                    computed[stage] += spent
        actions = scheduler.on(event, now)
        if did != (checksum(actions) if actions else 0):
            differing += 1
            first_difference = first_difference or events
        for action in actions:
            if isinstance(action, Emit):
                end = now
                for name in action.sequence_ids:
                    seen[name].output_tokens += 1
            elif isinstance(action, Finish):
                end = now
    ran = [one for one in seen.values() if one.output_tokens]
    if begin is None or not ran:
        raise ConfigError(f"{path} tells of no sequence that produced anything")
    stats, makespan = scheduler.stats, max(1e-9, end - begin)
    return LiveRun(
        blueprint=blueprint,
        events=events,
        differing=differing,
        first_difference=first_difference,
        requests=tuple(
            SimRequest(one.prompt_tokens, one.output_tokens, one.limit, one.arrived - begin) for one in ran
        ),
        predictions=tuple(one.prediction for one in ran),
        kv_blocks=kv_blocks,
        epochs=epochs,
        makespan_s=makespan,
        output_tokens=sum(one.output_tokens for one in ran),
        stage_busy=tuple(spent / makespan for spent in computed),
        phase_switches=stats.phase_switches,
        preemptions=stats.preemptions,
        steals=stats.steals,
    )


def what_if(run: LiveRun, blueprint: Blueprint, recording: Recording | None = None) -> RunResult:
    """The same arrivals, lengths, predictions and memory, scheduled by `blueprint` in virtual time.

    ConfigError if it knows no costs: a live run without a profile has none to go by.
    """
    cost = blueprint.costs()
    if cost is None:
        raise ConfigError(
            "the journal's instance had no latency profile, so nobody knows what its steps would take; "
            "give one with --profile (`tidepipe profile` makes it)"
        )
    scheduler, _ = blueprint.build(eos_token_ids=(STOP,))
    instance = SimulatedInstance(
        scheduler, cost, len(blueprint.split), run.kv_blocks, split=blueprint.split, recording=recording
    )
    return instance.run(run.requests, list(run.predictions), serving=True)
