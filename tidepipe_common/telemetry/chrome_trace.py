"""Timelines as a Chrome trace, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

The JSON object format of the Trace Event Format: a process per instance, a thread per stage with a complete
event ("X") per step, an instant event ("i") per turn of the phase, counters ("C") of memory and batches, and
metadata ("M") that names them. Times in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tidepipe_common.errors import ConfigError
from tidepipe_common.types.plan import Phase
from tidepipe_common.types.timeline import StageSpan, Timeline

COLOURS = {Phase.PREFILL: "thread_state_iowait", Phase.DECODE: "thread_state_running", Phase.MIXED: "good"}
"""Colours by name that viewers know: orange, green-blue, green."""
SWITCHES = 0
"""The thread of the phase; stage i is thread i + 1."""


def write_chrome_trace(timelines: Sequence[Timeline], path: Path) -> int:
    """Write them to one file; returns the number of steps. Times are counted from the first event."""
    start = min((at for timeline in timelines for at in _times(timeline)), default=0.0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
            separator = ""
            for pid, timeline in enumerate(timelines, start=1):
                for event in trace_events(timeline, pid, start):
                    file.write(separator + json.dumps(event, separators=(",", ":")))
                    separator = ",\n"
            file.write("\n]}\n")
    except OSError as error:
        raise ConfigError(f"cannot write the trace {path}: {error.strerror or error}") from error
    return sum(len({span.step_id for span in timeline.spans}) for timeline in timelines)


def trace_events(timeline: Timeline, pid: int, start_s: float) -> Iterator[dict[str, Any]]:
    """The events of one instance, as process `pid`; start_s becomes time zero."""

    def us(at_s: float) -> float:
        return round((at_s - start_s) * 1e6, 3)

    yield _name("process_name", pid, SWITCHES, timeline.instance_id)
    yield _name("thread_name", pid, SWITCHES, "phase")
    for stage in range(timeline.stages):
        yield _name("thread_name", pid, stage + 1, f"stage {stage}")
    for span in timeline.spans:
        yield {
            "name": span.phase.value,
            "cat": "step",
            "ph": "X",
            "ts": us(span.start_s),
            "dur": round((span.end_s - span.start_s) * 1e6, 3),
            "pid": pid,
            "tid": span.stage + 1,
            "cname": COLOURS.get(span.phase, "grey"),
            "args": {"step": span.step_id, "tokens": span.tokens, "decode_rows": span.decode_rows},
        }
    for turn in timeline.turns:
        yield {
            "name": f"{turn.before.value} to {turn.after.value}",
            "cat": "phase",
            "ph": "i",
            "s": "p",
            "ts": us(turn.at_s),
            "pid": pid,
            "tid": SWITCHES,
            "args": {"reason": turn.reason},
        }
    for first in _at_first_stage(timeline.spans):
        values = {"decode rows": first.decode_rows, "prompt tokens": first.tokens - first.decode_rows}
        yield _counter("batch", pid, us(first.start_s), values)
    for sample in timeline.samples:
        at = us(sample.at_s)
        shares = {"in use": round(100 * sample.used, 2), "forecast peak": round(100 * sample.forecast, 2)}
        yield _counter("KV memory, %", pid, at, shares)
        if sample.running is not None:
            yield _counter("sequences", pid, at, {"running": sample.running, "waiting": sample.waiting})


def _at_first_stage(spans: Iterable[StageSpan]) -> Iterator[StageSpan]:
    return (span for span in spans if span.stage == 0)


def _times(timeline: Timeline) -> Iterator[float]:
    yield from (span.start_s for span in timeline.spans)
    yield from (turn.at_s for turn in timeline.turns)
    yield from (sample.at_s for sample in timeline.samples)


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": {"name": name}}


def _counter(name: str, pid: int, ts: float, values: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "C", "ts": ts, "pid": pid, "tid": SWITCHES, "args": values}
