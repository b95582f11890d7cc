"""Arrivals of requests: their times, and their lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tidepipe_common.errors import ConfigError
from workloads.mixes import SimRequest, Workload, sessions_of, sharegpt_like


@dataclass(frozen=True, slots=True)
class Arrivals:
    """kind: poisson; gamma with a coefficient of variation `cv` of the gaps (1 is Poisson, above: bursts);
    or trace, the workload's own times, stretched to the rate."""

    kind: str = "poisson"
    cv: float = 1.0

    def times(self, lengths: tuple[SimRequest, ...], rate: float, seed: int) -> np.ndarray:
        """Seconds, rising, one per request; `rate` per second on average, of every draw."""
        count = len(lengths)
        if self.kind == "trace":
            own = np.sort(np.array([one.arrival_s for one in lengths]))
            span = own[-1] - own[0]
            if span <= 0:
                raise ConfigError("the workload has no arrival times of its own: choose poisson or gamma:CV")
            return np.asarray((own - own[0]) * (count / rate / span))
        chance = np.random.default_rng([seed, 11])
        gaps = chance.gamma(1.0 / self.cv**2, 1.0, count)
        # Scaled, so that the last comes at count / rate: a draw of 2,000 gaps with a coefficient of variation
        # of 2 would else be 4 % off its rate, which is more than goodput is searched to.
        return np.asarray(np.cumsum(gaps) * (count / rate / np.sum(gaps)))


def parse_arrivals(text: str) -> Arrivals:
    """`poisson`, `gamma:CV` or `trace`."""
    kind, _, rest = text.partition(":")
    if kind in ("poisson", "trace") and not rest:
        return Arrivals(kind)
    try:
        cv = float(rest)
    except ValueError:
        cv = 0.0
    if kind == "gamma" and 0 < cv < 100:
        return Arrivals("gamma", cv)
    raise ConfigError(f"unknown arrivals {text!r}; known: poisson, gamma:CV with CV above 0, trace")


def _log_normal(name: str, prompt: tuple[float, float], output: tuple[float, float],
                longest: int) -> Callable[[int, int], Workload]:  # fmt: skip
    """Lengths around medians with a spread (sigma of the logarithm), cut off at `longest` together."""

    def draw(count: int, seed: int) -> Workload:
        chance = np.random.default_rng([seed, 5])
        found: list[SimRequest] = []
        while len(found) < count:
            prompts = chance.lognormal(np.log(prompt[0]), prompt[1], count).astype(int)
            outputs = chance.lognormal(np.log(output[0]), output[1], count).astype(int)
            found += [
                SimRequest(int(p), int(o))
                for p, o in zip(prompts, outputs, strict=True)
                if p >= 4 and o >= 2 and p + o <= longest
            ]
        return Workload(name, tuple(found[:count]))

    return draw


MIXES: Mapping[str, Callable[[int, int], Workload]] = {
    # Alpaca-gpt4: an instruction of a line, an answer of a few paragraphs.
    "alpaca-like": _log_normal("alpaca-like", (20.0, 0.6), (140.0, 0.75), 2048),
    "sharegpt-like": sharegpt_like,
    # LongBench: a document, a short answer; cut to what a context of 4,096 holds.
    "longbench-like": _log_normal("longbench-like", (1900.0, 0.5), (75.0, 0.8), 4096),
}
"""Synthetic length mixes after the data sets of EcoServe's evaluation."""


def requests_at(workload: Workload, arrivals: Arrivals, rate: float, count: int, seed: int) -> Workload:
    """`count` requests at `rate` per second. Lengths in their own order for a trace, else drawn.

    Of conversations the first turns come so that all turns are `rate` per second on average, once as many
    conversations end as begin.
    """
    if arrivals.kind == "trace":
        source = workload.requests
        if count > len(source):
            raise ConfigError(
                f"the trace {workload.name} has {len(source)} requests, {count} are needed at {rate:.3g}/s; "
                f"shorten --seconds"
            )
        lengths = tuple(sorted(source, key=lambda one: one.arrival_s)[:count])
    else:
        lengths = workload.sample(count, seed).requests
    sessions = sessions_of(lengths)
    firsts = tuple(turns[0] for turns in sessions)
    begun = rate if len(firsts) == count else rate * len(firsts) / count
    times = arrivals.times(firsts, begun, seed)
    requests = tuple(
        replace(one, arrival_s=float(t)) for turns, t in zip(sessions, times, strict=True) for one in turns
    )
    return replace(workload, requests=requests)
