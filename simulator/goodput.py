"""Goodput: the request rate up to which the wanted share of requests meets both targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from controller.scheduler.policies.catalog import Knobs
from router.scheduler.slo import SloTarget
from simulator.cluster_spec import ClusterSpec
from simulator.job import NOT_YET, Job
from simulator.systems import run_system, scan
from tidepipe_common.settings.defaults import QUANTILES
from workloads.arrivals import Arrivals, requests_at
from workloads.goodput import search_goodput
from workloads.mixes import Workload, followers

WARM_UP, COOL_DOWN = 0.25, 0.9
"""Shares of a run between which requests are counted: the cluster is in its steady state."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a system.

    attainment: share of the requests that must meet both targets. switch_wait: whether the wait for the
    phase switch counts as TTFT (EcoServe's definition) or as TPOT (the classical one).
    seconds: length of a run; see WARM_UP. Several times that of a conversation, where there are any.
    least_requests: at low rates runs are longer.
    noise: sigma of the logarithm of predicted lengths; 0 knows them.
    """

    workload: Workload
    slo: SloTarget
    attainment: float = 0.9
    arrivals: Arrivals = field(default_factory=Arrivals)
    switch_wait: bool = True
    seconds: float = 120.0
    least_requests: int = 400
    seed: int = 0
    noise: float = 0.3

    @property
    def at_hand(self) -> int | None:
        """Requests that a run can have; None for any number, where they may be drawn again and again."""
        stretch = any(one.content for one in self.workload.requests) and not self.workload.in_turns
        return len(self.workload.requests) if stretch or self.arrivals.kind == "trace" else None

    def count(self, rate: float) -> int:
        """Requests of a run at this rate."""
        return max(self.least_requests, round(rate * self.seconds))

    def jobs(self, rate: float) -> list[Job]:
        """Requests at this rate."""
        count = self.count(rate)
        requests = requests_at(self.workload, self.arrivals, rate, count, self.seed).requests
        wrong = np.exp(np.random.default_rng([self.seed, 3]).normal(0.0, self.noise, len(requests)))
        jobs = [
            Job(i, one.prompt_tokens, one.output_tokens, one.arrival_s, self.slo,
                max(1, round(one.output_tokens * float(wrong[i]))), content=one.content, think_s=one.think_s)
            for i, one in enumerate(requests)
        ]  # fmt: skip
        for before, after in followers(requests).items():
            jobs[before].following = jobs[after]
            jobs[after].arrival = NOT_YET
        return jobs


@dataclass(frozen=True, slots=True)
class Figures:
    """What users see at one rate. Milliseconds by percentile; both definitions of attainment.

    cached_tokens: of all prompts, those that were found and not computed; hit_rate: their share.
    """

    rate: float
    attainment: float
    attainment_classical: float
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    ttft_classical_ms: dict[str, float]
    tpot_classical_ms: dict[str, float]
    output_tokens_per_s: float
    preemptions: int
    cached_tokens: int = 0
    hit_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Goodput:
    """figures: at the goodput; None if not even the lowest rate that was tried attains."""

    system: str
    knobs: Knobs
    rps: float
    figures: Figures | None
    runs: int = 1


def figures_of(jobs: Sequence[Job], rate: float, question: Question) -> Figures:
    """Of the requests in the middle of a run, which ends with the last one that waits for no answer."""
    later = {job.following for job in jobs}
    end = max(job.arrival for job in jobs if job not in later)
    middle = [job for job in jobs if WARM_UP * end <= job.arrival <= COOL_DOWN * end]
    last = max(job.finished for job in jobs)

    def quantiles(values: list[float]) -> dict[str, float]:
        found = np.percentile(values, QUANTILES) * 1000
        return {f"p{q}": round(float(v), 3) for q, v in zip(QUANTILES, found, strict=True)}

    def share(*, switch_wait: bool) -> float:
        return sum(job.met(switch_wait=switch_wait) for job in middle) / len(middle)

    chosen = question.switch_wait
    return Figures(
        rate,
        share(switch_wait=chosen),
        share(switch_wait=False),
        quantiles([job.ttft(switch_wait=chosen) for job in middle]),
        quantiles([job.tpot(switch_wait=chosen) for job in middle]),
        quantiles([job.ttft(switch_wait=False) for job in middle]),
        quantiles([job.tpot(switch_wait=False) for job in middle]),
        sum(job.output for job in jobs) / last,
        sum(job.preemptions for job in jobs),
        cached := sum(job.cached for job in jobs),
        cached / sum(job.prompt for job in jobs),
    )


LOWEST, LEAST = 16.0, 500.0
"""The scan begins at this part of what the devices could compute, or lower, down to the second."""
PRECISION = 0.03

Run = Callable[[str, Knobs, ClusterSpec, Sequence[Job]], None]


def measure(system: str, knobs: Knobs, spec: ClusterSpec, question: Question, rate: float,
            run: Run = run_system) -> Figures:  # fmt: skip
    """One run at one rate."""
    jobs = question.jobs(rate)
    run(system, knobs, spec, jobs)
    return figures_of(jobs, rate, question)


def goodput(
    system: str,
    knobs: Knobs,
    spec: ClusterSpec,
    question: Question,
    *,
    floor: float = 0.0,
    precision: float = PRECISION,
    run: Run = run_system,
) -> Goodput:
    """The rate up to which a system attains throughout, see `search_goodput`.

    floor: a rate that must be attained at all, else the search ends at once with goodput 0 (tuning: settings
    that do not beat the best so far are not of interest).
    """
    runs = 0
    best: Figures | None = None

    def attains(rate: float) -> bool:
        nonlocal runs, best
        runs += 1
        found = measure(system, knobs, spec, question, rate, run)
        if found.attainment < question.attainment:
            return False
        best = found
        return True

    if floor and not attains(floor):
        return Goodput(system, knobs, 0.0, None, runs)
    best = None
    likely = likely_rate(spec, question.workload)
    search = search_goodput(likely / LOWEST, likely / LEAST, precision)
    rate = next(search)
    while True:
        try:
            rate = search.send(attains(rate))
        except StopIteration as end:
            return Goodput(system, knobs, end.value, best, runs)


def tuned_goodput(
    system: str,
    spec: ClusterSpec,
    question: Question,
    *,
    precision: float = PRECISION,
    run: Run = run_system,
) -> Goodput:
    """At the best of the settings that are scanned for the system."""
    best: Goodput | None = None
    runs = 0
    for knobs in scan(system, spec):
        floor = best.rps * (1 + precision) if best else 0.0
        found = goodput(system, knobs, spec, question, floor=floor, precision=precision, run=run)
        runs += found.runs
        if best is None or found.rps > best.rps:
            best = found
    if best is None:
        return Goodput(system, {}, 0.0, None)
    return Goodput(system, best.knobs, best.rps, best.figures, runs)


def confirmed(found: Goodput, spec: ClusterSpec, question: Question, run: Run) -> Goodput:
    """The same, with figures from another way to run: at its goodput, or as much lower as that needs.

    Steps of PRECISION; then at each half of it down to a sixteenth, for it must attain throughout.
    """
    lowest = found.rps / 16
    rate, runs = found.rps, found.runs
    figures: Figures | None = None

    def attains(at: float) -> Figures | None:
        nonlocal runs
        runs += 1
        seen = measure(found.system, found.knobs, spec, question, at, run)
        return seen if seen.attainment >= question.attainment else None

    while rate > lowest:
        figures = attains(rate)
        if figures is not None:
            missed = next((at for at in _halves(rate, lowest) if attains(at) is None), None)
            if missed is None:
                return Goodput(found.system, found.knobs, rate, figures, runs)
            rate = missed
        rate *= 1 - PRECISION
    return Goodput(found.system, found.knobs, 0.0, None, runs)


def _halves(rate: float, lowest: float) -> Iterator[float]:
    while (rate := rate / 2) > lowest:
        yield rate


def likely_rate(spec: ClusterSpec, workload: Workload) -> float:
    """Requests per second that the devices could compute at full batches, roughly."""
    cost = spec.latency()
    prompt = workload.prompt_tokens / len(workload.requests)
    output = workload.output_tokens / len(workload.requests)
    batch = max(1.0, min(256.0, spec.kv_tokens() / (prompt + output)))
    stage_s = cost.linear_s(2048) / 2048 * prompt
    stage_s += output / batch * (cost.linear_s(round(batch)) + cost.attention_s(spec.kv_tokens() // 2, 0.0))
    return max(0.02, 0.6 * spec.instances / stage_s)
