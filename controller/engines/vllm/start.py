"""A vLLM body from the settings of a controller."""

from __future__ import annotations

from collections.abc import Callable

from controller.engines.vllm.body import VllmBody
from controller.engines.vllm.engine_options import (
    EngineOptions,
    layers_of_stages,
    parse_engine_arguments,
    prepare_environment,
)
from controller.engines.vllm.versions import require_vllm
from tidepipe_common.latency.model import StepCost
from tidepipe_common.model_source import resolve_model
from tidepipe_common.settings.controller import ControllerSettings
from tidepipe_common.types.token_mix import TokenMix


def vllm_body(settings: ControllerSettings, cost: Callable[[], StepCost]) -> VllmBody:
    """What the settings describe; ConfigError or ModelError if it cannot be.

    cost: of steps, as far as is known now.
    """
    require_vllm()
    more = parse_engine_arguments(settings.engine_args)
    assert settings.model is not None, "the settings have been checked"
    stages = int(settings.stages)
    path = resolve_model(settings.model, allow_download=settings.allow_download)
    layers = settings.layers
    if "hf_overrides" not in more:  # with them the model is another one than its folder says
        layers = layers_of_stages(path, stages, TokenMix.parse(settings.token_mix), settings.layers)
    prepare_environment(
        settings.share, stages * settings.tensor_parallel, layers, asked=bool(settings.layers)
    )
    options = EngineOptions(
        model=settings.model,
        path=str(path),
        stages=stages,
        tensor_parallel=settings.tensor_parallel,
        dtype=settings.dtype,
        # TidePipe's default is of its own workers; vLLM knows what suits its kernels.
        block_size=settings.block_size if "block_size" in settings.model_fields_set else 0,
        kv_blocks=settings.kv_blocks,
        more=more,
    )
    return VllmBody(options, cost)
