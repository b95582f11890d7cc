"""Profiles and model shapes from files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from common.errors import ConfigError
from common.latency.linear import MeasuredLinear
from common.latency.shapes import SHAPES, named_shape, shape_from_config
from common.model_shape import ModelShape


def read_profile(path: Path) -> MeasuredLinear:
    """Two columns, tokens in the batch and milliseconds for the whole model; a header line may be there."""
    points: list[tuple[int, float]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if not row or (number == 1 and not _is_number(row[0])):
                    continue
                points.append((int(float(row[0])), float(row[1])))
    except OSError as error:
        raise ConfigError(f"cannot read the latency profile {path}: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise ConfigError(
            f"{path}, line {number}: expected tokens,milliseconds; got {','.join(row)}"
        ) from error
    return MeasuredLinear(points)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_shape(name_or_path: str) -> ModelShape:
    """A known model's name, or a JSON file (a Hugging Face config.json does)."""
    if (shape := named_shape(name_or_path)) is not None:
        return shape
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise ConfigError(f"unknown model {name_or_path!r}; known: {', '.join(SHAPES)}; or a JSON file")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} must hold one JSON object")
    return shape_from_config(config, str(path))
