"""The record of a simulated run."""

from __future__ import annotations

from dataclasses import dataclass, field

from tidepipe_common.types.plan import Phase
from tidepipe_common.types.timeline import MemorySample, PhaseTurn, StageSpan, Timeline


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step: when each stage computed it (start, end in seconds), and what it was."""

    phase: Phase
    tokens: int
    decode_rows: int
    spans: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """KV blocks in use, and the peak that was forecast then, as shares of all."""

    time_s: float
    used: float
    forecast: float


@dataclass(slots=True)
class Recording:
    """The course of a run, for pictures; memory is noted every `memory_every` steps."""

    memory_every: int = 16
    steps: list[StepRecord] = field(default_factory=list)
    memory: list[MemoryRecord] = field(default_factory=list)
    switches: list[tuple[float, Phase, Phase, str]] = field(default_factory=list)

    def timeline(self, name: str) -> Timeline:
        """For a trace; queues are not recorded."""
        steps = list(enumerate(self.steps, start=1))
        return Timeline(
            name,
            len(self.steps[0].spans) if self.steps else 0,
            [
                StageSpan(stage, number, step.phase, step.tokens, step.decode_rows, *span)
                for number, step in steps
                for stage, span in enumerate(step.spans)
            ],
            [PhaseTurn(*switch) for switch in self.switches],
            [MemorySample(one.time_s, one.used, one.forecast) for one in self.memory],
        )


@dataclass(frozen=True, slots=True)
class RunResult:
    """Figures of a run. Times in seconds; busy: share of the makespan that each stage computes.

    imbalance: of as many successive steps of one kind as there are stages, the longest over their mean, less
        one; mean over the run. What a pipeline loses to unequal batches.
    recomputed_tokens: of preempted sequences, again. cached_tokens: of prompts that were never computed, as
        their KV blocks were found. evicted_blocks: whose content was given up for other content.
    forecast_error: mean distance between the KV memory in use at the end of a decode phase and what was
        forecast at its start, as a share of the memory; None without decode phases.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    makespan_s: float
    stage_busy: tuple[float, ...]
    phase_switches: int
    preemptions: int
    recomputed_tokens: int
    steals: int
    steps: int
    kv_used_mean: float
    imbalance: float
    forecast_error: float | None
    cached_tokens: int = 0
    evicted_blocks: int = 0

    @property
    def output_tokens_per_s(self) -> float:
        """Delivered output tokens over the makespan."""
        return self.output_tokens / self.makespan_s

    @property
    def total_tokens_per_s(self) -> float:
        """Prompt and output tokens over the makespan."""
        return (self.prompt_tokens + self.output_tokens) / self.makespan_s

    @property
    def hit_rate(self) -> float:
        """Share of the prompts' tokens that was found."""
        return self.cached_tokens / self.prompt_tokens

    @property
    def busy(self) -> float:
        """Mean over the stages."""
        return sum(self.stage_busy) / len(self.stage_busy)

    @property
    def bubbles(self) -> float:
        """Share of the makespan that a stage waits, mean over the stages; ramp and drain included."""
        return 1.0 - self.busy
