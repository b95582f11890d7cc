"""Policies by the names that users choose, with all their settings: the one place for live and virtual time.

`make_setup` is what a live controller, `tidepipe sim` and the benchmarks alike build a policy with. What wins
in virtual time is the default; what must differ between devices is derived from the device and its costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from controller.scheduler.admission import AdmissionRules
from controller.scheduler.policies.auto import AutoPolicy, TideKnobs
from controller.scheduler.policies.gllm import GllmPolicy, Throttle
from controller.scheduler.policies.hybrid import HybridPolicy
from controller.scheduler.policies.padg import PadgPolicy
from controller.scheduler.policies.protocol import Policy
from controller.scheduler.policies.separate import SeparatePolicy
from controller.scheduler.policies.temporal import TemporalPolicy
from controller.scheduler.policies.vllm import CappedVllmPolicy, VllmPolicy
from controller.scheduler.preemption import LeastLost, Newest, VictimChoice
from controller.scheduler.state import SchedulerConfig
from controller.scheduler.stealing import NoStealing, StealByCount, StealByTime, Stealing
from controller.scheduler.switching import FixedShare, Hysteresis, Intensity, Switching
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.model import StepCost
from tidepipe_common.settings.defaults import BLOCK_SIZE, LIVE_POLICIES, MAX_STEP_TOKENS, Routing

Knob = int | float | str | bool
Knobs = Mapping[str, Knob]

ROUTING: Mapping[str, Routing] = {
    "auto": "auto",
    "padg": "padg",
    "padg-apart": "padg",
    "padg-published": "padg-published",
}
"""Of requests with latency targets to instances with these policies, unless another one is chosen."""


def routing_for(policy: str, *, targets: bool) -> Routing | None:
    """The routing that belongs to a policy; None: the usual one. targets: somebody has set latency targets.

    PaDG's routing lets nobody in whom an instance cannot serve in time. `auto` is the policy of those as well
    who never said what time that is.
    """
    return None if policy == "auto" and not targets else ROUTING.get(policy)


WATERMARK = 0.99
"""Engines without predictions admit while this share of the blocks is in use, and recompute on overflow."""

_FORECAST: Knobs = {"reserve": 0.0, "overflow": 0.1, "risk": 0.0, "occupancy": 0.0}
_ENGINE: Knobs = {"occupancy": WATERMARK, "victims": "newest-idle", "extra_batches": 0, "max_running": 0}
_VLLM: Knobs = {**_ENGINE, "token_budget": 2048, "max_running": 256}
_APART: Knobs = {**_ENGINE, "prefill_tokens": 2048, "victims": "newest", "max_sequences": MAX_STEP_TOKENS}


@dataclass(frozen=True, slots=True)
class Setup:
    """A policy and the scheduler settings that go with it. knobs: what it was made from."""

    name: str
    knobs: Knobs
    policy: Policy
    admission: AdmissionRules
    victims: VictimChoice
    prefill_tokens: int
    max_sequences: int

    def config(
        self,
        context_length: int,
        eos_token_ids: tuple[int, ...],
        *,
        block_size: int = BLOCK_SIZE,
        microbatches: int = 0,
        max_sequences: int = 0,
        prefix_caching: bool = True,
    ) -> SchedulerConfig:
        """Of a scheduler with it. microbatches: always so many; max_sequences 0: as the policy says."""
        return SchedulerConfig(
            context_length=context_length,
            eos_token_ids=eos_token_ids,
            block_size=block_size,
            prefill_tokens=self.prefill_tokens,
            microbatches=microbatches,
            max_sequences=max_sequences or self.max_sequences,
            admission=self.admission,
            victims=self.victims,
            prefix_caching=prefix_caching,
        )


def step_knob(name: str) -> str:
    """The knob that says how many tokens a step with prompts has at most."""
    return "token_budget" if "token_budget" in DEFAULTS[name] else "prefill_tokens"


def default_knobs(name: str, device: str) -> Knobs:
    """All knobs of a policy there, unless they are given. ConfigError: unknown policy."""
    if name not in DEFAULTS:
        raise ConfigError(f"unknown policy {name!r}; known: {', '.join(LIVE_POLICIES)}")
    entry = _POLICIES[name]
    return {**entry.knobs, **(entry.on_cpu if device == "cpu" else {})}


def known_knobs(name: str, knobs: Knobs) -> Knobs:
    """Those that this policy has."""
    return {knob: value for knob, value in knobs.items() if knob in DEFAULTS[name]}


def parse_knobs(text: str, name: str) -> Knobs:
    """Settings such as `token_budget=384,extra_batches=1` of the policy; ConfigError names what is wrong."""
    default_knobs(name, "")
    found: dict[str, Knob] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        knob, given, value = part.partition("=")
        if not given or knob not in DEFAULTS[name]:
            raise ConfigError(
                f"{part!r} is no setting of policy {name!r}; give NAME=VALUE of: {', '.join(DEFAULTS[name])}"
            )
        found[knob] = _value(knob, value, DEFAULTS[name][knob])
    return found


def _value(knob: str, text: str, like: Knob) -> Knob:
    try:
        if isinstance(like, bool):
            return {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}[
                text.lower()
            ]
        return text if isinstance(like, str) else int(text) if isinstance(like, int) else float(text)
    except (KeyError, ValueError):
        kind = {bool: "on or off", int: "a whole number", float: "a number"}[type(like)]
        raise ConfigError(f"{knob} must be {kind}, got {text!r}") from None


def make_setup(
    name: str,
    knobs: Knobs | None = None,
    cost: StepCost | None = None,
    device: str = "l20",
    *,
    fixed: bool = False,
) -> Setup:
    """The policy of that name; knobs that are not given have their defaults for the device.

    cost: what steps take here. Without it `auto` is td-pipe: it cannot compare what it does not know.
    fixed: the number of micro-batches is given, so `auto` does not fit it.
    """
    given = dict(knobs or {})
    chosen = {**default_knobs(name, device), **given}
    if unknown := [knob for knob in given if knob not in DEFAULTS[name]]:
        raise ConfigError(
            f"policy {name!r} has no setting {unknown[0]!r}; it has: {', '.join(DEFAULTS[name])}"
        )
    if name == "auto" and cost is None:
        return make_setup("td-pipe", known_knobs("td-pipe", given), None, device, fixed=fixed)
    policy = _POLICIES[name].make(chosen, cost)
    if isinstance(policy, AutoPolicy) and "extra_batches" not in given and not fixed:
        if device == "cpu":
            policy.fit_in_drain()
        else:
            policy.add_in_flood()
    admission = AdmissionRules(
        int(chosen["max_running"]) or MAX_STEP_TOKENS,
        float(chosen.get("reserve", 0.0)),
        float(chosen.get("overflow", 0.1)),
        float(chosen.get("risk", 0.0)),
        float(chosen["occupancy"]) or None,
        WATERMARK if name == "auto" else None,
    )
    return Setup(
        name,
        chosen,
        policy,
        admission,
        _victims(str(chosen["victims"])),
        int(chosen[step_knob(name)]),
        int(chosen.get("max_sequences", MAX_STEP_TOKENS)),
    )


def _hybrid(knobs: Knobs, cost: StepCost | None) -> Policy:
    stealing = str(knobs.get("stealing", "home"))
    return HybridPolicy(
        int(knobs["token_budget"]),
        int(knobs["extra_batches"]),
        order=bool(knobs.get("order", False)),
        stealing=None if stealing == "home" else _stealing(stealing, cost),
    )


def _vllm(knobs: Knobs, cost: StepCost | None) -> Policy:
    return VllmPolicy(int(knobs["token_budget"]), int(knobs["extra_batches"]))


def _vllm_capped(knobs: Knobs, cost: StepCost | None) -> Policy:
    return CappedVllmPolicy(int(knobs["token_budget"]), int(knobs["extra_batches"]), cap=int(knobs["cap"]))


def _gllm(knobs: Knobs, cost: StepCost | None) -> Policy:
    throttle = Throttle(
        int(knobs["token_budget"]),
        int(knobs["least_prompts"]),
        int(knobs["iterations"]),
        float(knobs["kv_reserve"]),
        int(knobs["most_decoding"]),
    )
    return GllmPolicy(throttle, int(knobs["extra_batches"]))


def _padg(knobs: Knobs, cost: StepCost | None) -> Policy:
    return HybridPolicy(int(knobs["token_budget"]), int(knobs["extra_batches"]), name="padg")


def _padg_apart(knobs: Knobs, cost: StepCost | None) -> Policy:
    return PadgPolicy(cost, extra_batches=int(knobs["extra_batches"]))


def _padg_published(knobs: Knobs, cost: StepCost | None) -> Policy:
    return PadgPolicy(cost, extra_batches=int(knobs["extra_batches"]), name="padg-published")


def _separate(knobs: Knobs, cost: StepCost | None) -> Policy:
    return SeparatePolicy(int(knobs["token_budget"]), int(knobs["extra_batches"]))


def _td_pipe(knobs: Knobs, cost: StepCost | None) -> Policy:
    return TemporalPolicy(
        _switching(str(knobs["switching"]), cost),
        _stealing(str(knobs["stealing"]), cost),
        extra_batches=int(knobs["extra_batches"]),
    )


def _auto(knobs: Knobs, cost: StepCost | None) -> Policy:
    assert cost is not None, "make_setup has seen to that"
    return AutoPolicy(
        cost,
        TideKnobs(),
        _stealing(str(knobs["stealing"]), cost),
        order=bool(knobs["order"]),
        extra_batches=int(knobs["extra_batches"]),
        fixed_size=int(knobs["fixed_size"]),
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    """A policy: what makes it, all its knobs with their defaults, and which differ on CPUs."""

    make: Callable[[Knobs, StepCost | None], Policy]
    knobs: Knobs
    on_cpu: Knobs = field(default_factory=dict)


_POLICIES: Mapping[str, _Entry] = {
    "auto": _Entry(
        _auto,
        {
            **_FORECAST,
            # It preempts who loses least, so that running out of blocks in half of the fills costs less than
            # memory that stays empty.
            "overflow": 0.5,
            "victims": "least-lost",
            "stealing": "time",
            "order": True,
            "fixed_size": 0,
            "extra_batches": 0,
            "prefill_tokens": 256,
            "max_running": 0,
        },
        {"extra_batches": 1},
    ),
    "td-pipe": _Entry(
        _td_pipe,
        {
            **_FORECAST,
            "victims": "newest",
            "stealing": "time",
            "switching": "hysteresis:0.9",
            "extra_batches": 0,
            "prefill_tokens": 512,
            "max_running": 0,
        },
        {"extra_batches": 1, "prefill_tokens": 256},
    ),
    "padg": _Entry(_padg, {**_ENGINE, "token_budget": 256}, {"extra_batches": 1, "token_budget": 64}),
    "padg-apart": _Entry(_padg_apart, _APART, {"extra_batches": 1, "prefill_tokens": 256}),
    # Algorithm 1 does not ask how fast many sequences decode: a limit on their number does.
    "padg-published": _Entry(
        _padg_published, {**_APART, "max_sequences": 256}, {"extra_batches": 1, "prefill_tokens": 256}
    ),
    "separate": _Entry(_separate, {**_ENGINE, "token_budget": 2048}, {"extra_batches": 1}),
    "hybrid": _Entry(
        _hybrid,
        {
            **_ENGINE,
            "token_budget": 256,
            # What `auto` has, to compare: with occupancy 0 admission is by forecast, with these rates.
            "overflow": 0.1,
            "order": False,
            "stealing": "home",
        },
        {"extra_batches": 1, "token_budget": 64},
    ),
    # As these engines have them, on every device: whoever compares them at their best scans the budget.
    "vllm": _Entry(_vllm, _VLLM),
    "vllm-capped": _Entry(_vllm_capped, {**_VLLM, "cap": 0}),
    "gllm": _Entry(
        _gllm,
        {
            **_ENGINE,
            "token_budget": 2048,
            "least_prompts": 32,
            "iterations": 8,
            "kv_reserve": 0.05,
            "most_decoding": 512,
        },
    ),
    "tp-separate": _Entry(_separate, {**_ENGINE, "token_budget": 2048}),
    "tp-hybrid": _Entry(_hybrid, {**_ENGINE, "token_budget": 512}),
}
"""By name. 0 of a limit: none; of `cap`: an equal share; of `occupancy`: admission by forecast; of
`fixed_size`: by price. `stealing` home: a sequence stays in its batch. The last two have one tensor-parallel
stage, in virtual time only.

