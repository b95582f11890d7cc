"""The systems that are compared, and the knobs that each is tuned over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from controller.scheduler.policies.catalog import ROUTING, Knobs, step_knob
from controller.scheduler.policies.catalog import default_knobs as default_settings
from router.scheduler.policies.arrow import LOW
from router.scheduler.policies.roles import PACED_POLICY
from router.scheduler.routing_scheduler import OverallConfig
from simulator.cluster import ClusterRules, VirtualCluster, VirtualInstance, number_of
from simulator.cluster_spec import ClusterSpec
from simulator.disaggregation import run_disaggregated
from simulator.exact_instance import ExactInstance, ExactRules, is_roles, moving_routing
from simulator.fast_forward_instance import FastForwardInstance, InstanceRules
from simulator.job import Job
from simulator.transfers import Ways, instances_per_node, token_bytes
from tidepipe_common.errors import ConfigError
from tidepipe_common.settings.defaults import USUAL_ROUTING
from tidepipe_common.types.kv_transfer import NO_TRANSFER, KvTransfer, KvWay

ENGINES = ("vllm", "vllm-capped", "gllm")
"""Other engines' schedulers. Run by name only: on a pipeline their steps are uneven, which
`FastForwardInstance` knows nothing of, so every instance is the controller's scheduler, ten times as slow."""

SYSTEMS = ("auto", "padg", "padg-apart", "padg-published", "separate", "hybrid", "fudg-intra", "fudg-inter")
"""padg: EcoServe with this router's constraint, prompts riding on decode steps. auto: the same, with as many
of them in each step as targets allow. padg-apart: in steps of their own, as in the paper. padg-published:
with Algorithm 1 as published as well.

separate, hybrid: no disaggregation, as vLLM without chunks and Sarathi. fudg-intra, fudg-inter: prefill and
decode on instances of their own, within a node (DistServe) or on different nodes (MoonCake).
"""

APART = ("taichi", "arrow")
"""What others propose between no disaggregation and all of it, to compare `roles` with: hybrid's instances
under the routing policies of these names, with KV blocks sent between nodes."""

_OF_ROUTING = ("low", "patience")
"""Knobs that are the routing policy's."""
_FUDG_BUDGETS = (2048, 512, 1024, 4096)
"""Tokens of a prefill step at an instance that does nothing else."""


def default_knobs(system: str, spec: ClusterSpec) -> Knobs:
    """What a system runs with unless it is tuned."""
    return scan(system, spec)[0]


def scan(system: str, spec: ClusterSpec) -> list[Knobs]:
    """All settings that are tried for a system, the usual ones first; none if the cluster is too small."""
    match system:
        case "padg":
            return [{"budget": budget} for budget in _budgets("padg", spec, 256, 128, 64, 512, 1024)]
        case "padg-apart":
            return [{"budget": budget} for budget in _budgets("padg-apart", spec, 2048, 1024)]
        case "padg-published":
            known = default_settings("padg-published", spec.hardware.name)
            most = int(known["max_sequences"])
            budget = int(known[step_knob("padg-published")])
            return [{"budget": budget, "sequences": most >> halved} for halved in range(5)]
        case "auto":
            return [{"budget": _budgets("auto", spec)[0]}]
        case "separate":
            return _engine(_budgets("separate", spec, 2048, 1024, 4096))
        case "hybrid":
            return _engine(_budgets("hybrid", spec, 256, 128, 64, 512, 1024, 2048))
        case _ if system in ENGINES:
            usual, *others = _budgets(system, spec, 256, 512, 1024)
            free: list[Knobs] = [{**knobs, "max_running": 0} for knobs in _engine([usual, *others])]
            return [*_engine([usual]), *free]
        case _ if is_roles(system):
            split = int(system.partition(":")[2] or 0)
            if split >= spec.instances:
                return []
            return [{"prefill": split, "budget": one} for one in _budgets("hybrid", spec, 256, 512, 1024)]
        case "taichi":
            return _taichi(spec)
        case "arrow":
            return _arrow(spec)
        case "fudg-inter":
            near = sorted(range(1, spec.instances), key=lambda p: abs(p - spec.instances / 3))
            return [{"prefill": p, "budget": budget} for p in near for budget in _FUDG_BUDGETS]
        case "fudg-intra":
            return _intra(spec)
        case _ if system.startswith("route:"):
            return [{"budget": _budgets("padg-apart", spec)[0]}]
    raise ConfigError(f"unknown policy {system!r}; known: all, {', '.join(SYSTEMS + ENGINES)}")


