"""What the brain leaves to vLLM's own scheduler, and why."""

from __future__ import annotations

from typing import Any


def of_engine(config: Any, kv_cache: Any) -> str:
    """Why the whole engine runs under vLLM's own scheduler; empty: it does not.

    config: VllmConfig. kv_cache: KVCacheConfig.
    """
    model, parallel, scheduler = config.model_config, config.parallel_config, config.scheduler_config
    reasons = {
        "speculative decoding is on": config.speculative_config is not None,
        "a KV connector is configured": config.kv_transfer_config is not None,
        "an encoder connector is configured": config.ec_transfer_config is not None,
        "adapters (LoRA) are on": config.lora_config is not None,
        "it is a pooling model": model.runner_type != "generate",
        "it is an encoder-decoder model": model.is_encoder_decoder,
        "it is a diffusion model": getattr(model, "is_diffusion", False),
        "the model has several kinds of KV cache": len(kv_cache.kv_cache_groups) != 1,
        "the model has Mamba layers": kv_cache.has_mamba_layers,
        "requests have priorities": scheduler.policy != "fcfs",
        "chunked prefill is off": not scheduler.enable_chunked_prefill,
        "context parallelism is on": parallel.decode_context_parallel_size > 1
        or parallel.prefill_context_parallel_size > 1,
        "data parallelism is on": parallel.data_parallel_size > 1,
        # Its next step is made before the last one's tokens are known, which one stage needs and we lack.
        "one stage with asynchronous scheduling has nothing to balance": (
            scheduler.async_scheduling and parallel.pipeline_parallel_size == 1
        ),
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def of_request(request: Any, device: str) -> str:
    """Why vLLM's own scheduler decides while this request is there; empty: it need not.

    device: its kind, as vLLM calls it.
    """
    sampling = request.sampling_params
    reasons = {
        "a request has pictures, sound or video": bool(request.mm_features),
        "a request has embeddings as its prompt": request.prompt_token_ids is None
        or request.prompt_embeds is not None,
        "a request is for pooling": sampling is None,
        "a request goes on with further input": request.resumable,
        # Its runner winds the generator back after a part of a prompt, which on a CPU ends the engine.
        "a request has a seed, whose prompt vLLM cannot compute in parts on a CPU": device == "cpu"
        and sampling is not None
        and sampling.seed is not None,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)
