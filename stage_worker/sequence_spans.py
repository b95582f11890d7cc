"""The spans of sequences at one stage: from the first step of each until its blocks were given back.

One span per sequence, and not per step, however long the output: it says how many steps there were, and how
long they took for all that were in them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe_common.telemetry.traces import NO_TRACES, Span, Traces
from tidepipe_common.types.plan import StepPlan, StepReport


@dataclass(slots=True)
class _Work:
    span: Span
    prompt_steps: int = 0
    decode_steps: int = 0
    tokens: int = 0
    busy_s: float = 0.0


class SequenceSpans:
    """Of one epoch, which is over when `close` is called."""

    def __init__(self, traces: Traces = NO_TRACES, stage: int = 0, stages: int = 1) -> None:
        self._traces = traces
        self._stage = stage
        self._stages = stages
        self._open: dict[int, _Work] = {}

    def note(self, plan: StepPlan, report: StepReport) -> None:
        """A step is done."""
        for key in plan.releases:
            self._end(key)
        for start in plan.starts:
            if start.trace_context:
                span = self._traces.begin(
                    f"stage {self._stage}",
                    start.trace_context,
                    {"tidepipe.stage": self._stage, "tidepipe.stages": self._stages},
                    "server",
                    ago_s=report.own.compute_s,
                )
                self._open[start.key] = _Work(span)
        if not self._open:
            return
        for key in self._open.keys() & plan.decode.keys:
            work = self._open[key]
            work.decode_steps += 1
            work.tokens += 1
            work.busy_s += report.own.compute_s
        for row in plan.listed:
            if (one := self._open.get(row.key)) is not None:
                one.prompt_steps += 1
                one.tokens += row.count
                one.busy_s += report.own.compute_s

    def close(self) -> None:
        """Whatever is still computed is given up."""
        for key in list(self._open):
            self._end(key, "the epoch ended")

    def _end(self, key: int, error: str = "") -> None:
        if (work := self._open.pop(key, None)) is None:
            return
        work.span.note(
            {
                "tidepipe.prefill_steps": work.prompt_steps,
                "tidepipe.decode_steps": work.decode_steps,
                "tidepipe.tokens": work.tokens,
                "tidepipe.busy_s": work.busy_s,
            }
        )
        work.span.end(error)
