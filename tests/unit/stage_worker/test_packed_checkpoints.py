"""Quantized checkpoints: kept packed, the answers of the numbers that their codes stand for, damage told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.quantized_checkpoints import FORMATS, write_quantized
from stage_worker.executors.protocol import StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from stage_worker.loading.open_checkpoint import open_checkpoint
from tests.tiny_models import make_tiny_model, random_prompts
from tests.torch_pipeline import generate, make_pipeline
from tidepipe_common.errors import ModelError

PROMPTS = random_prompts([5, 20, 33])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("qwen2", tmp_path_factory.mktemp("plain"), use_sliding_window=False)


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_and_answers_are_those_of_the_codes(name: str, plain: Path, tmp_path: Path) -> None:
    folder = write_quantized(plain, tmp_path / "packed", name)
    numbers = write_quantized(plain, tmp_path / "numbers", name, numbers=True)
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.packed) == 4 * 7
    for tensor, expected in load_file(numbers / "model.safetensors").items():
        target = torch.empty_like(expected)
        checkpoint.read_into(tensor, target)
        torch.testing.assert_close(target, expected, rtol=1e-6, atol=1e-7)
    expected_answers = generate(make_pipeline(numbers, 1), PROMPTS, 8)
    for stages in (1, 3):
        assert generate(make_pipeline(folder, stages), PROMPTS, 8) == expected_answers


def test_products_of_several_kinds_in_one_layer(plain: Path, tmp_path: Path) -> None:
    folder = write_quantized(plain, tmp_path / "packed", "awq")
    numbers = write_quantized(plain, tmp_path / "numbers", "awq", numbers=True)
    tensors, stand_for = (load_file(one / "model.safetensors") for one in (folder, numbers))
    for module in ("self_attn.v_proj", "mlp.up_proj"):
        for layer in range(4):
            prefix = f"model.layers.{layer}.{module}."
            for end in ("qweight", "qzeros", "scales"):
                del tensors[prefix + end]
            tensors[f"{prefix}weight"] = stand_for[f"{prefix}weight"]
    save_file(tensors, folder / "model.safetensors")
    for dtype in ("float32", "bfloat16"):
        expected = generate(make_pipeline(numbers, 1, dtype=dtype), PROMPTS, 8)
        for stages in (1, 2):
            assert generate(make_pipeline(folder, stages, dtype=dtype), PROMPTS, 8) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_without_kernels_as_well(
    name: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_quantized(plain, tmp_path / "packed", name)
    expected = generate(make_pipeline(folder, 1), PROMPTS, 8)
    monkeypatch.setenv("TIDEPIPE_NATIVE", "0")
    assert generate(make_pipeline(folder, 2), PROMPTS, 8) == expected


def without(end: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{BROKEN}.{end}"]

    return damage


def changed(end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        name = f"{BROKEN}.{end}"
        tensors[name] = change(tensors[name]).contiguous()

    return damage


BROKEN = "model.layers.2.mlp.down_proj"
DAMAGES: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], None], str]] = {
    "no scales": ("gptq", without("scales"), r"down_proj\.scales is missing"),
    "no zero points": ("awq", without("qzeros"), r"down_proj\.qzeros is missing"),
    "no scale": ("int4", without("weight_scale"), r"down_proj\.weight_scale is missing"),
    "no scales of blocks": ("fp8-blocks", without("weight_scale_inv"), "weight_scale is missing"),
    "fewer scales": (
        "gptq",
        changed("scales", lambda t: t[1:]),
        r"scales has shape \[2, 64\].* ask for \[3, 64",
    ),
    "scales of integers": ("awq", changed("scales", lambda t: t.int()), "scales is I32"),
    "fewer codes": ("int4", changed("weight_packed", lambda t: t[:, 1:]), "does not fit 4 bits of a weight"),
    "fewer outputs": ("int8", changed("weight", lambda t: t[1:]), r"weight_scale has shape \[64, 1\]"),
    "codes of floats": ("awq", changed("qweight", lambda t: t.float()), r"qweight is F32"),
    "zero points of another shape": (
        "int4-zeros",
        changed("weight_zero_point", lambda t: t[1:]),
        "weight_zero_point has shape",
    ),
    "no such groups": (
        "gptq-act-order",
        changed("g_idx", lambda t: t + 1),
        "g_idx makes no sense: a group of inputs is 3",
    ),
    "neither codes nor numbers": ("gptq", without("qweight"), r"down_proj\.weight is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tensors_are_told(damage: str, plain: Path, tmp_path: Path) -> None:
    name, change, message = DAMAGES[damage]
    folder = write_quantized(plain, tmp_path / "packed", name)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        make_pipeline(folder, 1)


def test_a_file_cut_short_is_told(plain: Path, tmp_path: Path) -> None:
    file = write_quantized(plain, tmp_path / "packed", "awq") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cut short: tensor"):
        TorchBackend(str(file.parent), device="cpu")


CONFIGURATIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "3 bits": ("gptq", {"bits": 3}, "weights of 3 bits are not supported, only of 4 or 8"),
    "2 bits": ("awq", {"bits": 2}, "weights of 2 bits are not supported, only of 4"),
    "groups that do not divide": ("gptq", {"group_size": 40}, "groups of 40 do not divide evenly"),
    "groups of none": ("awq", {"group_size": 0}, "group_size must be -1 or at least 1, got 0"),
    "groups of words": ("awq", {"group_size": "128"}, "group_size must be a whole number, got .128"),
    "another kernel's order": ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format .marlin. is not"),
    "another order": ("awq", {"version": "gemv"}, "version .gemv. is not supported"),
    "a method of the future": ("awq", {"quant_method": "awq3"}, "awq3. is not supported; use the plain"),
    "bitsandbytes": ("awq", {"quant_method": "bitsandbytes"}, "dequantize it with transformers"),
    "torchao": ("int4", {"quant_method": "torchao"}, "torchao. is not supported; save it anew"),
    "a format of the future": (
        "int4",
        {"format": "nvfp4-pack-quantized"},
        "format .nvfp4-pack-quantized. is not",
    ),
    "sparse": ("int4", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights"),
    "no groups": ("int4", {"config_groups": {}}, "config_groups must be an object of 1 to 64"),
    "targets of one name": (
        "int4",
        {"config_groups": {"group_0": {"targets": "Linear", "weights": {"num_bits": 4}}}},
        "targets must be a list of names, got .Linear",
    ),
    "nobody left out": ("int4", {"ignore": {"lm_head": 1}}, "ignore must be a list of names"),
    "of another kind": ("int8", {"format": "pack-quantized"}, "stored in a way that quantization_config"),
    "blocks of one size": ("fp8-blocks", {"weight_block_size": [128]}, "must be two whole numbers"),
    "other blocks": ("fp8-blocks", {"weight_block_size": [16, 16]}, "weight_scale_inv has shape"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_what_cannot_be_is_refused(case: str, plain: Path, tmp_path: Path) -> None:
    name, change, message = CONFIGURATIONS[case]
    folder = write_quantized(plain, tmp_path / "packed", name)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        TorchBackend(str(folder), device="cpu")


def test_codes_without_a_configuration_are_refused(plain: Path, tmp_path: Path) -> None:
    folder = write_quantized(plain, tmp_path / "packed", "gptq")
    (folder / "config.json").write_text((plain / "config.json").read_text())
    with pytest.raises(ModelError, match=r"is quantized, but config\.json has no quantization_config"):
        TorchBackend(str(folder), device="cpu")


@pytest.mark.parametrize("name", FORMATS)
def test_memory_is_that_of_the_file(name: str, tmp_path: Path) -> None:
    big = make_tiny_model(
        "llama", tmp_path / "plain", hidden_size=256, intermediate_size=512, dtype="bfloat16"
    )
    folder = write_quantized(big, tmp_path / "packed", name)
    (executor,) = make_pipeline(folder, 1, dtype="bfloat16")
    assert executor.weight_bytes < 1.2 * (folder / "model.safetensors").stat().st_size


def test_what_the_kernels_cannot_multiply_is_said_to_be_slow(tmp_path: Path) -> None:
    narrow = make_tiny_model("llama", tmp_path / "plain", intermediate_size=72)
    folder = write_quantized(narrow, tmp_path / "packed", "int8")
    backend = TorchBackend(str(folder), device="cpu")
    backend.configure(StageSpec(0, 1, 0, 4, 16, 8, 64))
    assert "unpacked by PyTorch in every step" in backend.description.slow_because
