"""A model's tokenizer as tokenizer.json describes it: what routers and stage workers read for structures."""

from __future__ import annotations

from pathlib import Path

from tidepipe_common.regular_files import read_text
from tidepipe_common.tokenizer_source import load_tokenizer


def read_tokenizer(model: Path) -> str:
    """From a model's folder or .gguf file. OSError, ValueError or ModelError if there is none."""
    file = model / "tokenizer.json"
    if model.suffix != ".gguf" and file.is_file():
        return read_text(file)
    text: str = load_tokenizer(model).backend_tokenizer.to_str()
    return text
