"""A checkpoint without an end token, as some people have them: a structure can never end there."""

from __future__ import annotations

import json
from pathlib import Path


def endless_copy(model: Path, folder: Path) -> Path:
    """A folder with the same weights, in which no file names an end."""
    folder.mkdir()
    for path in model.iterdir():
        if path.suffix == ".json" and path.name != "tokenizer.json":
            values = json.loads(path.read_text(encoding="utf-8"))
            for name in ("eos_token_id", "eos_token"):
                if isinstance(values, dict) and name in values:
                    values[name] = None
            (folder / path.name).write_text(json.dumps(values), encoding="utf-8")
        else:
            (folder / path.name).symlink_to(path.resolve())
    return folder
