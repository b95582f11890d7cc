"""What a model cannot be split into is refused before a process starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from common.errors import ConfigError
from tidepipe.cluster.config import ClusterConfig
from tidepipe.cluster.layers import check_split


def config(**settings: Any) -> ClusterConfig:
    """For a model that is given apart."""
    return ClusterConfig(model="it", **settings)


def test_stages_and_splits_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4}))
    check_split(config(stages=4), tmp_path)
    check_split(config(stages=2, layer_split="3,1"), tmp_path)
    with pytest.raises(ConfigError, match=r"it has 4 layers.* --stages can be 1 to 4, not 5"):
        check_split(config(stages=5), tmp_path)
    for split in ("3,2", "4,0"):
        with pytest.raises(ConfigError, match="add up to the model's 4 layers"):
            check_split(config(stages=2, layer_split=split), tmp_path)
    for unknown in ("[]", "{", '{"num_hidden_layers": "4"}', '{"num_hidden_layers": true}'):
        (tmp_path / "config.json").write_text(unknown)
        check_split(config(stages=64), tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "it.gguf", "llama")
    writer.add_block_count(4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="it has 4 layers"):
        check_split(config(stages=5), tmp_path / "it.gguf")
