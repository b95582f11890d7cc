"""How deaf each service's event loop was meanwhile: from its own metrics, before and after."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

from launcher.child import Child

HISTOGRAM = "tidepipe_event_loop_lag_seconds"
MOST = "tidepipe_event_loop_lag_max_seconds"
COMPUTING = "tidepipe_event_loop_lag_computing_max_seconds"


@dataclass(slots=True)
class Lag:
    """Of one process since its start. counts: how many times the loop was at most so late, by seconds.

    computing: the longest that was its own doing, and not the machine's.
    """

    most: float = 0.0
    computing: float = 0.0
    counts: dict[float, float] = field(default_factory=dict)

    def since(self, before: Lag) -> float:
        """The longest, seconds: itself if none was longer since the start, else its bucket's limit."""
        if self.most > before.most or self._total < before._total:  # or the process is another one
            return self.most
        late = 0.0
        below = 0.0
        for limit in sorted(self.counts):
            came = self.counts[limit] - before.counts.get(limit, 0.0)
            if came > below:
                late, below = limit, came
        return min(late, self.most)

    @property
    def _total(self) -> float:
        return max(self.counts.values(), default=0.0)


async def read_lags(children: Sequence[Child]) -> dict[str, Lag]:
    """Of all processes that answer."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        lags = await asyncio.gather(*(_read(client, child) for child in children))
    return {child.name: lag for child, lag in zip(children, lags, strict=True)}


async def _read(client: httpx.AsyncClient, child: Child) -> Lag:
    lag = Lag()
    try:
        text = (await client.get(f"http://{child.metrics_address}/metrics")).text
    except httpx.HTTPError:
        return lag
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{HISTOGRAM}_bucket":
                lag.counts[float(sample.labels["le"])] = sample.value
            elif sample.name == MOST:
                lag.most = sample.value
            elif sample.name == COMPUTING:
                lag.computing = sample.value
    return lag
