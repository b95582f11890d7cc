"""Opens a checkpoint that the library's code is to compute."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage_worker.loading.hf_config import native_dtype, output_ends, refuse_other_heads
from stage_worker.loading.quantization_config import read_quantization, without_quantization
from stage_worker.models.spec import ModelSpec
from stage_worker.transformers_code.architectures import found as architectures
from stage_worker.transformers_code.examination import examine
from tidepipe_common.errors import ModelError

_HEADS = ("ForCausalLM", "Model", "ForConditionalGeneration")


def generic_spec(
    folder: Path, config: Mapping[str, Any], generation_config: Mapping[str, Any], ends: tuple[int, ...]
) -> ModelSpec:
    """The spec of a folder's model; ModelError for what cannot be run, with the reason."""
    source = str(folder / "config.json")
    read_quantization(config, source)
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    kind = native_dtype({**inner, **config}, source)
    refuse_other_heads(config, _HEADS, source)
    spec = examined(without_quantization(config), source)
    return dataclasses.replace(
        spec,
        eos_token_ids=output_ends({**inner, **config}, generation_config, ends, spec.vocab_size, source),
        native_dtype=kind,
    )


def examined(config: Mapping[str, Any], source: str) -> ModelSpec:
    """What a trial found of a configuration; ModelError if it cannot be run."""
    model_type = " ".join(str(config.get("model_type") or "(no model_type)").split())[:100]
    try:
        found = examine(config)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    if found.spec is None:
        raise ModelError(f"{source}: {model_type} cannot be run: {found.reason} ({_advice(config)})")
    return found.spec


def _advice(config: Mapping[str, Any]) -> str:
    """What to do about a configuration that cannot be run."""
    writer, here = str(config.get("transformers_version", "")), importlib.metadata.version("transformers")
    if _release(writer) > _release(here):
        return f"it was written by transformers {writer[:20]}, here is {here}: a newer TidePipe may know it"
    if architectures()[1].get(str(config.get("model_type"))) == "":
        return "others of this family run: see what differs in config.json"
    return "`tidepipe models` lists what runs"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,6}", version)[:2])