def _taichi(spec: ClusterSpec) -> list[Knobs]:
    """TaiChi's three sliders, R_PD as the number of prefill-heavy instances and the chunks of the two kinds,
    and how much of the time that it has left a prompt may take. Both kinds alike: hybrid batching."""
    found: list[Knobs] = [{"prefill": 0, "budget": one} for one in _budgets("hybrid", spec, 128, 64, 512)]
    chunks = ((64, 1024, 0.3), (128, 1024, 0.3), (256, 1024, 0.3), (128, 512, 0.3), (128, 1024, 1.0))
    for prefill in sorted({max(1, spec.instances // part) for part in (8, 4, 2)} - {spec.instances}):
        for light, larger, patience in chunks:
            found.append({"prefill": prefill, "budget": light, "larger": larger, "patience": patience})
    return found


def _arrow(spec: ClusterSpec) -> list[Knobs]:
    """Arrow: the split that it begins with, its threshold, and the chunk of all instances."""
    begin = sorted({max(1, spec.instances // part) for part in (8, 4, 2)})
    return [
        {"prefill": prefill, "budget": budget, "low": low}
        for prefill, low, budget in product(begin, (0.9, LOW), (2048, 512))
        if spec.instances > 1
    ]


def _budgets(policy: str, spec: ClusterSpec, *others: int) -> list[int]:
    """Tokens of a step: as live instances have it, then others."""
    usual = int(default_settings(policy, spec.hardware.name)[step_knob(policy)])
    return [usual, *(other for other in others if other != usual)]


def _engine(budgets: Sequence[int]) -> list[Knobs]:
    return [
        {"routing": routing, "budget": budget}
        for routing in (USUAL_ROUTING, "round-robin")
        for budget in budgets
    ]


def _intra(spec: ClusterSpec) -> list[Knobs]:
    """Shares of a node; instances of half the size where only so a node has room for both roles."""
    tensor = spec.tensor
    if 2 * tensor * spec.stages > spec.node_devices:
        tensor //= 2
    if tensor < 1 or spec.devices % (2 * tensor * spec.stages) or not _fits(spec, tensor):
        return []
    here = spec.node_devices // (tensor * spec.stages)
    near = sorted(range(1, here), key=lambda p: abs(p - here / 3))
    return [{"tensor": tensor, "prefill": p, "budget": budget} for p in near for budget in _FUDG_BUDGETS]


def _fits(spec: ClusterSpec, tensor: int) -> bool:
    try:
        spec.split(tensor).kv_tokens()
    except ConfigError:
        return False
    return True


def run_system(system: str, knobs: Knobs, spec: ClusterSpec, jobs: Sequence[Job]) -> None:
    """Serve the jobs; their times are written into them."""
    if system.startswith("fudg-"):
        run_disaggregated(
            spec,
            jobs,
            prefill=int(knobs["prefill"]),
            tensor=int(knobs.get("tensor", 0)) or spec.tensor,
            budget=int(knobs["budget"]),
            between_nodes=system == "fudg-inter",
        )
        return
    cluster_of(system, knobs, spec, len(jobs)).run(jobs)


def never_skips(system: str, spec: ClusterSpec) -> bool:
    """Whether it is run exactly in any case."""
    return system in ENGINES and spec.stages > 1


def run_exactly(system: str, knobs: Knobs, spec: ClusterSpec, jobs: Sequence[Job]) -> None:
    """As run_system, with the controller's scheduler in every instance; not for disaggregated systems."""
    cluster_of(system, knobs, spec, len(jobs), exact=True).run(jobs)


def cluster_of(
    system: str, knobs: Knobs, spec: ClusterSpec, requests: int, *, exact: bool = False, shed: bool = False
) -> VirtualCluster:
    """A cluster that is ready to run, for all systems but the disaggregated ones.

    exact: instances are the controller's scheduler itself, instead of the one that skips. shed: requests that
    cannot be served in time are refused, as live.

    The knob `routing` takes the place of the system's own routing policy; with `blind` it knows nothing of
    what instances have computed before. `prefill` first instances have steps of `larger` tokens, the others
    of `budget`. `route:NAME` is PaDG's instance with prompts apart under another routing policy (for
    ablations).
    """
    moving = moving_routing(system)
    usual = moving or ROUTING.get(system)
    if system.startswith("route:"):
        usual = system.removeprefix("route:")
    routing = str(knobs["routing"]) if usual is None or "routing" in knobs else usual
    budget = int(knobs["budget"])
    mixed = system in ("hybrid", "padg", "auto", *ENGINES) or moving is not None
    exact = exact or never_skips(system, spec)
    routes = ClusterRules(
        OverallConfig(
            policy=routing,
            bounds=spec.one_group,
            max_pending=requests + 1,
            prefill_instances=int(knobs.get("prefill", 0)),
            knobs={name: float(knobs[name]) for name in _OF_ROUTING if name in knobs},
        ),
        max_sequences=int(knobs.get("sequences", 4096)),
        shed=shed,
        reuse=spec.prefix_caching,
        tells="blind" not in knobs,
    )
    first = (int(knobs["prefill"]), int(knobs["larger"])) if "larger" in knobs else (0, 0)

    def budget_of(name: str) -> int:
        return first[1] if number_of(name) < first[0] else budget

    rules = InstanceRules(
        mixed,
        budget,
        paced=system == PACED_POLICY,
        context=spec.context,
        reuse=spec.prefix_caching,
        tells=routes.knows,
        dispatch_s=spec.dispatch_s,
    )
    cost, kv_tokens = spec.latency(), spec.kv_tokens()
    far, near = KvWay(spec.network_bytes_per_s), KvWay(spec.bus_bytes_per_s)
    transfer = KvTransfer(token_bytes(spec), far, near) if spec.kv_transfer else NO_TRANSFER
    ways = Ways(far.bytes_per_s, near.bytes_per_s, instances_per_node(spec))

    def make(name: str, born: float) -> VirtualInstance:
        here = replace(transfer, node=ways.node(number_of(name)))
        if exact:
            own = ExactRules.of(system, {**knobs, "budget": budget_of(name)})
            return ExactInstance(own, spec, born, tells=routes.knows, transfer=here)
        skipping = replace(rules, budget=budget_of(name))
        return FastForwardInstance(name, skipping, cost, spec.stages, kv_tokens, born, here)

    cluster = VirtualCluster(
        routes,
        make,
        cost,
        stages=spec.stages,
        context=spec.context,
        step_tokens=budget,
        ways=ways,
        larger=first,
    )
    cluster.start(spec.instances)
    return cluster
