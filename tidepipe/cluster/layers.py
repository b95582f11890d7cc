"""Whether a model can be split as asked, seen before a process is started."""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import ConfigError, ModelError
from tidepipe.cluster.config import ClusterConfig


def check_split(config: ClusterConfig, model: Path) -> None:
    """ConfigError if the model has fewer layers than stages, or other ones than `layer_split` deals out.

    model: where it was found. What cannot be read here, a stage worker refuses in its own words.
    """
    layers = _layers(model)
    if not layers:
        return
    if config.stages > layers:
        raise ConfigError(
            f"{config.model} has {layers} layers, and each stage needs one: --stages can be 1 to {layers}, "
            f"not {config.stages}"
        )
    if config.layer_split is not None:
        from controller.core.split import given_split

        given_split([int(count) for count in config.layer_split.split(",")], layers, config.stages)


def _layers(model: Path) -> int:
    """0 if it does not say."""
    if model.is_file():
        # Late: only a GGUF file needs it.
        from stage_worker.loading.gguf_header import read_gguf_header

        try:
            metadata = read_gguf_header(model).metadata
        except (ModelError, OSError):
            return 0
        layers = metadata.get(f"{metadata.get('general.architecture')}.block_count")
    else:
        try:
            config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError):
            return 0
        layers = config.get("num_hidden_layers") if isinstance(config, dict) else None
    return layers if isinstance(layers, int) and not isinstance(layers, bool) and layers > 0 else 0
