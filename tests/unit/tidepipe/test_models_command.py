"""`tidepipe models`: what runs, and why others do not, as it was tried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner

from stage_worker.transformers_code.architectures import PAGE, found, page
from tidepipe.cli.main import app
from tidepipe_common.errors import ModelError


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["models", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_a_hundred_architectures_run_and_the_others_have_a_reason_in_80_columns() -> None:
    text = said()
    assert max(map(len, text.splitlines())) <= 80
    listed = {one["name"]: one for one in json.loads(said("--json"))["architectures"]}
    assert sum(one["runs"] for one in listed.values()) >= 100
    assert all(one["reason"] for one in listed.values() if not one["runs"])
    assert {"mixtral", "gpt_oss", "qwen3_moe", "gemma3_text"} <= {
        name for name, one in listed.items() if one["runs"]
    }
    assert "recurrent" in listed["mamba"]["reason"]


def test_the_list_is_of_the_pinned_library_and_so_is_its_page() -> None:
    """Made anew by `python -m stage_worker.transformers_code.architectures` when the library is another."""
    version, architectures = found()
    assert version == transformers.__version__
    assert PAGE.read_text() == page(version, architectures)


def test_a_model_that_cannot_be_run_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="num_hidden_layers is missing"):
        CliRunner().invoke(app, ["models", str(tmp_path)], catch_exceptions=False)
