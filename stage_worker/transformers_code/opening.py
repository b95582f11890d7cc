"""Opens a checkpoint that the library's code is to compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage_worker.loading.hf_config import native_dtype, output_ends
from stage_worker.models.spec import ModelSpec
from stage_worker.transformers_code.examination import examine
from tidepipe_common.errors import ModelError

_QUANTIZED = ("quantization_config", "quantization", "compression_config")


def generic_spec(
    folder: Path, config: Mapping[str, Any], generation_config: Mapping[str, Any], ends: tuple[int, ...]
) -> ModelSpec:
    """The spec of a folder's model; ModelError for what cannot be run, with the reason."""
    source = str(folder / "config.json")
    model_type = str(config.get("model_type") or "(no model_type)")[:100]
    for key in _QUANTIZED:
        if config.get(key):
            raise ModelError(
                f"{source}: quantized checkpoints of {model_type} are not supported, only those of "
                "families with code of TidePipe's own (docs/reference/checkpoints.md)"
            )
    try:
        found = examine(config)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    if found.spec is None:
        raise ModelError(
            f"{source}: {model_type} cannot be run: {found.reason} (`tidepipe models` lists what runs)"
        )
    spec = found.spec
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    return dataclasses.replace(
        spec,
        eos_token_ids=output_ends({**inner, **config}, generation_config, ends, spec.vocab_size, source),
        native_dtype=native_dtype({**inner, **config}, source),
    )
