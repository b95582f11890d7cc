"""A model that cannot run, or cannot be split as asked, is refused before a process starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.config import ClusterConfig
from launcher.preflight import check_model
from tests.tiny_gguf import write_gguf
from tests.tiny_models import make_tiny_model
from tidepipe_common.errors import ConfigError, ModelError


def config(**settings: Any) -> ClusterConfig:
    """For a model that is given apart."""
    return ClusterConfig(model="it", **settings)


def test_stages_and_splits_that_cannot_be(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 300}
    said = {"model_type": "llama", "num_hidden_layers": 4, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(said))
    check_model(config(stages=4), tmp_path)
    check_model(config(stages=2, layer_split="3,1"), tmp_path)
    with pytest.raises(ConfigError, match=r"it has 4 layers.* --stages can be 1 to 4, not 5"):
        check_model(config(stages=5), tmp_path)
    for split in ("3,2", "4,0"):
        with pytest.raises(ConfigError, match="add up to the model's 4 layers"):
            check_model(config(stages=2, layer_split=split), tmp_path)
    for unknown in ("[]", "[" * 100_000, json.dumps({**said, "num_attention_heads": 0})):
        (tmp_path / "config.json").write_text(unknown)
        with pytest.raises(ModelError, match=r"config\.json: "):
            check_model(config(), tmp_path)


def test_gguf(tmp_path: Path) -> None:
    (tmp_path / "it.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"it\.gguf: cut short within its header"):
        check_model(config(), tmp_path / "it.gguf")
    path = write_gguf(make_tiny_model("llama", tmp_path / "model"), tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="it has 4 layers"):
        check_model(config(stages=5), path)
