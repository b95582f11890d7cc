"""What the router knows by itself, as the page reads it: requests, promises, macro instances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from router.api.dashboard.recent import PHASES
from router.models.models import ServedModels
from router.requests.attainment import WINDOW_S, Attainment, AttainmentRecord
from router.requests.table import RequestTable
from router.scheduler.view import InstanceView


class ClusterSummary:
    """Reads; asks nobody."""

    def __init__(
        self,
        table: RequestTable,
        models: ServedModels,
        record: AttainmentRecord,
        clock: Callable[[], float],
    ) -> None:
        self._table = table
        self._models = models
        self._record = record
        self._clock = clock

    def requests(self) -> dict[str, Any]:
        """Counts of requests and tokens, and why the first in line waits."""
        counts, now = self._table.counts, self._clock()
        schedulers = [model.dispatcher.scheduler for model in self._models]
        longest = max(schedulers, key=lambda scheduler: scheduler.pending.oldest_wait(now))
        first = longest.pending.ahead(1)
        why = longest.why_waiting(first[0].request_id) if first else None
        return {
            "running": counts.running,
            "queued": counts.queued,
            "finished": counts.finished,
            "failed": counts.failed,
            "shed": counts.shed,
            "most": self._table.max_requests,
            "pending": sum(len(scheduler.pending) for scheduler in schedulers),
            "oldest_wait_s": round(longest.pending.oldest_wait(now), 2),
            "why": why.reason if why is not None else "",
            "prompt_tokens": self._record.prompt_tokens,
            "generated_tokens": self._record.generated_tokens,
            "moved": self._models.moved,
        }

    def promises(self) -> dict[str, Any]:
        """TTFT and TPOT against what was promised."""
        target = self._record.default
        return {
            "window_s": WINDOW_S,
            "ttft": _attained(self._record.ttft(), target.ttft_s),
            "tpot": _attained(self._record.tpot(), target.tpot_s),
        }

    def macros(self) -> list[dict[str, Any]]:
        """Macro instances, their instances in the order in which they take turns."""
        now = self._clock()
        schedulers = [(model, model.dispatcher.scheduler) for model in self._models]
        return [
            {
                "id": name,
                "model": model.name,
                "routing": scheduler.policy_name,
                "chosen": macro.last_chosen,
                "members": [_member(view, now) for view in macro.views],
            }
            for model, scheduler in schedulers
            for name, macro in scheduler.macros.items()
        ]


def _member(view: InstanceView, now: float) -> dict[str, Any]:
    status = view.status
    member: dict[str, Any] = {
        "id": view.instance_id,
        "ready": view.ready,
        "draining": view.draining,
        "sequences": view.sequences,
        "window_tokens": view.window.tokens,
        "left_tokens": view.left.tokens,
        "left_s": round(view.facts.prefill.seconds(view.left), 3),
        "phase": 0,
        "phase_age_s": 0.0,
        "slack_s": None,
        "share": view.role.share,
        "share_reason": str(view.role),
    }
    if status is not None:
        member["phase"] = PHASES.index(status.phase)
        member["phase_age_s"] = round(now - status.switched, 2)
        if status.slack.count and math.isfinite(status.slack.mean_due):
            member["slack_s"] = round(status.slack.mean_due - now, 2)
    return member


def _attained(attainment: Attainment, target_s: float) -> dict[str, Any]:
    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else round(1000 * seconds, 1)

    return {
        "target_ms": ms(target_s),
        "met": attainment.met,
        "count": attainment.count,
        "p50_ms": ms(attainment.p50_s),
        "p90_ms": ms(attainment.p90_s),
    }
