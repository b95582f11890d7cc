"""From outcomes to figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidepipe_common.settings.defaults import QUANTILES
from workloads.loadgen.outcome import Outcome

Summary = dict[str, float]
"""mean, p50, p90, p99; milliseconds."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One run. Latencies are those of requests that were answered; attainment is of all that were sent.

    switch_wait: with the wait for the second token in TTFT instead of TPOT (EcoServe's definition).
    lateness_ms: by how much the client itself sent too late; not small: the client is the bottleneck.
    """

    rate: float
    requests: int
    completed: int
    rejected: int
    failed: int
    first_error: str
    seconds: float
    requests_per_s: float
    output_tokens_per_s: float
    attainment: float
    attainment_switch_wait: float
    ttft_ms: Summary
    ttft_switch_wait_ms: Summary
    tpot_ms: Summary
    tpot_switch_wait_ms: Summary
    itl_ms: Summary
    rejection_ms: Summary
    lateness_ms: Summary


def figures_of(outcomes: Sequence[Outcome], rate: float, ttft_s: float, tpot_s: float) -> Figures:
    """Of all requests of a run at `rate` per second."""
    done = [one for one in outcomes if one.ok]
    failed = [one for one in outcomes if not one.ok and not one.rejected]
    end = max((one.last for one in done), default=0.0)

    def share(*, switch_wait: bool) -> float:
        return sum(one.met(ttft_s, tpot_s, switch_wait=switch_wait) for one in outcomes) / len(outcomes)

    return Figures(
        rate=rate,
        requests=len(outcomes),
        completed=len(done),
        rejected=sum(one.rejected for one in outcomes),
        failed=len(failed),
        first_error=next((one.error or "no tokens" for one in failed), ""),
        seconds=round(end, 3),
        requests_per_s=round(len(done) / end, 4) if end else 0.0,
        output_tokens_per_s=round(sum(one.output_tokens for one in done) / end, 2) if end else 0.0,
        attainment=share(switch_wait=False),
        attainment_switch_wait=share(switch_wait=True),
        ttft_ms=_summary([one.ttft(switch_wait=False) for one in done]),
        ttft_switch_wait_ms=_summary([one.ttft(switch_wait=True) for one in done]),
        tpot_ms=_summary([one.tpot(switch_wait=False) for one in done if one.output_tokens > 1]),
        tpot_switch_wait_ms=_summary([one.tpot(switch_wait=True) for one in done if one.output_tokens > 2]),
        itl_ms=_summary([gap for one in done for gap in one.inter_token()]),
        rejection_ms=_summary([one.ended - one.sent for one in outcomes if one.rejected]),
        lateness_ms=_summary([one.sent - one.due for one in outcomes]),
    )


def _summary(seconds: Sequence[float]) -> Summary:
    if not seconds:
        return {}
    values = {"mean": float(np.mean(seconds))}
    values |= {f"p{q}": float(v) for q, v in zip(QUANTILES, np.percentile(seconds, QUANTILES), strict=True)}
    return {name: round(1000 * value, 3) for name, value in values.items()}
