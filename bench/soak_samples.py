"""What the processes of a cluster hold, sampled over their lives; whether it grows."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from launcher.child import Child

SCRAPE_S = 5.0
LEAST_MINUTES = 1.0
"""Of a life, after its warm-up, for it to count."""
KV_USED, WAITING, RUNNING = "kv_cache_usage_perc", "num_requests_waiting", "num_requests_running"


@dataclass(frozen=True, slots=True)
class Sample:
    """at: seconds since the soak began. age: of the process, seconds. rss: bytes. fds: open descriptors."""

    name: str
    pid: int
    at: float
    age: float
    rss: int
    fds: int
    threads: int


def sample(name: str, pid: int, began: float) -> Sample | None:
    """None if the process has gone. began: by time.time()."""
    now = time.time()
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            age = now - process.create_time()
            held = (process.memory_info().rss, process.num_fds(), process.num_threads())
            return Sample(name, pid, now - began, age, *held)
    except psutil.Error:
        return None


def slope(samples: Iterable[Sample], quantity: str, warm_up_s: float) -> float | None:
    """Growth per minute of life: least squares over all lives together, each with a level of its own.

    warm_up_s: of each life left out; rings and caches fill, which is no leak.

    None if no process lived long enough for it to be told.
    """
    lives: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for one in samples:
        if one.age >= warm_up_s:
            lives[one.pid].append((one.age / 60, getattr(one, quantity)))
    above = below = 0.0
    for points in lives.values():
        # A single descriptor more or less during some seconds is not a slope.
        if points[-1][0] - points[0][0] < LEAST_MINUTES:
            continue
        mean_age = sum(age for age, _ in points) / len(points)
        mean_held = sum(held for _, held in points) / len(points)
        above += sum((age - mean_age) * (held - mean_held) for age, held in points)
        below += sum((age - mean_age) ** 2 for age, _ in points)
    # One minute's variance of age: a dozen samples over half a minute do not get there.
    return above / below if below > 1.0 else None


async def scraped(children: Sequence[Child], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Sums of the named metrics for every process that shows them."""
    found = {}
    for child in children:
        values = await asyncio.to_thread(_scrape, child.metrics_address)
        if kept := {name: value for name, value in values.items() if name in names}:
            found[child.name] = kept
    return found


def _scrape(address: str) -> dict[str, float]:
    values: defaultdict[str, float] = defaultdict(float)
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=SCRAPE_S) as reply:
        for family in text_string_to_metric_families(reply.read().decode()):
            for entry in family.samples:
                values[entry.name] += entry.value
    return values


def draw(samples: Sequence[Sample], kills: Sequence[dict[str, Any]], path: Path) -> None:
    """Memory and descriptors of every process over time; a dotted line for each kill."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    for axes, quantity, unit, label in zip(
        panels, ("rss", "fds"), (2**20, 1), ("resident MiB", "open descriptors"), strict=True
    ):
        for name in sorted({one.name for one in samples}):
            mine = [one for one in samples if one.name == name]
            axes.plot(
                [one.at for one in mine], [getattr(one, quantity) / unit for one in mine], label=name, lw=1
            )
        for kill in kills:
            axes.axvline(kill["at"], ls=":", lw=0.6, color="grey")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    panels[0].legend(fontsize=7, ncols=4)
    panels[1].set_xlabel("seconds; dotted: a process is killed")
    figure.savefig(path, dpi=120)
    plt.close(figure)
