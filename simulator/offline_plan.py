"""Offline planning: on all of the given devices, which policy in which layout finishes a workload soonest?

The devices are as many instances as there is room for, and each has its share of the requests, dealt out in
their order. Shares are alike, so the one with the most tokens is run and stands for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from simulator.bound import found_by_ideal, mixed_batch_bound
from simulator.layouts import Fleet, Layout
from simulator.offline import OfflineRun, PipelineSpec, best_of_scan, run_offline
from simulator.predictions import predictor
from simulator.workers import TimeIsUpError
from tidepipe_common.settings.defaults import BLOCK_SIZE
from workloads.mixes import Workload, sessions_of

OF_TENSORS = "tp-"
"""Begins the names of policies of one tensor-parallel stage."""
USUAL = ("auto", "hybrid", "tp-hybrid")
ROUND = 4
"""Ways that are looked at before the bound is asked again who may still win."""


@dataclass(frozen=True, slots=True)
class Way:
    """instances: of that layout, all that there is room for. bound_s: it takes so long at least."""

    policy: str
    layout: Layout
    instances: int
    bound_s: float

    @property
    def devices(self) -> int:
        """That it uses."""
        return self.layout.devices * self.instances

    @property
    def by_tensors(self) -> bool:
        """One tensor-parallel stage, rather than a pipeline?"""
        return self.policy.startswith(OF_TENSORS)


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs ways: what each process of the search is given once. noise: as of `noise:X`; 0 knows lengths."""

    fleet: Fleet
    workload: Workload
    noise: float
    seed: int
    scan: bool

    def __call__(self, way: Way) -> OfflineRun:
        """The share that takes longest."""
        predict = predictor(f"noise:{self.noise}" if self.noise else "oracle")
        spec, share = self.spec(way.layout), self.share(way.instances)
        if self.scan:
            return best_of_scan(spec, way.policy, share, predict, self.seed)
        return run_offline(spec, way.policy, share, predict, self.seed)

    def spec(self, layout: Layout) -> PipelineSpec:
        """One instance. Whether it is a pipeline or tensor-parallel is the policy's to say."""
        of_one = self.fleet.spec(layout, 1)
        return PipelineSpec(
            of_one.shape, of_one.hardware, layout.devices, of_one.profile, of_one.max_total,
            prefix_caching=of_one.prefix_caching, dispatch_s=of_one.dispatch_s,
        )  # fmt: skip

    def share(self, instances: int) -> Workload:
        """Of one instance: that with the most tokens. Conversations stay whole."""
        sessions = sessions_of(self.workload.requests)
        shares = [[one for turns in sessions[n::instances] for one in turns] for n in range(instances)]
        largest = max(shares, key=lambda share: sum(one.prompt_tokens + one.output_tokens for one in share))
        return replace(self.workload, requests=tuple(largest))

    def ways(self, policies: Sequence[str], layouts: Sequence[Layout]) -> list[Way]:
        """All that there are, those first that may be soonest."""
        found = []
        for layout in layouts:
            if layout.stages > 1 and layout.tensor > 1:
                continue
            instances = min(self.fleet.most_instances(layout), len(self.workload.requests))
            share, of_one = self.share(instances), self.fleet.spec(layout, 1)
            known = found_by_ideal(share.requests) if of_one.prefix_caching else ()
            cost = of_one.latency()
            tokens = cost.kv_blocks(BLOCK_SIZE) * BLOCK_SIZE
            bound_s = mixed_batch_bound(share.requests, cost, layout.stages, tokens, known).makespan_s
            found += [
                Way(policy, layout, instances, bound_s)
                for policy in policies
                if policy.startswith(OF_TENSORS) == (layout.tensor > 1)
            ]
        return sorted(found, key=lambda way: (way.bound_s, policies.index(way.policy)))


@dataclass(frozen=True, slots=True)
class OfflinePlan:
    """runs: soonest first. pruned: by their bound later than the first. unfinished: there was no time."""

    runs: list[tuple[Way, OfflineRun]]
    pruned: list[Way]
    unfinished: list[Way]


def plan_offline(
    ways: Sequence[Way], ask: Callable[[Sequence[Way]], Iterator[OfflineRun]], tell: Callable[[str], None]
) -> OfflinePlan:
    """Run those that may still win, a few at a time, whoever runs them."""
    runs: list[tuple[Way, OfflineRun]] = []
    pruned: list[Way] = []
    left = list(ways)
    try:
        while left:
            best_s = min((run.result.makespan_s for _, run in runs), default=float("inf"))
            pruned += [way for way in left if way.bound_s >= best_s]
            left = [way for way in left if way.bound_s < best_s]
            answers = ask(left[:ROUND])
            for way in left[:ROUND]:
                shape = f"{way.instances} x {way.layout.stages} x {way.layout.tensor}"
                tell(f"{way.policy}, {shape}; {len(left)} left")
                runs.append((way, next(answers)))
                left.remove(way)
    except TimeIsUpError:
        pass
    return OfflinePlan(sorted(runs, key=lambda pair: pair[1].result.makespan_s), pruned, left)
