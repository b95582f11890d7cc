"""Every policy, with each of its techniques on, for the laws that all must obey."""

from __future__ import annotations

from collections.abc import Callable

from controller.scheduler.admission import AdmissionRules
from controller.scheduler.policies import (
    AutoPolicy,
    CappedVllmPolicy,
    GllmPolicy,
    HybridPolicy,
    PadgPolicy,
    Policy,
    SeparatePolicy,
    TemporalPolicy,
    VllmPolicy,
)
from controller.scheduler.policies.auto import TideKnobs
from controller.scheduler.policies.catalog import make_setup
from controller.scheduler.policies.gllm import Throttle
from controller.scheduler.preemption import LeastLost, Newest, VictimChoice
from controller.scheduler.stealing import NoStealing, StealByTime
from controller.scheduler.switching import FixedShare, Intensity
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.linear import RooflineLinear
from tidepipe_common.latency.model import LatencyModel, Parallelism
from tidepipe_common.latency.shapes import SHAPES
from tidepipe_common.settings.defaults import LIVE_POLICIES

SHAPE = SHAPES["llama2-13b"]
COST = LatencyModel(
    SHAPE, hardware("l20"), RooflineLinear(SHAPE, hardware("l20")), Parallelism(stages=4, tensor=1)
)

Case = tuple[Callable[[], Policy], VictimChoice, AdmissionRules]

FORECAST = AdmissionRules()
RISKY = AdmissionRules(reserve=0.0, risk=1.6)
WATERMARK = AdmissionRules(occupancy=0.99)


def _wider_in_flood() -> AutoPolicy:
    policy = AutoPolicy(COST, TideKnobs(most_tokens=64, grain=8))
    policy.add_in_flood()
    return policy


def _fewer_in_drain() -> AutoPolicy:
    policy = AutoPolicy(COST, TideKnobs(long_step=1.0), extra_batches=1)
    policy.fit_in_drain()
    return policy


CASES: dict[str, Case] = {
    "td-pipe": (TemporalPolicy, Newest(), FORECAST),
    "td-pipe by intensity and time": (
        lambda: TemporalPolicy(Intensity(COST, 0.05), StealByTime(COST)),
        LeastLost(),
        RISKY,
    ),
    "td-pipe at fixed shares": (lambda: TemporalPolicy(FixedShare(0.5), NoStealing()), Newest(), WATERMARK),
    "padg-apart": (lambda: PadgPolicy(COST), Newest(), FORECAST),
    "separate": (lambda: SeparatePolicy(32), Newest(idle_only=True), WATERMARK),
    "hybrid": (lambda: HybridPolicy(16, 0), Newest(idle_only=True), WATERMARK),
    "hybrid with what auto has": (
        lambda: HybridPolicy(16, 0, order=True, stealing=StealByTime(COST)),
        LeastLost(),
        RISKY,
    ),
    "vllm": (lambda: VllmPolicy(16), Newest(idle_only=True), WATERMARK),
    "vllm-capped": (lambda: CappedVllmPolicy(16), Newest(idle_only=True), WATERMARK),
    "gllm": (
        lambda: GllmPolicy(Throttle(24, least_prompts=2, iterations=2)),
        Newest(idle_only=True),
        WATERMARK,
    ),
    "auto": (lambda: AutoPolicy(COST, TideKnobs(most_tokens=64, grain=8)), LeastLost(), RISKY),
    "auto, overcommitted": (lambda: AutoPolicy(COST), LeastLost(), AdmissionRules(reserve=-9.0)),
    "auto, one more batch in the flood": (_wider_in_flood, LeastLost(), RISKY),
    "auto, batches come and go": (_fewer_in_drain, LeastLost(), FORECAST),
    "auto, one size": (lambda: AutoPolicy(COST, fixed_size=24, extra_batches=1), Newest(), WATERMARK),
}


def _add_others() -> None:
    """Policies that nobody has written a case for, as they are made by name."""
    known = {type(make()) for make, _, _ in CASES.values()}
    for name in LIVE_POLICIES:
        setup = make_setup(name, cost=COST)
        if type(setup.policy) not in known:
            CASES[name] = lambda name=name: make_setup(name, cost=COST).policy, setup.victims, setup.admission


_add_others()
