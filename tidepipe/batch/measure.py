"""What a run did to the cluster: the difference between its state before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tidepipe.client.status import ClusterStatus, PipelineStatus, StageStatus


@dataclass(slots=True)
class RunClock:
    """First dispatch and last token of a run, on time.monotonic()."""

    first: float | None = None
    last: float = 0.0

    def dispatched(self, now: float) -> None:
        """A request goes out."""
        if self.first is None:
            self.first = now

    def token(self, now: float) -> None:
        """Tokens came in."""
        self.last = now

    @property
    def seconds(self) -> float:
        """From the first dispatch to the last token."""
        return max(0.0, self.last - self.first) if self.first is not None else 0.0


def cluster_deltas(before: ClusterStatus, after: ClusterStatus, seconds: float) -> dict[str, Any]:
    """Busy share and memory of each stage, and how often the scheduler switched, preempted and stole."""
    earlier = {instance.instance_id: instance.status for instance in before.instances}
    stages: list[dict[str, Any]] = []
    counters = {"phase_switches": 0, "preemptions": 0, "steals": 0}
    for instance in after.instances:
        status = instance.status
        if status is None:
            continue
        start = earlier.get(instance.instance_id)
        for name in counters:
            counters[name] += getattr(status, name) - _at_start(start, status, name)
        stages += [
            {"instance": instance.instance_id, **_stage(start, status, stage, seconds)}
            for stage in status.stages
        ]
    return {"stages": stages, **counters}


def _stage(
    start: PipelineStatus | None, status: PipelineStatus, stage: StageStatus, seconds: float
) -> dict[str, Any]:
    prefill, decode = stage.prefill_busy_s, stage.decode_busy_s
    # Busy times begin anew with each epoch; after a fault only what came behind it is known.
    if start is not None and (start.incarnation, start.epoch) == (status.incarnation, status.epoch):
        prefill -= start.stages[stage.index].prefill_busy_s
        decode -= start.stages[stage.index].decode_busy_s
    return {
        "index": stage.index,
        "layers": [stage.layer_begin, stage.layer_end],
        "device": stage.device,
        "dtype": stage.dtype,
        "busy": round((prefill + decode) / seconds, 4) if seconds > 0 else 0.0,
        "prefill_busy_s": round(prefill, 3),
        "decode_busy_s": round(decode, 3),
        "rss_bytes": stage.rss_bytes,
    }


def _at_start(start: PipelineStatus | None, status: PipelineStatus, name: str) -> int:
    """The counter's value before; zero if the controller was restarted, which set it to zero."""
    same = start is not None and start.incarnation == status.incarnation
    return int(getattr(start, name)) if same else 0