On CPUs a step of few rows takes no longer than its results' way through the controller, which one micro-batch
more hides; and a core is saturated by few tokens."""

DEFAULTS: Mapping[str, Knobs] = {name: entry.knobs for name, entry in _POLICIES.items()}
"""All knobs of each policy."""

BY_STEP_TIMES = ("padg", "padg-apart", "padg-published")
"""Those that count slack in step times, of which a few timed steps say enough where none were told. `auto`
compares step sizes, of which these say too little."""


def _switching(text: str, cost: StepCost | None) -> Switching:
    kind, _, level = text.partition(":")
    try:
        share = float(level)
    except ValueError:
        kind, share = "", 0.0
    match kind:
        case "hysteresis":
            # No limit on waiting: who waits for single answers takes another policy.
            return Hysteresis(refill_below=share, small_batch=0, max_wait_s=float("inf"))
        case "intensity" if cost is not None:
            return Intensity(cost, margin=share, max_wait_s=float("inf"))
        case "intensity":
            raise ConfigError("switching by intensity needs to know what steps take: give --profile")
        case "fixed":
            return FixedShare(share)
    raise ConfigError(f"unknown switching rule {text!r}; known: hysteresis:X, intensity:X, fixed:X")


def _stealing(text: str, cost: StepCost | None) -> Stealing:
    match text:
        case "none":
            return NoStealing()
        case "time" if cost is not None:
            return StealByTime(cost)
        case "count" | "time":
            return StealByCount()
    raise ConfigError(f"unknown stealing {text!r}; known: none, count, time")


def _victims(text: str) -> VictimChoice:
    match text:
        case "newest":
            return Newest()
        case "newest-idle":
            return Newest(idle_only=True)
        case "least-lost":
            return LeastLost()
    raise ConfigError(f"unknown victims {text!r}; known: newest, newest-idle, least-lost")
