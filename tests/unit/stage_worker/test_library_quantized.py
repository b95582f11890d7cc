"""Quantized checkpoints of models that the library's code computes: kept packed, the library's answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from bench.quantized_checkpoints import write_quantized
from stage_worker.executors.protocol import Executor, StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from stage_worker.transformers_code import trial
from stage_worker.transformers_code.tiny import tiny_values
from tests.tiny_gguf import write_gguf
from tests.tiny_models import hugging_face_greedy, random_prompts
from tests.torch_pipeline import GreedySampler, generate
from tidepipe_common.errors import ModelError

pytestmark = pytest.mark.usefixtures("trials_here")

PROMPTS = random_prompts([5, 20, 33])
NEW_TOKENS = 6
ROOM = 1.2
"""Memory of a loaded stage beside its part of the file."""


def base(model_type: str, folder: Path, **sizes: Any) -> Path:
    values = {**tiny_values(CONFIG_MAPPING[model_type]().to_dict()), **sizes}
    trial.reference(CONFIG_MAPPING[model_type](**values), 3).save_pretrained(folder)
    return folder


def pipeline(model: Path, stages: int, **options: Any) -> tuple[list[Executor], int]:
    """Its executors, and what the stages' weights take."""
    executors: list[Executor] = []
    held = 0
    for index in range(stages):
        backend = TorchBackend(
            str(model), device="cpu", dtype="float32", make_sampler=GreedySampler, **options
        )
        layers = backend.description.shape.layers
        begin, end = (number * layers // stages for number in (index, index + 1))
        executor = backend.configure(StageSpec(index, stages, begin, end, 16, 64, 256))
        held += executor.weight_bytes
        executors.append(executor)
    return executors, held


@pytest.mark.parametrize(
    ("model_type", "form", "stages", "native"),
    [("qwen3_moe", "awq", 2, "1"), ("gemma3_text", "gptq", 2, "0"), ("deepseek_v3", "fp8-blocks", 1, "1")],
)
def test_answers_are_the_librarys_of_the_same_numbers(
    model_type: str,
    form: str,
    stages: int,
    native: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIDEPIPE_NATIVE", native)
    # Vocabularies of tiny models are most of them, and are numbers anywhere.
    sizes = {"vocab_size": 64, "moe_intermediate_size": 64}
    plain = base(model_type, tmp_path / "plain", tie_word_embeddings=False, **sizes)
    packed = write_quantized(plain, tmp_path / "packed", form)
    numbers = write_quantized(plain, tmp_path / "numbers", form, numbers=True)
    prompts = [[token % 64 for token in prompt] for prompt in PROMPTS]
    executors, held = pipeline(packed, stages)
    expected = hugging_face_greedy(numbers, prompts, NEW_TOKENS)
    assert generate(executors, prompts, NEW_TOKENS, chunk=9, stagger=1) == expected
    if model_type != "deepseek_v3":  # whose products have 16 outputs here, of 64 that kernels take at once
        assert held <= ROOM * (packed / "model.safetensors").stat().st_size


def test_experts_in_int8_take_a_quarter(tmp_path: Path) -> None:
    plain = base("qwen3_moe", tmp_path / "plain", vocab_size=64)
    prompts = [[token % 64 for token in prompt] for prompt in PROMPTS]
    alone, held = pipeline(plain, 1, quantization="int8")
    assert held <= 0.4 * (plain / "model.safetensors").stat().st_size
    two, _ = pipeline(plain, 2, quantization="int8")
    assert generate(two, prompts, 4) == generate(alone, prompts, 4, chunk=9, stagger=1)


@pytest.fixture(scope="module")
def oss(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny gpt-oss as people have it, and what transformers makes of its blocks."""
    folder = tmp_path_factory.mktemp("oss")
    plain = base("gpt_oss", folder / "numbers", intermediate_size=64)
    shutil.copytree(plain, folder / "packed")
    tensors = load_file(plain / "model.safetensors")
    numbers = dict(tensors)
    generator = torch.Generator().manual_seed(0)
    for name, weight in list(tensors.items()):
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = weight.shape
            blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator)
            scales = torch.randint(122, 126, blocks.shape[:3], generator=generator)
            pair = blocks.to(torch.uint8), scales.to(torch.uint8)
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = pair
            del tensors[name]
            numbers[name] = convert_moe_packed_tensors(*pair, dtype=torch.float32).contiguous()
    save_file(numbers, plain / "model.safetensors", {"format": "pt"})
    save_file(tensors, folder / "packed" / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "packed" / "config.json").write_text(json.dumps(config))
    return folder / "packed", plain


@pytest.mark.parametrize(("stages", "native"), [(2, "1"), (1, "0")])
def test_blocks_of_gpt_oss(
    stages: int, native: str, oss: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEPIPE_NATIVE", native)
    packed, numbers = oss
    executors, held = pipeline(packed, stages)
    assert generate(executors, PROMPTS, NEW_TOKENS, chunk=9) == hugging_face_greedy(
        numbers, PROMPTS, NEW_TOKENS
    )
    assert held <= ROOM * (packed / "model.safetensors").stat().st_size


def test_blocks_without_their_scales_are_refused(oss: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(oss[0], tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\..*down_proj_scales is missing.*fetch"):
        TorchBackend(str(folder), device="cpu")


@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen2_moe"])
def test_blocks_of_gguf(model_type: str, tmp_path: Path) -> None:
    """Experts of a layer in one tensor; a file in plain float32 tells what others stand for."""
    sizes = {"vocab_size": 64, "moe_intermediate_size": 64, "intermediate_size": 64}
    sizes |= {"norm_topk_prob": model_type == "qwen3_moe", "shared_expert_intermediate_size": 64}
    plain = base(model_type, tmp_path / "plain", tie_word_embeddings=False, **sizes)
    config = json.loads((plain / "config.json").read_text())
    architecture = model_type.replace("_", "")
    keys = {
        "expert_count": next(config[key] for key in ("num_experts", "num_local_experts") if key in config),
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": 64,
        "expert_shared_feed_forward_length": 64 if model_type == "qwen2_moe" else 0,
    }
    more = {f"{architecture}.{key}": value for key, value in keys.items()}
    more["tokenizer.ggml.eos_token_id"] = 1
    prompts = [[token % 64 for token in prompt] for prompt in PROMPTS]
    whole = write_gguf(plain, tmp_path / "whole.gguf", architecture=architecture, metadata=more)
    expected = hugging_face_greedy(plain, prompts, NEW_TOKENS)
    assert generate(pipeline(whole, 2)[0], prompts, NEW_TOKENS, chunk=9) == expected
    kind = GGMLQuantizationType.Q8_0
    packed = write_gguf(plain, tmp_path / "q8.gguf", kind=kind, architecture=architecture, metadata=more)
    executors, held = pipeline(packed, 2)
    alone, _ = pipeline(packed, 1)
    assert generate(executors, prompts, NEW_TOKENS) == generate(alone, prompts, NEW_TOKENS, chunk=9)
    assert held <= ROOM * packed.stat().st_size
