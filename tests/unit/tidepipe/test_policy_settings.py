"""One set of defaults: a policy of `tidepipe up` has every knob that it has in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from controller.runtime.scheduler_spec import scheduler_spec_from
from controller.runtime.stage_client import StageAbout
from controller.scheduler.policies.catalog import DEFAULTS, ROUTING, parse_knobs
from controller.scheduler.scheduler import Scheduler
from controller.service import scheduler_spec_of
from launcher.config import load_config
from launcher.plan import controller_spec, router_spec
from simulator.cluster_spec import ClusterSpec
from simulator.exact_instance import ExactRules
from simulator.offline import PipelineSpec, scheduler_of
from simulator.setups import POLICIES
from simulator.systems import ENGINES, SYSTEMS, default_knobs
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.shapes import SHAPES
from tidepipe_common.settings.command_line import parse_settings
from tidepipe_common.settings.controller import ControllerSettings
from tidepipe_common.settings.defaults import LIVE_POLICIES

SHAPE = SHAPES["llama2-13b"]
STAGES = 4
DEVICES = {"l20": "emulated:l20", "cpu": "cpu"}
"""Hardware: what a worker calls its device."""


def knobs_of(thing: Any) -> Any:
    """All settings in it, as plain values; costs belong to a world, and what is remembered is no setting."""
    if isinstance(thing, int | float | str | bool | None):
        return thing
    if isinstance(thing, tuple | list):
        return [knobs_of(one) for one in thing]
    if is_dataclass(thing):
        values = {field.name: getattr(thing, field.name) for field in fields(thing)}
    else:
        values = vars(thing)
    memory = dict | list | set
    left = {
        k: v for k, v in values.items() if "cost" not in k and k != "_sizes" and not isinstance(v, memory)
    }
    return {"is": type(thing).__name__, **{name: knobs_of(value) for name, value in left.items()}}


def settings_of(scheduler: Scheduler) -> dict[str, Any]:
    """Of a fresh scheduler. How many sequences are accepted is a service's limit, not a policy's knob; nor is
    what the stages tell of prompts."""
    config = knobs_of(scheduler.config)
    for name in ("max_sequences", "eos_token_ids", "context_length", "signals"):
        del config[name]
    policy = scheduler.policy
    return {"policy": knobs_of(policy), "config": config, "batches": policy.microbatches(STAGES)}


def live(name: str, device: str, **flags: Any) -> Scheduler:
    """As `tidepipe up` starts a controller."""
    emulated = {} if device == "cpu" else {"executor": "emulated", "hardware": device}
    config = load_config(None, {"model": "m", "policy": name, "stages": STAGES, **emulated, **flags})
    spec = controller_spec(config, 0, stages=["h:1"] * STAGES, router="h:2", predictor="h:3")
    about = cast(StageAbout, SimpleNamespace(shape=SHAPE, device=DEVICES[device]))
    spec = scheduler_spec_of(parse_settings(ControllerSettings, spec.arguments), about, (10,) * STAGES)
    # As a journal keeps it.
    return scheduler_spec_from(spec.fields()).build()[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LIVE_POLICIES)
def test_live_and_virtual_policies_have_the_same_settings(name: str, device: str) -> None:
    """Every knob, those of the admission and of preemption included; and so many micro-batches."""
    found = settings_of(live(name, device))
    if name in POLICIES:
        offline = PipelineSpec(SHAPE, hardware(device), STAGES)
        assert settings_of(scheduler_of(offline, name, {}, 100)[0]) == found
    if name in SYSTEMS + ENGINES:
        spec = ClusterSpec(SHAPE, hardware(device), 1, stages=STAGES)
        knobs = default_knobs(name, spec)
        scheduler = ExactRules.of(name, knobs).scheduler(spec, spec.latency())
        assert settings_of(scheduler) == found
    assert name in POLICIES or name in SYSTEMS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hybrid", "token_budget=384,extra_batches=1"),
        ("separate", "token_budget=1024,victims=least-lost"),
        ("td-pipe", "switching=intensity:0.05,prefill_tokens=1024"),
        ("auto", "reserve=0.05,overflow=0.1,max_running=256,order=off"),
        ("padg", "token_budget=512"),
    ],
)
def test_whatever_the_simulator_tunes_can_be_tuned_live(name: str, text: str) -> None:
    """The same words mean the same."""
    found = settings_of(live(name, "l20", policy_settings=text))
    assert found != settings_of(live(name, "l20"))
    if name in POLICIES:
        offline = PipelineSpec(SHAPE, hardware("l20"), STAGES)
        assert settings_of(scheduler_of(offline, name, parse_knobs(text, name), 100)[0]) == found


def test_flags_that_many_policies_share() -> None:
    """Each policy takes them under its own name."""
    for name in LIVE_POLICIES:
        config = live(name, "l20", prefill_tokens=96, max_running=7, microbatches=3).config
        assert (config.prefill_tokens, config.admission.max_running, config.microbatches) == (96, 7, 3)
    assert vars(live("hybrid", "l20", prefill_tokens=96).policy)["token_budget"] == 96
    assert live("auto", "l20", reserve=0.25).config.admission.reserve == 0.25


def router_arguments(settings: Mapping[str, Any]) -> list[str]:
    spec = router_spec(
        load_config(None, settings), http="h:1", predictor="h:2", provisioner="h:3", run_dir=Path()
    )
    return list(spec.arguments)


def test_names() -> None:
    """Known everywhere; a policy that needs a router's help has it."""
    assert set(DEFAULTS) - {"tp-separate", "tp-hybrid"} == set(LIVE_POLICIES)
    for name, routing in ROUTING.items():
        arguments = router_arguments({"model": "m", "policy": name, "ttft_ms": 2000.0})
        assert arguments[arguments.index("--routing") + 1] == routing
    # Who never set a target shall not be refused for missing one.
    assert "--routing" not in router_arguments({"model": "m", "policy": "auto"})
    with pytest.raises(ConfigError, match="give --routing roles, or --policy auto with"):
        load_config(None, {"model": "m", "policy": "auto", "prefill_instances": 1})
    for text in ("chunk=3", "token_budget=many", "order"):
        with pytest.raises(ConfigError, match=r"--policy-settings|setting"):
            load_config(None, {"model": "m", "policy": "hybrid", "policy_settings": text})


