"""The event loop's lag is measured, and exported by whoever has metrics."""

from __future__ import annotations

import asyncio
import time

from tidepipe_common.telemetry.loop_lag import PROCESS_LAG, LoopLag
from tidepipe_common.telemetry.telemetry import Telemetry


async def test_a_loop_that_was_deaf_is_seen() -> None:
    lag = LoopLag()
    watch = asyncio.create_task(lag.run())
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 (that is what is to be seen)
    while not lag.max_s:  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0.01)
    watch.cancel()
    # It asked for a few hundredths of these.
    assert lag.max_s > 0.2
    histogram, most, own = lag.metrics()
    # It slept, and computed nothing.
    assert [one.value for one in own.samples] == [lag.max_computing_s]
    assert lag.max_computing_s < lag.max_s / 2
    assert next(one.value for one in histogram.samples if one.name.endswith("_count")) >= 1
    assert [one.value for one in most.samples] == [lag.max_s]


def test_every_registry_has_it() -> None:
    assert Telemetry().registry.get_sample_value("tidepipe_event_loop_lag_max_seconds") == PROCESS_LAG.max_s
