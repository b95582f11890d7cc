"""Model shapes from files."""

from __future__ import annotations

import json
from pathlib import Path

from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.shapes import SHAPES, named_shape, shape_from_config
from tidepipe_common.regular_files import read_text, why_unreadable
from tidepipe_common.types.model_shape import ModelShape


def read_shape(name_or_path: str) -> ModelShape:
    """A known model's name, or a JSON file (a Hugging Face config.json does)."""
    if (shape := named_shape(name_or_path)) is not None:
        return shape
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if not path.exists():
        raise ConfigError(f"unknown model {name_or_path!r}; known: {', '.join(SHAPES)}; or a JSON file")
    try:
        config = json.loads(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {why_unreadable(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON, as a config.json is: {error}") from error
    # A profile of `tidepipe profile` says which model it measured.
    shape = config.get("shape", config) if isinstance(config, dict) else None
    if not isinstance(shape, dict):
        raise ConfigError(f"{path} must hold one JSON object, and so must its shape")
    return shape_from_config(shape, str(path))
