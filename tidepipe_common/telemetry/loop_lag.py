"""How late this process's event loop comes: for so long it was deaf to everybody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable

from prometheus_client import Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from tidepipe_common.telemetry.buckets import LOOP_LAG_S

SAMPLE_S = 0.02
IDLE_SAMPLE_S = 0.1
"""Each process of a machine wakes for this, and most do nothing else most of the time."""
IDLE_SHARE = 0.1
"""Of a core: whose loop takes less is idle, whatever other threads compute. Waking every SAMPLE_S is a
seventh of that."""


async def lags(longest_s: float = SAMPLE_S) -> AsyncIterator[tuple[float, float]]:
    """How late this loop wakes who asks every SAMPLE_S, and what the process computed meanwhile; seconds.

    longest_s: while the loop is idle it asks more and more seldom, up to this.
    """
    wait_s = SAMPLE_S
    while True:
        due = time.monotonic() + wait_s
        computed, own = -time.process_time(), -time.thread_time()
        await asyncio.sleep(wait_s)
        lag = max(time.monotonic() - due, 0.0)
        computed, own = computed + time.process_time(), own + time.thread_time()
        yield lag, computed
        idle = own < IDLE_SHARE * (wait_s + lag)
        wait_s = min(2 * wait_s, longest_s) if idle else SAMPLE_S


class LoopLag:
    """Measured by a task that wakes every SAMPLE_S, or more seldom while nothing is done, and sees how much
    later that was."""

    def __init__(self) -> None:
        self._histogram = Histogram(
            "tidepipe_event_loop_lag_seconds",
            f"How late the event loop woke a task, which asks every {SAMPLE_S * 1000:g} ms while it has "
            f"much to do, and else up to every {IDLE_SAMPLE_S * 1000:g} ms",
            buckets=LOOP_LAG_S,
            registry=None,
        )
        self.max_s = 0.0
        self.max_computing_s = 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        async for lag, computed in lags(IDLE_SAMPLE_S):
            self._histogram.observe(lag)
            self.max_s = max(self.max_s, lag)
            # What it did not compute meanwhile, the machine gave to others.
            self.max_computing_s = max(self.max_computing_s, min(lag, computed))

    def metrics(self) -> Iterable[Metric]:
        """As metrics for Prometheus."""
        yield from self._histogram.collect()
        most = GaugeMetricFamily(
            "tidepipe_event_loop_lag_max_seconds", "The longest that the event loop was deaf since start"
        )
        most.add_metric([], self.max_s)
        yield most
        own = GaugeMetricFamily(
            "tidepipe_event_loop_lag_computing_max_seconds",
            "The longest that it was deaf and the process computed as long: the rest is the machine's",
        )
        own.add_metric([], self.max_computing_s)
        yield own


PROCESS_LAG = LoopLag()
"""Of the loop that this process's service runs on."""
