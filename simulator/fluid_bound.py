"""The fluid bound: how many requests per second a cluster could serve if nothing were left to chance.

Requests flow evenly, all rounds of an instance are alike and take the TPOT target (or less, if memory is
short), prompts are computed as fast as they come, and nobody queues. No interference is left in it, and
nothing is lost to chance, so no schedule of these steps does better while it serves everybody; as one
request in ten may miss its targets, goodput can lie a little above it. A round of a pipeline is a step of
each of as many micro-batches as it has stages: with fewer it is idle, with more it reads its weights oftener.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.scheduler.prefill import PrefillTime
from router.scheduler.steady_state import EVENLY, IDEAL, OWN_STEPS, Load, Sizes, SteadyState, highest
from simulator.bound import found_by_ideal
from simulator.cluster_spec import ClusterSpec
from simulator.goodput import Question
from tidepipe_common.latency.work import chunk_pairs
from workloads.mixes import Workload

WAYS = (OWN_STEPS, EVENLY, 128, 256, 512, 1024)
"""In which prompts are computed, see `SteadyState`."""
PRECISION = 0.002


class Flow:
    """One instance's share of evenly flowing requests."""

    def __init__(self, spec: ClusterSpec, workload: Workload, found: Sequence[int] = ()) -> None:
        """found: of each prompt, tokens that need not be computed; none if it is empty."""
        requests = workload.requests
        count = len(requests)
        pairs = list(zip(requests, found or [0] * count, strict=True))
        sizes = Sizes(
            sum(one.prompt_tokens - here for one, here in pairs) / count,
            sum(chunk_pairs(here, one.prompt_tokens - here) for one, here in pairs) / count,
            sum(one.output_tokens - 1 for one in requests) / count,
            # A sequence holds its prompt and what it has so far, for as many rounds as it has tokens to come.
            held=sum(
                (one.output_tokens - 1) * (one.prompt_tokens - here + one.output_tokens / 2)
                for one, here in pairs
            )
            / count,
        )
        self._stages = spec.stages
        self._state = SteadyState(PrefillTime(spec.latency(), spec.stages), spec.kv_tokens(), sizes)

    def bears(self, rate: float, tpot_s: float, way: int, limit: int = 0) -> bool:
        """Can rounds be so short at this rate? limit: tokens of a step at most; 0: none."""
        found = self._state.settled(Load(rate, rate), way, tpot_s, IDEAL)
        return not found.limit and not (limit and found.tokens > limit)

    def decodes(self, rate: float, tpot_s: float) -> bool:
        """As `bears`, with prompts computed elsewhere."""
        return not self._state.settled(Load(0.0, rate), EVENLY, tpot_s, IDEAL).limit

    def prompts_per_s(self) -> float:
        """Prompts that an instance computes which does nothing else."""
        return self._state.prompts_per_s()


def flow_of(spec: ClusterSpec, workload: Workload) -> Flow:
    """Of these requests; what they share is computed once where blocks are kept."""
    shared = spec.prefix_caching and any(one.content for one in workload.requests)
    return Flow(spec, workload, found_by_ideal(workload.requests) if shared else ())


def bound(
    spec: ClusterSpec,
    asked: Question,
    *,
    budget: int = 0,
    flow: Flow | None = None,
    precision: float = PRECISION,
) -> float:
    """Requests per second of the whole cluster, in the best way to compute prompts.

    budget: a step has so many tokens at most, prompts and decode rows together; 0: any number.
    """
    of_one = flow or flow_of(spec, asked.workload)
    ways = (EVENLY, budget) if budget else WAYS

    def some(rate: float) -> bool:
        return any(of_one.bears(rate, asked.slo.tpot_s, way, budget) for way in ways)

    return highest(some, precision) * spec.instances


def apart_bound(spec: ClusterSpec, asked: Question, flow: Flow | None = None) -> float:
    """The same where KV caches may travel for nothing: each instance prefills alone, or decodes alone."""
    of_one = flow or flow_of(spec, asked.workload)
    decoded = highest(lambda rate: of_one.decodes(rate, asked.slo.tpot_s), PRECISION)
    if decoded == 0.0:
        return 0.0
    return spec.instances / (1 / of_one.prompts_per_s() + 1 / decoded)
