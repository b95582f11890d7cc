"""Routing policies by the names that users choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from common.errors import ConfigError
from router.core.choice import RoutingPolicy
from router.core.policies.rolling import FixedInterval, RollingActivation, published
from router.core.policies.spread import LeastLoaded, PowerOfTwo, RandomNext, RoundRobin

_MAKERS: Mapping[str, Callable[[], RoutingPolicy]] = {
    "padg": RollingActivation,
    "padg-published": published,
    "padg-shuffled": lambda: RollingActivation(name="padg-shuffled", shuffled=True),
    "fixed-interval": FixedInterval,
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "random-next": RandomNext,
    "power-of-two": PowerOfTwo,
}

ROUTING_POLICIES = tuple(_MAKERS)


def make_routing_policy(name: str) -> RoutingPolicy:
    """A fresh one (they keep notes); ConfigError lists the known names."""
    if name not in _MAKERS:
        raise ConfigError(f"unknown routing policy {name!r}; known: {', '.join(ROUTING_POLICIES)}")
    return _MAKERS[name]()
