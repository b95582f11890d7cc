"""Configurations of all families, in the old and the new spelling, become the right spec."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stage_worker.loading.hf_config import from_hf_config
from stage_worker.models.rope import RotaryTable, inverse_frequencies
from stage_worker.models.spec import RopeSpec
from tidepipe_common.errors import ModelError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "torch_dtype": "bfloat16",
    "eos_token_id": [7, 8],
}
LLAMA3_ROPE: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_type": "llama3",
}


def family(model_type: str, **changes: Any) -> dict[str, Any]:
    return {**LLAMA, "architectures": None, "model_type": model_type, **changes}


def test_old_and_new_spelling_are_the_same() -> None:
    old = from_hf_config({**LLAMA, "rope_theta": 500.0, "rope_scaling": LLAMA3_ROPE})
    new = from_hf_config(
        {
            **LLAMA,
            "torch_dtype": None,
            "dtype": "bfloat16",
            "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500.0},
        }
    )
    assert old == new
    assert old.rope == RopeSpec(
        kind="llama3",
        theta=500.0,
        factor=8.0,
        original_context=128,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    assert old.native_dtype == "bfloat16"
    assert (old.kv_heads, old.head_dim, old.context_length) == (4, 16, 2048)
    older = from_hf_config({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2}})
    assert older.rope == RopeSpec(kind="linear", factor=2.0)


def test_eos_of_the_generation_config_wins() -> None:
    assert from_hf_config(LLAMA).eos_token_ids == (7, 8)
    assert from_hf_config(LLAMA, {"eos_token_id": 9}).eos_token_ids == (9,)
    assert from_hf_config(LLAMA, {"bos_token_id": 1}).eos_token_ids == (7, 8)
    assert from_hf_config(family("qwen2", eos_token_id=None, num_key_value_heads=None)).eos_token_ids == ()


def test_biases_and_norms_of_the_families() -> None:
    def flags(config: dict[str, Any]) -> tuple[bool, bool, bool, bool]:
        spec = from_hf_config(config)
        return spec.qkv_bias, spec.o_bias, spec.mlp_bias, spec.qk_norm

    assert flags(LLAMA) == (False, False, False, False)
    assert flags({**LLAMA, "attention_bias": True, "mlp_bias": True}) == (True, True, True, False)
    assert flags(family("mistral", num_key_value_heads=4)) == (False, False, False, False)
    assert flags(family("qwen2", num_key_value_heads=4)) == (True, False, False, False)
    assert flags(family("qwen3", num_key_value_heads=4)) == (False, False, False, True)
    assert from_hf_config(family("qwen3", num_key_value_heads=4)).head_dim == 128
    assert from_hf_config(family("smollm3")).tied_embeddings


def test_sliding_windows() -> None:
    def windows(model_type: str, **changes: Any) -> tuple[int | None, ...]:
        return from_hf_config(family(model_type, num_key_value_heads=4, **changes)).sliding_windows

    assert windows("llama", sliding_window=9) == (None,) * 4
    assert windows("mistral") == (4096,) * 4
    assert windows("mistral", sliding_window=None) == (None,) * 4
    assert windows("qwen2", sliding_window=9) == (None,) * 4
    on = {"use_sliding_window": True, "sliding_window": 9}
    assert windows("qwen2", max_window_layers=3, **on) == (None, None, None, 9)
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert windows("qwen3", layer_types=kinds, **on) == (9, None, None, 9)
    assert windows("smollm3", no_rope_layers=[1, 0, 1, 1], **on) == (None, 9, None, None)
    assert from_hf_config(family("smollm3")).rope_layers == (True, True, True, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, r"'mixtral' is not supported; supported: llama, mistral, qwen2"),
        ({"model_type": None}, "is not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a language model"),
        ({"num_local_experts": 8}, "mixture-of-experts"),
        ({"quantization_config": {"quant_method": "hqq"}}, "hqq. is not supported; use the plain"),
        ({"hidden_act": "gelu"}, "'gelu' is not supported"),
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            "'longrope' is not supported; supported: default, linear",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "needs a factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size must be an integer, got '64'"),
        ({"hidden_size": 64.5}, "hidden_size must be an integer, got 64.5"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, got 1"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3"),
        ({"head_dim": 15}, "must be even"),
        ({"torch_dtype": "float8_e4m3fn"}, "unsupported data type float8_e4m3fn"),
        ({"eos_token_id": "x"}, "eos_token_id must be a token's id or a list of them, got 'x'"),
        ({"eos_token_id": [1] * 2000}, "2000 tokens, 1024 at most"),
        ({"num_attention_heads": True}, "num_attention_heads must be an integer, got true"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers must be an integer"),
        ({"vocab_size": -300}, "vocab_size must be at least 1, got -300"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings must be at most 2147483647"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be at least 1, got 0"),
        ({"hidden_size": 65}, "no multiple of num_attention_heads 4"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps must be a number, got 'x'"),
        ({"rope_scaling": [1]}, r"rope_scaling must be an object, got \[1\]"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "RoPE of type yarn needs a factor"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "is not supported"),
        ({"architectures": [["x"] * 1000]}, "is not a language model"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list"),
        ({"torch_dtype": {"a": 1}}, "unsupported data type"),
    ],
)
def test_what_cannot_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_hf_config({**LLAMA, **changes})


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 3.0},
        LLAMA3_ROPE,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False},
        {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 16},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25},
    ],
)
def test_frequencies_equal_those_of_transformers(rope: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters = {**rope, "rope_theta": 5000.0}
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=1024, rope_parameters=dict(parameters)
    )
    theirs = LlamaRotaryEmbedding(config)
    ours = from_hf_config(
        {**LLAMA, "hidden_size": 256, "max_position_embeddings": 1024, "rope_parameters": parameters}
    ).rope
    assert torch.equal(inverse_frequencies(ours, 64), theirs.inv_freq)
    assert ours.attention_factor == pytest.approx(theirs.attention_scaling)
    table = RotaryTable(ours, 64, 1024, torch.device("cpu"))
    table.reserve(1024)
    positions = torch.arange(1024)
    cos, sin = theirs(torch.zeros(1), positions[None])
    assert torch.equal(table.cos, cos[0, :, :32])
    assert torch.equal(table.sin, sin[0, :, :32])


def test_table_grows_on_demand_only() -> None:
    table = RotaryTable(RopeSpec(), 64, 131_072, torch.device("cpu"))
    assert len(table.cos) == 2048
    before = table.cos.clone()
    table.reserve(5000)
    assert 5000 <= len(table.cos) < 131_072
    assert torch.equal(table.cos[:2048], before)
