"""What the online benchmarks measure: clusters, length mixes, targets, and the systems of each study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from controller.scheduler.policies.catalog import Knobs
from router.scheduler.slo import SloTarget
from simulator.cluster_spec import ClusterSpec
from simulator.exact_instance import ROLES
from simulator.goodput import Question
from simulator.systems import APART, ENGINES, SYSTEMS
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from workloads.arrivals import MIXES, Arrivals

MAX_TOTAL = 4096
"""Tokens of one sequence; Llama-30B's context is taken to be extended, as LongBench needs it."""
TENSOR = {
    "l20": {"llama-30b": 4, "codellama-34b": 4, "qwen2-72b": 8},
    "a800": {"llama-30b": 2, "codellama-34b": 2, "qwen2-72b": 4},
    "h100": {"llama-30b": 2, "codellama-34b": 2, "qwen2-72b": 4},
}
DEVICES = {"l20": 32, "a800": 16, "h100": 16}
"""EcoServe's clusters: 4 of the 8 nodes of L20, 2 nodes of A800, 2 of H100."""
OTHER_TENSOR: Mapping[tuple[str, str], tuple[int, ...]] = {("l20", "qwen2-72b"): (4,)}
"""Devices of an instance that are looked at besides: all-reduces over PCIe make eight a poor choice there."""
CHAT = SloTarget(5.0, 0.1)
STUDY = "codellama-34b"


@dataclass(frozen=True, slots=True)
class Trial:
    """One search for goodput. knobs None: tuned over all that are scanned for the system."""

    key: str
    system: str
    spec: ClusterSpec
    question: Question
    knobs: Knobs | None = None


