"""Opens a checkpoint by what the path is."""

from __future__ import annotations

from pathlib import Path

from stage_worker.loading.checkpoint import Checkpoint
from stage_worker.loading.model_spec import ModelCode, refuse_librarys_code
from stage_worker.loading.safetensors_folder import open_safetensors


def open_checkpoint(path: Path, model_code: ModelCode = "auto") -> Checkpoint:
    """Open what `tidepipe_common.model_source.resolve_model` found: a safetensors folder or a .gguf file."""
    if path.suffix == ".gguf":
        refuse_librarys_code(path, model_code)
        # Late: the gguf package is only worth its start-up time for such files.
        from stage_worker.loading.gguf_config import is_mixture
        from stage_worker.loading.gguf_experts import open_mixture
        from stage_worker.loading.gguf_file import open_gguf
        from stage_worker.loading.gguf_header import read_gguf_header

        header = read_gguf_header(path)
        return open_mixture(header) if is_mixture(header) else open_gguf(header)
    return open_safetensors(path, model_code)
