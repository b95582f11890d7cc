"""Policies ready to run in a simulation, and the knobs that are scanned for each: baselines at their best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from common.errors import ConfigError
from common.latency.model import StepCost
from controller.core.admission import AdmissionRules
from controller.core.policies import HybridPolicy, Policy, SeparatePolicy, TemporalPolicy, TidePolicy
from controller.core.policies.tide import TideKnobs
from controller.core.stealing import NoStealing, StealByCount, StealByTime, Stealing
from controller.core.switching import FixedShare, Hysteresis, Intensity, Switching
from controller.core.victims import LeastLost, Newest, VictimChoice

Knob = int | float | str | bool
Knobs = Mapping[str, Knob]

POLICIES = ("auto", "td-pipe", "separate", "hybrid", "tp-separate", "tp-hybrid")
"""As users name them. The last two have one tensor-parallel stage."""

WATERMARK = 0.99
"""Engines without predictions admit while this share of the blocks is in use, and recompute on overflow."""
UNLIMITED = 1 << 30
AUTO_OVERFLOW = 0.5
"""`auto` preempts who loses least, so that running out of blocks in half of the fills costs less than memory
that stays empty."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A policy and the scheduler settings that go with it."""

    name: str
    knobs: Knobs
    policy: Policy
    admission: AdmissionRules
    victims: VictimChoice
    prefill_tokens: int = 256


DEFAULTS: Mapping[str, Knobs] = {
    "auto": {},
    "td-pipe": {
        "prefill_tokens": 512,
        "switching": "hysteresis:0.9",
        "stealing": "time",
        "reserve": 0.0,
        "extra_batches": 0,
    },
    "separate": {"token_budget": 2048, "extra_batches": 0},
    "hybrid": {"token_budget": 256, "extra_batches": 0},
    "tp-separate": {"token_budget": 2048},
    "tp-hybrid": {"token_budget": 512},
}

SCANS: Mapping[str, Mapping[str, Sequence[Knob]]] = {
    "td-pipe": {
        "prefill_tokens": (256, 512, 1024),
        "switching": ("hysteresis:0.9", "intensity:0.05"),
        "stealing": ("time",),
        "reserve": (0.0,),
        "extra_batches": (0, 1),
    },
    "separate": {"token_budget": (512, 1024, 2048), "extra_batches": (0, 1)},
    "hybrid": {"token_budget": (192, 256, 320, 384, 448, 512, 768, 1024, 2048), "extra_batches": (0, 1)},
    "tp-separate": {"token_budget": (1024, 2048, 4096)},
    "tp-hybrid": {"token_budget": (256, 512, 1024, 2048)},
}
"""Knobs that are tried for each baseline. `auto` has none: it takes its own from the cost model."""


def scan(name: str) -> list[Knobs]:
    """All combinations of a policy's knobs; only the defaults for one without any."""
    axes = SCANS.get(name)
    if axes is None:
        return [DEFAULTS[name]]
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def make_setup(name: str, knobs: Knobs, cost: StepCost) -> Setup:
    """A policy by name; knobs that are not given have their defaults."""
    if name not in DEFAULTS:
        raise ConfigError(f"unknown policy {name!r}; known: {', '.join(POLICIES)}")
    chosen = {**DEFAULTS[name], **knobs}
    return _MAKERS[name.removeprefix("tp-")](name, chosen, cost)


def _hybrid(name: str, knobs: Knobs, cost: StepCost) -> Setup:
    policy = HybridPolicy(int(knobs["token_budget"]), int(knobs.get("extra_batches", 0)))
    return Setup(name, knobs, policy, AdmissionRules(UNLIMITED, occupancy=WATERMARK), Newest(idle_only=True))


def _separate(name: str, knobs: Knobs, cost: StepCost) -> Setup:
    policy = SeparatePolicy(int(knobs["token_budget"]), int(knobs.get("extra_batches", 0)))
    return Setup(name, knobs, policy, AdmissionRules(UNLIMITED, occupancy=WATERMARK), Newest(idle_only=True))


def _td_pipe(name: str, knobs: Knobs, cost: StepCost) -> Setup:
    policy = TemporalPolicy(
        _switching(str(knobs["switching"]), cost),
        _stealing(str(knobs["stealing"]), cost),
        extra_batches=int(knobs.get("extra_batches", 1)),
    )
    occupancy = float(knobs["occupancy"]) if "occupancy" in knobs else None
    admission = AdmissionRules(
        UNLIMITED,
        float(knobs["reserve"]),
        float(knobs.get("overflow", 0.1)),
        float(knobs.get("risk", 0.0)),
        occupancy,
    )
    victims: VictimChoice = LeastLost() if knobs.get("victims") == "least-lost" else Newest()
    return Setup(name, knobs, policy, admission, victims, int(knobs["prefill_tokens"]))


def _auto(name: str, knobs: Knobs, cost: StepCost) -> Setup:
    policy = TidePolicy(
        cost,
        TideKnobs(),
        _stealing(str(knobs.get("stealing", "time")), cost),
        order=bool(knobs.get("order", True)),
        extra_batches=int(knobs.get("extra_batches", 0)),
        fixed_size=int(knobs.get("fixed_size", 0)),
    )
    occupancy = float(knobs["occupancy"]) if "occupancy" in knobs else None
    admission = AdmissionRules(
        UNLIMITED,
        float(knobs.get("reserve", 0.0)),
        float(knobs.get("overflow", AUTO_OVERFLOW)),
        float(knobs.get("risk", 0.0)),
        occupancy,
    )
    victims: VictimChoice = Newest(idle_only=True) if knobs.get("victims") == "newest" else LeastLost()
    return Setup(name, knobs, policy, admission, victims)


_MAKERS: Mapping[str, Callable[[str, Knobs, StepCost], Setup]] = {
    "hybrid": _hybrid,
    "separate": _separate,
    "td-pipe": _td_pipe,
    "auto": _auto,
}


def _switching(text: str, cost: StepCost) -> Switching:
    kind, _, level = text.partition(":")
    match kind:
        case "hysteresis":
            # No limit on waiting: offline nobody waits for a single answer.
            return Hysteresis(refill_below=float(level), small_batch=0, max_wait_s=float("inf"))
        case "intensity":
            return Intensity(cost, margin=float(level), max_wait_s=float("inf"))
        case "fixed":
            return FixedShare(float(level))
    raise ConfigError(f"unknown switching rule {text!r}; known: hysteresis:X, intensity:X, fixed:X")


def _stealing(text: str, cost: StepCost) -> Stealing:
    match text:
        case "none":
            return NoStealing()
        case "count":
            return StealByCount()
        case "time":
            return StealByTime(cost)
    raise ConfigError(f"unknown stealing {text!r}; known: none, count, time")
