"""Routing policies by the names that users choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from router.scheduler.choice import RoutingPolicy
from router.scheduler.policies.arrow import Arrow
from router.scheduler.policies.constraints import LatestResume, MeanSlack
from router.scheduler.policies.prefix import LeastCost, MostHits
from router.scheduler.policies.roles import Roles
from router.scheduler.policies.rolling import FixedInterval, RollingActivation, published
from router.scheduler.policies.spread import LeastLoaded, PowerOfTwo, RandomNext, RoundRobin
from router.scheduler.policies.taichi import TaiChi
from tidepipe_common.errors import ConfigError
from tidepipe_common.settings.defaults import ROUTING_POLICIES, ROUTING_WITH_ROLES

WINDOW_S = 0.3
"""Of prompts are enough to fill steps on the devices that were tried; see docs/results/online.md."""


def _padg() -> RollingActivation:
    return RollingActivation(window_s=WINDOW_S, balanced=True, finds=True)


_MAKERS: Mapping[str, Callable[[], RoutingPolicy]] = {
    "padg": _padg,
    "padg-published": published,
    "padg-shuffled": lambda: RollingActivation(MeanSlack(), "padg-shuffled", shuffled=True),
    "padg-unbounded": lambda: RollingActivation(name="padg-unbounded"),
    "fixed-interval": FixedInterval,
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "random-next": RandomNext,
    "power-of-two": PowerOfTwo,
    "prefix": LeastCost,
    "most-hits": MostHits,
}

SPREADING = ("round-robin", "least-loaded", "random-next", "power-of-two", "most-hits")
"""Those that look at most at how much an instance has and holds, not at its slack or at what is left to be
computed, which change with every step."""

FINDING = ("auto", "padg", "prefix", "most-hits", "roles")
"""Those that look for the instance that has a prompt's beginning."""

BY_SLACK = ("auto", "padg", "padg-published", "padg-shuffled", "padg-unbounded", "roles", "taichi", "arrow")
"""Those that look at what instances report of targets and of memory to come."""

SHEDDING = ("auto", "padg", "padg-published", "padg-shuffled")
"""Those that refuse who cannot be served in time, instead of serving all too late."""

FLOWING = ("taichi",)
"""Those under which sequences go on elsewhere later than at their first token, too, by how far each is."""


def make_routing_policy(
    name: str, prefill_instances: int = 0, knobs: Mapping[str, float] = MappingProxyType({})
) -> RoutingPolicy:
    """A fresh one (they keep notes); ConfigError lists the known names.

    prefill_instances, knobs: see OverallConfig.
    """
    if name not in ROUTING_POLICIES:
        raise ConfigError(f"unknown routing policy {name!r}; known: {', '.join(ROUTING_POLICIES)}")
    if prefill_instances and name not in ROUTING_WITH_ROLES:
        raise ConfigError(
            f"prefill instances are for routing {', '.join(ROUTING_WITH_ROLES)}, not for {name}; choose one "
            "of these, or leave them out"
        )
    match name:
        case "auto":
            return Roles(prefill_instances, name=name, alike=_padg(), apart=LatestResume(decoding=False))
        case "roles":
            return Roles(prefill_instances)
        case "arrow":
            return Arrow(prefill_instances, **knobs)
        case "taichi":
            return TaiChi(**knobs)
    return _MAKERS[name]()
