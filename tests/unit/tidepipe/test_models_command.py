"""`tidepipe models`: what runs, and why others do not, as it was tried."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from stage_worker.transformers_code.architectures import found
from stage_worker.transformers_code.survey import PAGE, page
from tests.tiny_models import make_tiny_model
from tests.tiny_tokenizer import make_tokenizer
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
    """Made anew by `python -m stage_worker.transformers_code.survey` when the library is another."""
    version, architectures = found()
    assert version == transformers.__version__
    assert PAGE.read_text() == page(version, architectures)


def test_a_model_that_cannot_be_run_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="num_hidden_layers is missing"):
        CliRunner().invoke(app, ["models", str(tmp_path)], catch_exceptions=False)


def without_a_norm(folder: Path) -> str:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    return "model.norm.weight"


def cut_short(folder: Path) -> str:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "cut short"


def without_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "copy tokenizer.json"


@pytest.mark.parametrize("damage", [without_a_norm, cut_short, without_tokenizer])
def test_what_a_cluster_would_stumble_over_is_found_here(
    tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    folder = make_tiny_model("llama", tmp_path)
    make_tokenizer(folder)
    assert "runs: llama" in said(str(folder))
    with pytest.raises(ModelError, match=damage(folder)):
        CliRunner().invoke(app, ["models", str(folder)], catch_exceptions=False)
