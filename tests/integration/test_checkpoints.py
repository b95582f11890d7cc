"""Checkpoints as people have them, from the command line: answered, or refused at once in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from bench.quantized_checkpoints import write_quantized
from tests.tiny_gguf import write_gguf
from tests.tiny_models import hugging_face_greedy, make_tiny_model
from tests.tiny_tokenizer import gguf_tokenizer, make_tokenizer
from tidepipe.cli.admin.status_view import print_status
from tidepipe.cli.local_cluster import start_cluster
from tidepipe.client.async_client import AsyncClient

pytestmark = pytest.mark.timeout(120)

TOKENS = 6


def batch(
    model: Path, folder: Path, *prompts: str
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """`tidepipe batch` on a model, and the lines that it wrote."""
    body = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    request = {"method": "POST", "url": "/v1/completions"}
    lines = [
        {"custom_id": str(number), **request, "body": {**body, "prompt": prompt}}
        for number, prompt in enumerate(prompts)
    ]
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "tidepipe.cli.main", "batch", str(source), "-o", str(target)]
    command += ["--model", str(model), "--dtype", "float32"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    answers = [json.loads(line) for line in target.read_text().splitlines()] if target.exists() else []
    return result, sorted(answers, key=lambda answer: int(answer["custom_id"]))


def test_smollm3_from_gguf(tmp_path: Path) -> None:
    folder = make_tiny_model("smollm3", tmp_path / "model", no_rope_layer_interval=4)
    path = write_gguf(folder, tmp_path / "model.gguf", metadata=gguf_tokenizer())
    result, (answer,) = batch(path, tmp_path, "tides")
    assert result.returncode == 0, result.stderr
    assert answer["response"]["body"]["usage"]["prompt_tokens"] == 5


@pytest.mark.parametrize("name", ["awq", "fp8-blocks"])
def test_quantized_checkpoints(name: str, tmp_path: Path) -> None:
    plain = make_tiny_model("llama", tmp_path / "model")
    make_tokenizer(plain)
    result, (answer,) = batch(write_quantized(plain, tmp_path / "codes", name), tmp_path, "tides")
    assert result.returncode == 0, result.stderr
    numbers = write_quantized(plain, tmp_path / "numbers", name, numbers=True)
    expected = hugging_face_greedy(numbers, [list(b"tides")], TOKENS)
    assert [answer["response"]["body"]["choices"][0]["token_ids"]] == expected


def test_a_quantized_checkpoint_without_its_scales_is_refused(tmp_path: Path) -> None:
    plain = make_tiny_model("llama", tmp_path / "model")
    make_tokenizer(plain)
    folder = write_quantized(plain, tmp_path / "awq", "awq")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.scales"]
    save_file(tensors, folder / "model.safetensors")
    result, _ = batch(folder, tmp_path, "tides")
    assert result.returncode == 2
    assert "up_proj.scales is missing" in result.stderr.splitlines()[-1]  # behind what a slow start says


def test_a_tokenizer_with_one_token_more_than_the_model(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    make_tokenizer(folder, "<one more>")
    result, (plain, other) = batch(folder, tmp_path, "tides", "<one more>")
    assert result.returncode == 1, result.stderr
    assert plain["response"]["status_code"] == 200
    assert "token id 300, but the vocabulary ends at 299" in json.dumps(other)


def test_what_is_refused_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    make_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_multiplier": 0.5}))
    result, _ = batch(folder, tmp_path, "tides")
    assert result.returncode == 2
    (sentence,) = result.stderr.splitlines()
    assert "attention_multiplier: not known for llama" in sentence


async def test_what_makes_it_slow_is_said_to_everyone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    make_tokenizer(folder)
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("TIDEPIPE_CACHE", "/proc/none")
    # It would go on writing to this test's stderr.
    monkeypatch.setattr("tidepipe.cli.local_cluster.configure_logging", lambda *arguments: None)
    settings = {"model": str(folder), "stages": 2, "metrics": True}
    async with start_cluster(settings) as cluster:
        sentence = "slower than it could be: no native kernels: no C compiler found (no-such-compiler)"
        assert capsys.readouterr().err.count(sentence) == 1
        async with AsyncClient(cluster.grpc_address) as client:
            print_status(await client.status())
        assert sentence in " ".join(capsys.readouterr().out.split())
        async with httpx.AsyncClient(trust_env=False) as http:
            stage = next(child for child in cluster.children if child.name.startswith("stage-worker"))
            metrics = (await http.get(f"http://{stage.metrics_address}/metrics")).text
        assert "tidepipe_stage_slow 1.0" in metrics
