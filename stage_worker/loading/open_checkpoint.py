"""Opens a checkpoint by what the path is."""

from __future__ import annotations

from pathlib import Path

from stage_worker.loading.checkpoint import Checkpoint
from stage_worker.loading.model_spec import ModelCode
from stage_worker.loading.safetensors_folder import open_safetensors
from tidepipe_common.errors import ConfigError


def open_checkpoint(path: Path, model_code: ModelCode = "auto") -> Checkpoint:
    """Open what `tidepipe_common.model_source.resolve_model` found: a safetensors folder or a .gguf file."""
    if path.suffix == ".gguf":
        if model_code == "transformers":
            raise ConfigError(
                f"{path}: model_code transformers is for Hugging Face folders, not for GGUF files"
            )
        # Imported late: the gguf package is only worth its start-up time for such files.
        from stage_worker.loading.gguf_file import open_gguf

        return open_gguf(path)
    return open_safetensors(path, model_code)
