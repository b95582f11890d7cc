"""What an instance did, step by step: the same of a live and of a simulated run."""

from __future__ import annotations

from dataclasses import dataclass, field

from tidepipe_common.types.plan import Phase


@dataclass(frozen=True, slots=True)
class StageSpan:
    """One step at one stage; times in seconds, on any clock that all of a timeline shares."""

    stage: int
    step_id: int
    phase: Phase
    tokens: int
    decode_rows: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class PhaseTurn:
    """A turn of the phase, and why."""

    at_s: float
    before: Phase
    after: Phase
    reason: str


@dataclass(frozen=True, slots=True)
class MemorySample:
    """KV blocks in use and at the forecast peak, as shares of all.

    running, waiting: sequences with and without blocks; None if nobody counted.
    """

    at_s: float
    used: float
    forecast: float
    running: int | None = None
    waiting: int | None = None


@dataclass(slots=True)
class Timeline:
    """One instance's."""

    instance_id: str
    stages: int
    spans: list[StageSpan] = field(default_factory=list)
    turns: list[PhaseTurn] = field(default_factory=list)
    samples: list[MemorySample] = field(default_factory=list)
