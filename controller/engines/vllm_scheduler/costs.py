"""An instance as vLLM's configuration describes it, in the form that every live scheduler is made of."""

from __future__ import annotations

import os
from typing import Any

from controller.engines.vllm.engine_options import LAYERS
from controller.engines.vllm_scheduler.settings import Settings
from controller.runtime.scheduler_spec import SchedulerSpec
from controller.scheduler.policies.catalog import default_knobs, step_knob
from controller.scheduler.split import stage_layers
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.hardware import HARDWARE
from tidepipe_common.latency.shapes import shape_from_config
from tidepipe_common.types.model_shape import ModelShape
from tidepipe_common.types.token_mix import TokenMix

UNKNOWN_GPU = "l20"
"""Whose data sheet prices begin with where nobody knows better; measured times correct them."""
NO_LIMIT = 1 << 30


def device_of(settings: Settings, kind: str, name: str) -> str:
    """`hardware`'s name. kind: as vLLM calls it (cpu, cuda); name: the device's own."""
    if settings.hardware:
        return settings.hardware
    if kind == "cpu":
        return "cpu"
    words = name.lower().replace("-", " ").split()
    return next((known for known in HARDWARE if known in words), UNKNOWN_GPU)


def shape_of(model: Any) -> ModelShape:
    """model: vLLM's ModelConfig. What it does not say is guessed as is usual for such models."""
    text = model.hf_text_config
    hidden = model.get_hidden_size()
    heads = int(getattr(text, "num_attention_heads", 0) or max(1, hidden // model.get_head_size()))
    return ModelShape(
        architecture=str(getattr(text, "model_type", "unknown")),
        layers=int(text.num_hidden_layers),
        hidden=hidden,
        heads=heads,
        kv_heads=model.get_total_num_kv_heads(),
        head_dim=model.get_head_size(),
        intermediate=int(getattr(text, "intermediate_size", 0) or 4 * hidden),
        vocab_size=model.get_vocab_size(),
        # vLLM ends sequences, not we: one token more than it allows is never reached.
        context_length=model.max_model_len + 1,
        eos_token_ids=(),
        tied_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
    )


def better_layers(config: Any) -> str:
    """What `VLLM_PP_LAYER_PARTITION` had better be, for stages to take equally long; empty: nothing else.

    config: vLLM's VllmConfig. The last stage has the model's head besides its layers.
    """
    stages, text = config.parallel_config.pipeline_parallel_size, config.model_config.hf_text_config
    if stages < 2 or os.environ.get(LAYERS):
        return ""
    try:
        shape = shape_from_config(text.to_dict(), "the model")
        ranges = stage_layers(shape, stages, TokenMix())
    except ConfigError:
        return ""
    counts = [end - begin for begin, end in ranges]
    return ",".join(map(str, counts)) if max(counts) - min(counts) > 1 else ""


def spec_of(
    settings: Settings, config: Any, split: tuple[int, ...], device: str, most_tokens: int, block_size: int
) -> SchedulerSpec:
    """config: vLLM's VllmConfig. split: layers of each stage. most_tokens: of a step."""
    chosen = dict(settings.knobs)
    defaults = {**default_knobs(settings.policy, device), **chosen}
    running = config.scheduler_config.max_num_seqs
    chosen["max_running"] = min(int(defaults["max_running"]) or running, running)
    step = step_knob(settings.policy)
    chosen[step] = min(int(defaults[step]), most_tokens)
    # As many micro-batches as vLLM has steps under way.
    batches = config.max_concurrent_batches
    return SchedulerSpec(
        policy=settings.policy,
        shape=shape_of(config.model_config),
        split=split,
        device=device,
        profile=None,
        modelled=True,
        block_size=block_size,
        microbatches=batches,
        max_sequences=NO_LIMIT,
        knobs=chosen,
        prefix_caching=bool(config.cache_config.enable_prefix_caching),
    )
