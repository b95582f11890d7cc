"""The fluid bound: how many requests per second a cluster could serve if nothing were left to chance.

Requests flow evenly, all rounds of an instance are alike and take the TPOT target (or less, if memory is
short), prompts are computed as fast as they come, and nobody queues. No interference is left in it, and
nothing is lost to chance, so no schedule of these steps does better while it serves everybody; as one
request in ten may miss its targets, goodput can lie a little above it. A round of a pipeline is a step of
each of as many micro-batches as it has stages: with fewer it is idle, with more it reads its weights oftener.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from simulator.bound import found_by_ideal
from simulator.cluster_spec import ClusterSpec
from simulator.goodput import Question
from tidepipe_common.latency.work import StepWork, chunk_pairs
from workloads.mixes import Workload

CHUNKS = (0, 128, 256, 512, 1024)
"""Tokens of a step that prompts ride on; 0: in every round as many prompt tokens as come in a round."""
WAYS: tuple[int | None, ...] = (None, *CHUNKS)
"""In which prompts are computed; None: in steps of their own."""
PRECISION = 0.002
_APART_TOKENS = 2048
"""Of a step that computes prompts alone."""


class Flow:
    """One instance's share of evenly flowing requests."""

    def __init__(self, spec: ClusterSpec, workload: Workload, found: Sequence[int] = ()) -> None:
        """found: of each prompt, tokens that need not be computed; none if it is empty."""
        requests = workload.requests
        count = len(requests)
        found = found or [0] * count
        self._cost, self._kv, self._stages = spec.latency(), spec.kv_tokens(), spec.stages
        pairs = list(zip(requests, found, strict=True))
        self._prompt = sum(one.prompt_tokens - here for one, here in pairs) / count
        self._output = sum(one.output_tokens - 1 for one in requests) / count
        self._pairs = sum(chunk_pairs(here, one.prompt_tokens - here) for one, here in pairs) / count
        # A sequence holds its prompt and what it has so far, for as many rounds as it has tokens to come.
        self._held = (
            sum(
                (one.output_tokens - 1) * (one.prompt_tokens - here + one.output_tokens / 2)
                for one, here in pairs
            )
            / count
        )

    def bears(self, rate: float, round_s: float, chunk: int | None, limit: int = 0) -> bool:
        """Can rounds be so short at this rate? chunk: see WAYS. limit: tokens of a step at most; 0: none."""
        stages = self._stages
        decoding, held = rate * self._output * round_s / stages, rate * self._held * round_s
        prompts = rate * self._prompt * round_s / stages
        if held > 0.99 * self._kv or (limit and decoding + prompts > limit):
            return False
        attention = self._cost.attention_s(int(held), rate * round_s * self._pairs)
        if chunk is None:
            spent = prompts / _APART_TOKENS * self._step_s(_APART_TOKENS) + self._step_s(decoding)
        elif chunk == 0:
            spent = self._step_s(decoding + prompts)
        elif decoding + prompts > chunk:
            return False
        else:
            ridden = prompts / max(1.0, chunk - decoding)
            spent = ridden * self._step_s(chunk) + (1 - ridden) * self._step_s(decoding)
        return stages * spent + attention <= round_s

    def decodes(self, rate: float, round_s: float) -> bool:
        """As `bears`, with prompts computed elsewhere."""
        held = rate * self._held * round_s
        decoding = rate * self._output * round_s / self._stages
        if held > 0.99 * self._kv:
            return False
        spent = self._stages * self._step_s(decoding) + self._cost.attention_s(int(held), 0.0)
        return spent <= round_s

    def prompts_per_s(self) -> float:
        """Prompts that an instance computes which does nothing else."""
        steps = self._prompt / _APART_TOKENS * self._step_s(_APART_TOKENS)
        return 1 / (steps + self._cost.attention_s(0, self._pairs))

    def rounds_s(self, tpot_s: float) -> list[float]:
        """Lengths of rounds that are looked at: of the target tenths, and tenths of these, down to the
        shortest that there is. Short ones hold less memory."""
        shortest = self._stages * self._step_s(1)
        tenths = (tpot_s * part / 10**power for power in range(1, 13) for part in range(10, 1, -1))
        return list(itertools.takewhile(lambda length: length >= shortest, tenths))

    def _step_s(self, tokens: float) -> float:
        rows = max(1, round(tokens))
        return self._cost.step_s(StepWork(rows, 0, 0.0, rows, rows))


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
    ways: Sequence[int | None] = (0, budget) if budget else WAYS
    rounds = of_one.rounds_s(asked.slo.tpot_s)

    def some(rate: float) -> bool:
        return any(of_one.bears(rate, length, chunk, budget) for length in rounds for chunk in ways)

    return _highest(some, precision) * spec.instances


def apart_bound(spec: ClusterSpec, asked: Question, flow: Flow | None = None) -> float:
    """The same where KV caches may travel for nothing: each instance prefills alone, or decodes alone."""
    of_one = flow or flow_of(spec, asked.workload)
    rounds = of_one.rounds_s(asked.slo.tpot_s)
    decoded = _highest(lambda rate: any(of_one.decodes(rate, length) for length in rounds))
    if decoded == 0.0:
        return 0.0
    return spec.instances / (1 / of_one.prompts_per_s() + 1 / decoded)


def _highest(some: Callable[[float], bool], precision: float = PRECISION) -> float:
    """The highest rate that is borne, or as much less as a share of it; 0 if not even a very low one is."""
    low, high = 0.0, 1.0
    while some(high):
        low, high = high, 2 * high
    while high - low > precision * high and high > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if some(middle) else (low, middle)
    return low
