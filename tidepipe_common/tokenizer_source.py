"""The tokenizer of a model on disk, as Hugging Face loads it, or in one sentence why there is none."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from tidepipe_common.errors import ModelError
from tidepipe_common.tokenizer_files import (
    check_growth,
    check_tokenizer_files,
    check_tokenizer_json,
    template_apart,
    tokenizer_facts,
)

_LONGEST_REASON = 300
_LOADING = threading.Lock()
"""Transformers imports its parts when they are asked for; two threads at once have seen one half made."""
# What Hugging Face can make a fast tokenizer of without anything but its own library.
_SOURCES = ("tokenizer.json", "vocab.json", "vocab.txt")


def leave_out_torch() -> None:
    """Import transformers without PyTorch, which it would otherwise load for models that we never use.

    Spares a process two thirds of its start-up time and 250 MB. Lasts for the life of the process, so only
    one that runs no model may call it. Does nothing if PyTorch is loaded already.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Python's own way to say that there is no such module; transformers looks once and remembers.
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from transformers import is_torch_available

        assert not is_torch_available()
    finally:
        del sys.modules["torch"]


def load_tokenizer(path: Path) -> Any:
    """A fast tokenizer of transformers, from a model's folder or .gguf file.

    Nothing from the network, and no code of the model's. ModelError if there is none, or of another kind.
    """
    if not path.exists():
        raise ModelError(f"no tokenizer at {path}: there is no such file or folder")
    gguf = path.suffix == ".gguf"
    if not gguf and not any((path / name).is_file() for name in _SOURCES):
        raise ModelError(f"cannot load the tokenizer of {path}: {_missing(path)}")
    if not gguf:
        check_tokenizer_files(path)
    with _LOADING:
        return _loaded(path, gguf=gguf)


def _loaded(path: Path, *, gguf: bool) -> Any:
    # Slow to import, and not needed by those who only use the types.
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if gguf:
            # Not AutoTokenizer: it wants an architecture that transformers can run from GGUF, too.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(
                str(path.parent), gguf_file=path.name, local_files_only=True
            )
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                str(path), config=_model_config(path), local_files_only=True, trust_remote_code=False
            )
    except ModelError:
        raise
    except Exception as error:  # transformers raises all kinds, from ValueError to OSError
        if gguf and isinstance(error, KeyError):
            raise ModelError(f"cannot load the tokenizer of {path}: the file has no {error}") from error
        if not gguf:
            check_tokenizer_json(path)
        raise ModelError(_failed(path, error)) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(f"the tokenizer of {path} has no fast implementation (tokenizer.json)")
    check_growth(tokenizer.backend_tokenizer, f"the tokenizer of {path}")
    if not gguf and not tokenizer.chat_template:
        # The library leaves this file to the processors of models that see.
        tokenizer.chat_template = template_apart(path)
    return tokenizer


def _model_config(folder: Path) -> Any:
    """What the choice of a tokenizer's class wants to know of the model, and nothing besides.

    Left alone, AutoTokenizer has all of config.json read for it, and what is wrong with the model's numbers
    is then said to be wrong with the tokenizer.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    said = tokenizer_facts(folder)
    kind = said.get("model_type")
    config = CONFIG_MAPPING[kind]() if kind in CONFIG_MAPPING else PreTrainedConfig()
    config.name_or_path = str(folder)
    for key in ("tokenizer_class", "model_name"):
        if key in said:
            setattr(config, key, said[key])
    return config


def _missing(folder: Path) -> str:
    if any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.model.v3")):
        return (
            "it has tokenizer.model, but no tokenizer.json; make one, with sentencepiece installed: "
            f"transformers.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    return "there is none; copy tokenizer.json and tokenizer_config.json from where the model came"


def _failed(path: Path, error: Exception) -> str:
    """One line, however much the library has to say."""
    reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
    if "trust_remote_code" in str(error):
        reason = "it is made by code of the model's own, which is never run; save it as tokenizer.json"
    return f"cannot load the tokenizer of {path}: {reason}"