def test_some_instances_may_have_other_settings() -> None:
    """The first --prefill-instances of them; how many must be said."""
    flags = {"model": "m", "policy": "hybrid", "instances": 3, "policy_settings": "token_budget=128"}
    heavy = {"prefill_policy_settings": "token_budget=1024"}
    config = load_config(None, {**flags, **heavy, "prefill_instances": 1})
    told = []
    for instance in range(3):
        spec = controller_spec(config, instance, stages=["h:1"], router="h:2", predictor="h:3")
        told.append(parse_settings(ControllerSettings, spec.arguments).policy_settings)
    assert told == ["token_budget=1024", "token_budget=128", "token_budget=128"]
    for wrong in (heavy, {"prefill_policy_settings": "chunk=3", "prefill_instances": 1}):
        with pytest.raises(ConfigError, match="--prefill-policy-settings"):
            load_config(None, {**flags, **wrong})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"macro_min": 5, "macro_max": 2}, "--macro-max must be at least 9"),
        ({"macro_max": 4}, "--macro-min 6 and --macro-max 4 do not fit"),
    ],
)
def test_sizes_of_macro_instances_are_refused_at_once(flags: dict[str, Any], said: str) -> None:
    load_config(None, {"model": "m", "macro_min": 5, "macro_max": 9})
    with pytest.raises(ConfigError, match=said):
        load_config(None, {"model": "m", **flags})
