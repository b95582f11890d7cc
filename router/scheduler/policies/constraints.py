"""Constraints on sending a request to an instance: it and those already there keep their targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from router.scheduler.instance_report import FOREVER
from router.scheduler.request import RouteRequest
from router.scheduler.steady_state import KV_SHARE
from router.scheduler.view import InstanceView


class Check(NamedTuple):
    """satisfied, or what stands against it, with the numbers that were compared."""

    satisfied: bool
    reason: str
    numbers: Mapping[str, float]


class Constraint(Protocol):
    """A rule as a value."""

    def check(self, request: RouteRequest, view: InstanceView, now: float) -> Check:
        """Would the instance and its requests still meet their targets with this one?"""
        ...


@dataclass(frozen=True, slots=True)
class MeanSlack:
    """EcoServe's Algorithm 1 as published.

    1. The prefill time of the whole window, the request included, is within its TTFT target.
    2. The mean saved TPOT of the decoding requests pays for that window.
    3. Its prompt fits into the free KV memory.
    """

    def check(self, request: RouteRequest, view: InstanceView, now: float) -> Check:
        """See the class."""
        earlier = view.window
        window = view.facts.prefill.seconds(earlier.plus(view.work_of(request)))
        ttft = request.slo.ttft_s
        # A prompt that takes longer than its target by itself would wait for ever.
        if window > ttft and earlier.tokens:
            return Check(False, "the prefill window would be longer than the TTFT target",
                         {"window_s": window, "ttft_s": ttft})  # fmt: skip
        slack = view.slack
        saved = slack.mean_due - now
        if slack.count and saved < window:
            return Check(False, "saved TPOT does not pay for the prefill window",
                         {"saved_s": saved, "window_s": window, "decoding": slack.count})  # fmt: skip
        needed = view.kv_of(request)
        if needed > view.kv_free:
            return Check(False, "not enough free KV memory",
                         {"needed": needed, "free": view.kv_free})  # fmt: skip
        numbers = {"window_s": window, "ttft_s": ttft, "kv_free": view.kv_free}
        if slack.count:
            numbers["saved_s"] = saved
        return Check(True, "TTFT, saved TPOT and memory hold", numbers)


@dataclass(frozen=True, slots=True)
class LatestResume:
    """Algorithm 1 sharpened: every condition asks about points in time, and about single requests.

    1. What is *left* of the window, the request included, ends before the first TTFT target in it does; time
       that a request has waited counts, work that is done does not.
    2. Nearly all decoding requests can wait so long: their latest resume times, which count what faster
       decoding will earn until their predicted ends, lie behind the window's end. A mean lets those with
       much slack hide those with none, and knows only what was saved, not what will be.
    3. The forecast KV peak fits, with the request's prompt and the output that an answer is expected to have
       there.

    margin: share of the window's predicted time that is added to it, for errors of the prediction.
    kv_share: of the memory that the forecast peak may take.
    decoding: whether anybody decodes there for longer than until it goes on elsewhere; else 2. is not asked.
    """

    margin: float = 0.05
    kv_share: float = KV_SHARE
    decoding: bool = True

    def check(self, request: RouteRequest, view: InstanceView, now: float) -> Check:
        """See the class."""
        left = view.prompt_done_s(request) * (1.0 + self.margin)
        end = now + left
        window_due = view.window_deadline if view.window_deadline > now else FOREVER
        if (overdue := now - request.first_token_due) < 0:
            due = min(request.first_token_due, window_due)
        else:
            # Its target is missed: it must not spoil others', until it has waited as long again.
            due = window_due if overdue < request.slo.ttft_s else FOREVER
        if end > due:
            return Check(False, "the prefill window would end behind a TTFT target",
                         {"left_s": left, "until_due_s": due - now})  # fmt: skip
        latest = view.slack.low_latest if self.decoding and overdue < request.slo.ttft_s else FOREVER
        if end > latest:
            return Check(False, "decoding requests cannot wait for the window's end",
                         {"left_s": left, "until_resume_s": latest - now})  # fmt: skip
        needed = view.kv_of(request)
        peak = view.kv_peak + needed + view.growth_of(request)
        if needed > view.kv_free or peak > view.kv_total * self.kv_share:
            return Check(False, "not enough KV memory",
                         {"peak": peak, "total": view.kv_total, "free": view.kv_free})  # fmt: skip
        return Check(True, "TTFT, latest resume and memory hold",
                     {"left_s": left, "until_due_s": due - now, "until_resume_s": latest - now})  # fmt: skip
