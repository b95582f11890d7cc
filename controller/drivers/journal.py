"""A journal of what a scheduler heard, and its replay: the same events give the same actions.

One JSON object per line: {"now": seconds, "event": name, fields..}. A journal says nothing of the scheduler's
settings; whoever replays it brings the same ones, or others to see what they would have done with the same
arrivals (`requests_of`, run in virtual time).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from common.errors import ConfigError
from common.plan import SampledTokens
from common.sampling import PositionLogprobs, SamplingParams, TokenLogprob
from common.structure import Structure
from controller.core.actions import Action, Emit
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
from controller.core.scheduler import Scheduler
from controller.simulation.workload import SimRequest

Entry = tuple[float, Event]
"""When, on the core's clock, and what."""


class Journal:
    """Writes entries; whoever opened the file closes it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def note(self, event: Event, now: float) -> None:
        """Append one event; all of them, also those that change nothing: a replay takes no shortcuts."""
        fields = dataclasses.asdict(event)
        line = {"now": now, "event": type(event).__name__, **fields}
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")


def read_journal(path: Path) -> Iterator[Entry]:
    """The entries of a file, in order. ConfigError names the line that is none."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                fields = json.loads(line)
                now, name = fields.pop("now"), fields.pop("event")
                yield float(now), _READERS[name](fields)
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}, line {number}: not a journal's entry ({error!r})") from error


def replay(entries: Iterable[Entry], scheduler: Scheduler) -> Iterator[list[Action]]:
    """What a fresh scheduler with the same settings does after each entry."""
    for now, event in entries:
        yield scheduler.on(event, now)


def requests_of(entries: Iterable[Entry], scheduler: Scheduler) -> tuple[SimRequest, ...]:
    """The sequences of a journal as a workload, with the output lengths that they had: for `what if`.

    scheduler: a fresh one with the recorded settings.
    """
    prompts: dict[str, tuple[int, float, int]] = {}
    outputs: dict[str, int] = {}
    for now, event in entries:
        if isinstance(event, SequencesArrived):
            for one in event.sequences:
                prompts.setdefault(one.sequence_id, (len(one.prompt), now, one.sampling.max_tokens or 0))
                outputs.setdefault(one.sequence_id, len(one.output))
        for action in scheduler.on(event, now):
            if isinstance(action, Emit):
                for name in action.sequence_ids:
                    outputs[name] += 1
    start = min((arrived for _, arrived, _ in prompts.values()), default=0.0)
    return tuple(
        SimRequest(tokens, outputs[name], limit, arrived - start)
        for name, (tokens, arrived, limit) in prompts.items()
        if outputs[name]
    )


def _arrived(fields: dict[str, Any]) -> SequencesArrived:
    return SequencesArrived(tuple(_sequence(one) for one in fields["sequences"]))


def _sequence(fields: dict[str, Any]) -> NewSequence:
    sampling = dict(fields["sampling"])
    sampling["logit_bias"] = {int(token): bias for token, bias in sampling["logit_bias"].items()}
    for name in ("stop_token_ids", "stop"):
        sampling[name] = tuple(sampling[name])
    if sampling.get("structure"):
        sampling["structure"] = Structure(**sampling["structure"])
    return NewSequence(
        fields["sequence_id"],
        tuple(fields["prompt"]),
        SamplingParams(**sampling),
        tuple(fields["output"]),
        fields["deadline"],
        # Journals of before have no latency targets.
        fields.get("first_token_due"),
        fields.get("tpot_s"),
    )


def _step_done(fields: dict[str, Any]) -> StepDone:
    sampled = fields["sampled"]
    logprobs = tuple(
        PositionLogprobs(TokenLogprob(**one["chosen"]), tuple(TokenLogprob(**top) for top in one["top"]))
        for one in sampled["logprobs"]
    )
    tokens = SampledTokens(tuple(sampled["token_ids"]), logprobs)
    return StepDone(fields["step_id"], tokens, tuple(fields["stage_s"]))


_READERS: dict[str, Callable[[dict[str, Any]], Event]] = {
    "SequencesArrived": _arrived,
    "StepDone": _step_done,
    "SequenceCancelled": lambda fields: SequenceCancelled(**fields),
    "LengthPredicted": lambda fields: LengthPredicted(**fields),
    "StagesReady": lambda fields: StagesReady(**fields),
    "StagesLost": lambda fields: StagesLost(**fields),
    "PolicyChosen": lambda fields: PolicyChosen(**fields),
    "Tick": lambda fields: Tick(),
}
