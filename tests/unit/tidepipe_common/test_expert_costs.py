"""What a step of a mixture of experts costs: the experts that its tokens touch are read, those alone."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepipe_common.codec.shape import shape_from_wire, shape_to_wire
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.linear import RooflineLinear, linear_weights
from tidepipe_common.latency.shapes import named_shape, shape_from_config
from tidepipe_common.types.model_shape import ModelShape


def mixtral() -> ModelShape:
    shape = named_shape("mixtral-8x7b")
    assert shape is not None
    return shape


def test_published_sizes() -> None:
    shape = mixtral()
    assert round(linear_weights(shape) / 1e9, 1) == 46.6
    assert round((shape.layers * shape.layer_parameters + shape.head_parameters) / 1e9, 1) == 12.7


@given(st.integers(1, 256), st.integers(1, 256), st.integers(1, 64))
def test_more_tokens_read_more_experts_and_never_more_than_there_are(
    tokens: int, experts: int, chosen: int
) -> None:
    shape = dataclasses.replace(mixtral(), experts=experts, experts_per_token=min(chosen, experts))
    read = [shape.read_layer_parameters(count) for count in (1, tokens, tokens + 1)]
    assert round(read[0]) == shape.layer_parameters
    assert read[0] <= read[1] <= read[2] <= shape.stored_layer_parameters


def test_a_few_tokens_are_cheaper_than_all_experts_and_dense_models_cost_what_they_did() -> None:
    device, shape = hardware("a100"), mixtral()
    cost = RooflineLinear(shape, device)
    assert cost.seconds(2) > 1.5 * cost.seconds(1)
    assert cost.seconds(64) > 3 * cost.seconds(1)
    dense = dataclasses.replace(shape, experts=0, experts_per_token=0, intermediate=14336)
    assert RooflineLinear(dense, device).seconds(16) < 1.01 * RooflineLinear(dense, device).seconds(1)


def test_experts_come_from_a_configuration_and_pass_the_wire() -> None:
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_hidden_layers": 48,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
    }
    shape = shape_from_config(config, "config.json")
    assert round(linear_weights(shape) / 1e9, 1) == 30.2
    assert shape_from_wire(shape_to_wire(shape)) == shape


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_key_value_heads": 3}, "8 query heads cannot share 3 key/value heads evenly"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "a token cannot go through 5 of 4 experts"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(wrong: dict[str, int], said: str) -> None:
    config = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "intermediate_size": 16,
        "vocab_size": 100,
    }
    assert shape_from_config(config, "it").kv_heads == 8
    with pytest.raises(ConfigError, match=said):
        shape_from_config({**config, **wrong}, "it")
