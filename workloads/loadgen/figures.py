"""From outcomes to figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tidepipe_common.settings.defaults import QUANTILES
from workloads.loadgen.outcome import Outcome

Summary = dict[str, float]
"""mean, p50, p90, p99, max; milliseconds."""

CLIENT_LAG_MS = 50.0
SENT_LATE_MS = 100.0
"""What a client may be late by itself; see `starved`."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One run. Latencies are those of requests that were answered; attainment is of all that were sent.

    switch_wait: with the wait for the second token in TTFT instead of TPOT (EcoServe's definition).
    lateness_ms: by how much the client itself sent too late. client_lag_ms: how late its event loop came, if
        that was watched. Not small: the client is the bottleneck.
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
    client_lag_ms: Summary = field(default_factory=dict)

    @property
    def starved(self) -> str:
        """Why the client, and not the server, may be what was measured; empty if it kept up."""
        lag, late = self.client_lag_ms.get("max", 0.0), self.lateness_ms.get("max", 0.0)
        if lag <= CLIENT_LAG_MS and late <= SENT_LATE_MS:
            return ""
        usual = self.client_lag_ms.get("p99", 0.0)
        return (
            f"the client lacked processor time: its loop came up to {lag:.0f} ms late (P99 {usual:.0f}), a "
            f"request went out {late:.0f} ms late; these figures may be the client's"
        )


def figures_of(
    outcomes: Sequence[Outcome],
    rate: float,
    ttft_s: float,
    tpot_s: float,
    client_lags: Sequence[float] = (),
) -> Figures:
    """Of all requests of a run at `rate` per second. client_lags: see `send_watched`."""
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
        client_lag_ms=_summary(client_lags),
    )


def _summary(seconds: Sequence[float]) -> Summary:
    if not seconds:
        return {}
    values = {"mean": float(np.mean(seconds))}
    values |= {f"p{q}": float(v) for q, v in zip(QUANTILES, np.percentile(seconds, QUANTILES), strict=True)}
    values["max"] = float(np.max(seconds))
    return {name: round(1000 * value, 3) for name, value in values.items()}
