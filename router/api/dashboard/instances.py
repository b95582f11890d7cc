"""Asks an instance how it stands and what it did, and says it as the page reads it. Knows protobuf."""

from __future__ import annotations

import asyncio
from typing import Any

from router.api.dashboard.recent import PHASES, RecentSteps, Rows
from router.instances.link import InstanceLink
from tidepipe.v1 import controller_pb2, timeline_pb2
from tidepipe_common.codec.plan import phase_from_wire
from tidepipe_common.codec.timeline import add_piece
from tidepipe_common.errors import TidePipeError
from tidepipe_common.exception_groups import leaves
from tidepipe_common.types.timeline import Timeline

TIMEOUT_S = 1.0
"""For one look at one instance. The page goes on without those that are late."""


class WatchedInstance:
    """One instance while somebody watches."""

    def __init__(self, base: float) -> None:
        """base: see RecentSteps."""
        self.epoch = 0
        self._recent = RecentSteps(base)
        self._facts: dict[str, Any] = {}

    async def look(self, link: InstanceLink, now: float) -> dict[str, Any]:
        """News of the instance. One that does not answer in time is named with the reason."""
        self._facts = _about(link)
        rows = Rows()
        try:
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(link.client.status(TIMEOUT_S))
                told = group.create_task(self._timeline(link, now))
            rows = self._recent.take(told.result(), now)
            self.epoch = asked.result().epoch
            self._facts["status"] = _status(asked.result())
        except* TidePipeError as errors:
            self._facts["error"] = str(leaves(errors)[0])
        return self._facts | _rows(rows)

    def whole(self) -> dict[str, Any]:
        """The last news, with all that is kept of the last minute."""
        return self._facts | _rows(self._recent.all())

    async def _timeline(self, link: InstanceLink, now: float) -> Timeline:
        timeline = Timeline(link.instance_id, 0)
        request = timeline_pb2.GetTimelineRequest(seconds=self._recent.wanted_s(now))
        async for piece in link.client.timeline(request, TIMEOUT_S):
            add_piece(timeline, piece)
        return timeline


def _about(link: InstanceLink) -> dict[str, Any]:
    return {
        "id": link.instance_id,
        "address": link.announced.address,
        "model": link.model.name,
        "connected": link.connected,
        "draining": link.draining or link.set_aside or not link.lease_valid,
        "assigned": len(link.placements),
        "status": None,
        "error": "",
    }


def _rows(rows: Rows) -> dict[str, Any]:
    return {"spans": rows.spans, "turns": rows.turns, "samples": rows.samples}


def _reuse(reuse: controller_pb2.PrefixReuse) -> dict[str, Any]:
    return {
        "on": reuse.on,
        "asked_tokens": reuse.asked_tokens,
        "found_tokens": reuse.found_tokens,
        "evicted_blocks": reuse.evicted_blocks,
    }


def _status(status: controller_pb2.InstanceStatus) -> dict[str, Any]:
    total = max(1, status.kv_blocks_total)
    return {
        "serving": status.serving,
        "detail": status.detail,
        "policy": status.policy,
        "epoch": status.epoch,
        "phase": PHASES.index(phase_from_wire(status.phase)),
        "phase_age_s": round(status.phase_age_s, 2),
        "reason": status.phase_reason,
        "switches": status.phase_switches,
        "running": status.running,
        "waiting": status.waiting,
        "batches": list(status.batch_sizes),
        "kv_used": round(1 - status.kv_blocks_free / total, 4) if status.kv_blocks_total else 0.0,
        "kv_forecast": round(status.kv_blocks_forecast / total, 4),
        "kv_tokens": status.kv_blocks_total * status.block_size,
        "kv_cached": round(status.reuse.kept_blocks / total, 4),
        "reuse": _reuse(status.reuse) if status.HasField("reuse") else None,
        "steals": status.steals,
        "preemptions": status.preemptions,
        "forecast_error_tokens": round(status.forecast_error_tokens, 1),
        "forecasts_scored": status.forecasts_scored,
        "stages": [
            {
                "layers": [stage.layer_begin, stage.layer_end],
                "alive": stage.alive,
                "device": stage.device,
                "busy": round(stage.busy_share, 3),
                "bubbles": round(stage.bubble_share, 3),
                "slow": stage.slow_because,
            }
            for stage in status.stages
        ],
    }
