"""GGUF files: the same tokens as the safetensors they came from, and damage that is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file

from stage_worker.loading.gguf_config import from_gguf
from stage_worker.loading.gguf_header import SkippedArray, read_gguf_header
from stage_worker.loading.open_checkpoint import open_checkpoint
from tests.tiny_gguf import write_gguf
from tests.tiny_models import hugging_face_greedy, make_tiny_model, random_prompts
from tests.torch_pipeline import generate, make_pipeline
from tidepipe_common.errors import ModelError

PROMPTS = random_prompts([5, 20])


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_round_trip_gives_hugging_face_tokens(family: str, tmp_path: Path) -> None:
    # llama.cpp has no windows for Qwen2, and SmolLM3's layers without RoPE are fixed there.
    options: dict[str, dict[str, Any]] = {
        "qwen2": {"use_sliding_window": False},
        "smollm3": {"no_rope_layer_interval": 4},
        "llama": {"attention_bias": True},
    }
    folder = make_tiny_model(family, tmp_path / "hf", **options.get(family, {}))
    path = write_gguf(folder, tmp_path / "model.gguf")
    assert generate(make_pipeline(path, 2), PROMPTS, 8) == hugging_face_greedy(folder, PROMPTS, 8)


def test_spec_equals_the_folder_s(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "hf")
    from_file = open_checkpoint(write_gguf(folder, tmp_path / "model.gguf")).spec
    from_folder = open_checkpoint(folder).spec
    assert from_file.shape == from_folder.shape
    assert from_file.rope == from_folder.rope
    assert from_file.rms_eps == pytest.approx(from_folder.rms_eps)


@pytest.mark.parametrize(
    "kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.BF16]
)
def test_quantized_weights_are_those_that_gguf_decodes(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    import gguf

    folder = make_tiny_model("llama", tmp_path / "hf")
    checkpoint = open_checkpoint(write_gguf(folder, tmp_path / "model.gguf", kind=kind))
    assert checkpoint.spec.native_dtype == "bfloat16"
    for name, tensor in load_file(folder / "model.safetensors").items():
        expected = tensor
        if tensor.ndim == 2:
            expected = torch.from_numpy(
                gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), kind), kind)
            )
        got = torch.empty_like(tensor)
        checkpoint.read_into(name, got)
        assert torch.equal(got, expected), name


def test_quantized_model_gives_the_tokens_of_its_decoded_weights(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "hf")
    path = write_gguf(folder, tmp_path / "model.gguf", kind=GGMLQuantizationType.Q4_1)
    checkpoint = open_checkpoint(path)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        checkpoint.read_into(name, tensor)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert generate(make_pipeline(path, 1), PROMPTS, 8) == hugging_face_greedy(folder, PROMPTS, 8)


def test_rope_divisors_are_read(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "hf")
    divisors = np.linspace(1, 8, 8)
    path = write_gguf(folder, tmp_path / "model.gguf", rope_divisors=divisors)
    assert open_checkpoint(path).spec.rope.frequency_divisors == pytest.approx(divisors.tolist())
    wrong = write_gguf(folder, tmp_path / "wrong.gguf", rope_divisors=divisors[:5])
    with pytest.raises(ModelError, match="5 RoPE frequency divisors"):
        open_checkpoint(wrong)
    none = write_gguf(folder, tmp_path / "none.gguf", rope_divisors=divisors[:0])
    with pytest.raises(ModelError, match=r"rope_freqs\.weight: shape \(0,\) does not fit"):
        open_checkpoint(none)
    zero = write_gguf(folder, tmp_path / "zero.gguf", rope_divisors=divisors * 0)
    with pytest.raises(ModelError, match="must be above 0"):
        open_checkpoint(zero)


def test_big_endian_is_named(tmp_path: Path) -> None:
    (tmp_path / "it.gguf").write_bytes(b"GGUF\0\0\0\3" + bytes(64))
    with pytest.raises(ModelError, match="big-endian"):
        open_checkpoint(tmp_path / "it.gguf")


def test_vocabulary_is_stepped_over(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "hf")
    header = read_gguf_header(write_gguf(folder, tmp_path / "model.gguf"))
    assert header.metadata["tokenizer.ggml.tokens"] == SkippedArray(300)
    assert from_gguf(header).eos_token_ids == (1,)


def test_unsupported_architecture_lists_the_supported_ones(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "hf")
    path = write_gguf(folder, tmp_path / "model.gguf", architecture="falcon")
    with pytest.raises(
        ModelError, match=r"'falcon' is not .*llama, mistral, qwen2, qwen3, smollm3.*Face folder"
    ):
        open_checkpoint(path)


def test_every_cut_is_a_model_error(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "hf")
    data = write_gguf(folder, tmp_path / "model.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 4000, 61), len(data) // 2, len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            open_checkpoint(cut)


def test_tensors_over_one_another_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "hf")
    path = write_gguf(folder, tmp_path / "model.gguf")
    data = path.read_bytes()
    first, second = sorted(read_gguf_header(path).tensors.values(), key=lambda one: one.offset)[:2]
    # A tensor's entry ends with its offset behind the header.
    entry = data.index(second.name.encode()) + len(second.name) + 4 + 8 * len(second.shape) + 4
    assert int.from_bytes(data[entry : entry + 8], "little") == second.offset - first.offset
    path.write_bytes(data[:entry] + bytes(8) + data[entry + 8 :])
    with pytest.raises(ModelError, match=rf"the bytes of tensors .*{first.name}.* overlap"):
        open_checkpoint(path)


def test_damaged_headers_are_model_errors_or_read(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "hf")
    data = write_gguf(folder, tmp_path / "model.gguf").read_bytes()
    damaged = tmp_path / "damaged.gguf"
    generator = np.random.default_rng(0)
    for _ in range(100):
        changed = bytearray(data)
        for _ in range(3):
            changed[int(generator.integers(0, 600))] = int(generator.integers(0, 256))
        damaged.write_bytes(changed)
        try:
            open_checkpoint(damaged)
        except ModelError as error:
            assert "damaged.gguf" in str(error)
