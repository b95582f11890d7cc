"""What a checkpoint's configuration says of the model, read without its weights and without PyTorch.

Whoever needs it comes here: a stage worker, and the command that is about to start one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from stage_worker.loading.hf_config import from_hf_config, is_native
from stage_worker.models.spec import ModelSpec
from stage_worker.transformers_code.opening import generic_spec
from tidepipe_common.end_tokens import end_tokens
from tidepipe_common.errors import ConfigError
from tidepipe_common.model_files import is_there, read_json_object

_LARGEST_CONFIG = 4 << 20
"""Bytes: lists of layers, experts and labels are some 100 KB, and the library copies them many times."""

ModelCode = Literal["auto", "native", "transformers"]


def read_spec(path: Path, model_code: ModelCode = "auto") -> ModelSpec:
    """The spec of what `model_source.resolve_model` found; ModelError for what cannot be run.

    model_code: whose code is to compute it; auto: TidePipe's own for the families that it has.
    """
    if path.suffix != ".gguf":
        return folder_spec(path, read_config(path), model_code)
    refuse_librarys_code(path, model_code)
    # Late: only a GGUF file needs the package.
    from stage_worker.loading.gguf_config import from_gguf, is_mixture, mixture_spec
    from stage_worker.loading.gguf_header import read_gguf_header

    header = read_gguf_header(path)
    return mixture_spec(header) if is_mixture(header) else from_gguf(header)


def refuse_librarys_code(path: Path, model_code: ModelCode) -> None:
    """ConfigError if the library's code was asked for: a GGUF file itself says what computes it."""
    if model_code == "transformers":
        raise ConfigError(f"{path}: model_code transformers is for Hugging Face folders, not for GGUF files")


def read_config(folder: Path) -> Mapping[str, Any]:
    """A folder's config.json."""
    return read_json_object(folder / "config.json", _LARGEST_CONFIG)


def by_library(config: Mapping[str, Any], model_code: ModelCode) -> bool:
    """Whether the transformers library's code computes the model of a configuration."""
    return model_code == "transformers" or (model_code == "auto" and not is_native(config))


def folder_spec(folder: Path, config: Mapping[str, Any], model_code: ModelCode = "auto") -> ModelSpec:
    """The spec of a Hugging Face folder, whose config.json has been read."""
    file = folder / "generation_config.json"
    generation_config = read_json_object(file) if is_there(file) else {}
    # Whoever names the ends of an output there has thought of the turns of a chat; see docs/decisions/037.
    ends = end_tokens(folder, turns=generation_config.get("eos_token_id") is None)
    if by_library(config, model_code):
        return generic_spec(folder, config, generation_config, ends)
    source = str(folder / "config.json")
    return from_hf_config(config, generation_config, end_tokens=ends, source=source)