def cluster(device: str, model: str, instances: int = 0) -> ClusterSpec:
    """`instances` of a model, or as many as the cluster holds."""
    tensor = TENSOR[device][model]
    shape, kind = read_shape(model), hardware(device)
    return ClusterSpec(shape, kind, instances or DEVICES[device] // tensor, tensor, max_total=MAX_TOTAL)


def layouts_of(device: str, model: str) -> list[ClusterSpec]:
    """The cluster, and what else its devices are looked at as."""
    spec = cluster(device, model)
    return [spec, *(spec.split(tensor) for tensor in OTHER_TENSOR.get((device, model), ()))]


def question(mix: str, seed: int, seconds: float) -> Question:
    """P90 of the targets for conversations, Poisson arrivals, lengths predicted within about 30 %."""
    workload = MIXES[mix](4000, seed).within(MAX_TOTAL, MAX_TOTAL)
    return Question(workload, CHAT, seconds=seconds, seed=seed)


def headline(seed: int, seconds: float) -> Iterator[Trial]:
    """All clusters, models and mixes; every system tuned, and two baselines as engines come."""
    for device in TENSOR:
        for model in TENSOR[device]:
            for mix in MIXES:
                spec, asked = cluster(device, model), question(mix, seed, seconds)
                cell = f"{device}/{model}/{mix}"
                yield from (Trial(f"{cell}/{name}", name, spec, asked) for name in SYSTEMS)
                shipped = (("separate", 2048), ("hybrid", 512))
                for name, budget in shipped:
                    knobs: Knobs = {"routing": "round-robin", "budget": budget}
                    yield Trial(f"{cell}/{name}-as-shipped", name, spec, asked, knobs)


def layouts(seed: int, seconds: float) -> Iterator[Trial]:
    """Qwen2-72B on L20 as eight instances of four devices instead of four of eight, for all systems;
    `fudg-intra` has them anyway (`headline`)."""
    spec = replace(cluster("l20", "qwen2-72b"), instances=8, tensor=4)
    for mix in ("sharegpt-like", "longbench-like"):
        for name in ("auto", "padg", "hybrid", "separate", "fudg-inter"):
            yield Trial(f"l20/qwen2-72b 8 x 4/{mix}/{name}", name, spec, question(mix, seed, seconds))


def slo(seed: int, seconds: float) -> Iterator[Trial]:
    """From relaxed to tight targets."""
    for ttft, tpot in ((5.0, 0.1), (3.0, 0.08), (2.0, 0.065), (1.0, 0.05)):
        asked = replace(question("sharegpt-like", seed, seconds), slo=SloTarget(ttft, tpot))
        for name in SYSTEMS:
            yield Trial(f"{ttft:g} s, {tpot * 1000:g} ms/{name}", name, cluster("l20", STUDY), asked)


def burst(seed: int, seconds: float) -> Iterator[Trial]:
    """Gamma arrivals with rising coefficient of variation."""
    for cv in (1.0, 1.2, 1.4, 1.6, 1.8, 2.0):
        asked = replace(question("sharegpt-like", seed, seconds), arrivals=Arrivals("gamma", cv))
        for name in SYSTEMS:
            yield Trial(f"{cv:g}/{name}", name, cluster("l20", STUDY), asked)


def instances(seed: int, seconds: float) -> Iterator[Trial]:
    """1 to 16 instances; disaggregation needs two."""
    for count in (1, 2, 4, 8, 16):
        asked = question("sharegpt-like", seed, seconds)
        for name in ("padg", "padg-apart", "padg-published", "separate", "hybrid"):
            yield Trial(f"{count}/{name}", name, cluster("l20", STUDY, count), asked)


def ablation(seed: int, seconds: float) -> Iterator[Trial]:
    """PaDG's instance (prompts apart, 2,048 tokens a step) under other routers, one step at a time."""
    routers = ("round-robin", "least-loaded", "random-next", "power-of-two", "fixed-interval",
               "padg-shuffled", "padg-published", "padg-unbounded", "padg")  # fmt: skip
    for mix in MIXES:
        asked = question(mix, seed, seconds)
        spec = cluster("l20", STUDY)
        for name in routers:
            yield Trial(f"{mix}/{name}", f"route:{name}", spec, asked)
        yield Trial(f"{mix}/padg, prompts on decode steps", "padg", spec, asked)
        exact = replace(asked, noise=0.0)
        yield Trial(f"{mix}/padg, lengths known", "route:padg", spec, exact)
        rough = replace(asked, noise=1.0)
        yield Trial(f"{mix}/padg, lengths off by 2.7x", "route:padg", spec, rough)


def engines(seed: int, seconds: float) -> Iterator[Trial]:
    """Other engines' schedulers at several step sizes, on one pipeline of four L20.

    no limit: on sequences; vLLM has one of 256.
    """
    spec = ClusterSpec(read_shape("llama2-13b"), hardware("l20"), 1, stages=4, max_total=MAX_TOTAL)
    asked = question("sharegpt-like", seed, seconds)
    for budget in (2048, 512, 256, 128):
        knobs: Knobs = {"routing": "least-loaded", "budget": budget}
        yield Trial(f"padg/{budget}", "padg", spec, asked, {"budget": budget})
        for name in ("hybrid", *ENGINES):
            yield Trial(f"{name}/{budget}", name, spec, asked, knobs)
            if "vllm" in name:
                free = {**knobs, "max_running": 0}
                yield Trial(f"{name}, no limit/{budget}", name, spec, asked, free)


def apart(seed: int, seconds: float) -> Iterator[Trial]:
    """Shares of prefill beside what others propose between none of disaggregation and all of it."""
    for model, mix, ttft, tpot in (
        ("codellama-34b", "sharegpt-like", 1.0, 0.05),
        ("codellama-34b", "sharegpt-like", 5.0, 0.1),
        ("qwen2-72b", "sharegpt-like", 5.0, 0.1),
        ("llama-30b", "sharegpt-like", 5.0, 0.1),
        ("qwen2-72b", "longbench-like", 5.0, 0.1),
    ):
        asked = replace(question(mix, seed, seconds), slo=SloTarget(ttft, tpot))
        cell = f"{model}/{mix}/{ttft:g} s, {tpot * 1000:g} ms"
        for name in ("hybrid", "padg", "fudg-intra", "fudg-inter", ROLES, *APART):
            yield Trial(f"{cell}/{name}", name, cluster("l20", model), asked)


STUDIES = {
    "headline": headline,
    "layouts": layouts,
    "slo": slo,
    "burst": burst,
    "instances": instances,
    "ablation": ablation,
    "engines": engines,
    "apart": apart,
}
