"""The layer split."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.engines.vllm.engine_options import LAYERS, layers_of_stages, prepare_environment
from controller.scheduler.split import given_split, split_layers, stage_layers
from tests.fakes.stage_backend import SHAPE
from tidepipe.batch.throughput import WorkloadItem, token_mix
from tidepipe_common.errors import ConfigError
from tidepipe_common.types.token_mix import TokenMix


@given(layers=st.integers(1, 40), stages=st.integers(1, 8), head=st.floats(0, 12))
def test_split_covers_all_layers_and_no_move_makes_it_better(layers: int, stages: int, head: float) -> None:
    """Contiguous, complete, and optimal against moving a layer between any two stages."""
    if stages > layers:
        with pytest.raises(ConfigError, match="cannot be split"):
            split_layers(layers, stages, head)
        return
    ranges = split_layers(layers, stages, head)
    assert [begin for begin, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == layers
    counts = [end - begin for begin, end in ranges]
    worst = max([*counts[:-1], counts[-1] + head])
    for source in range(stages):
        for target in range(stages):
            moved = list(counts)
            moved[source] -= 1
            moved[target] += 1
            if min(moved) >= 1:
                assert max([*moved[:-1], moved[-1] + head]) >= worst - 1e-9


def test_users_split_is_checked() -> None:
    """A split that does not add up is refused with the numbers."""
    assert given_split([20, 10], 30, 2) == ((0, 20), (20, 30))
    with pytest.raises(ConfigError, match="add up to the model's 30 layers"):
        given_split([20, 11], 30, 2)


def test_split_follows_the_mix_unless_the_user_says_otherwise() -> None:
    """The more of the tokens are output, the more the last stage's head weighs."""
    assert stage_layers(SHAPE, 2, TokenMix.parse("9:1")) == ((0, 2), (2, 4))
    assert stage_layers(SHAPE, 2, TokenMix.parse("1:9")) == ((0, 3), (3, 4))
    assert stage_layers(SHAPE, 2, TokenMix.parse("1:9"), [1, 3]) == ((0, 1), (1, 4))
    far = TokenMix.parse("1:9:500")
    assert str(far) == "1:9:500"
    assert stage_layers(SHAPE, 2, far) == ((0, 2), (2, 4)), "attention makes layers dear, not the head"


def test_vllm_is_told_the_same_split_unless_the_user_has_told_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab_size")
    (tmp_path / "config.json").write_text(json.dumps({key: getattr(SHAPE, key) for key in keys}))
    mix = TokenMix.parse("1:9")
    assert layers_of_stages(tmp_path, 2, mix) == (3, 1)
    assert layers_of_stages(tmp_path, 2, mix, [2, 2]) == (2, 2)
    with pytest.raises(ConfigError, match="4 layers cannot be split over 5 stages"):
        layers_of_stages(tmp_path, 5, mix)
    assert layers_of_stages(tmp_path / "nowhere", 2, mix) == (), "vLLM knows more models"

    for told, layers, asked, expected in [
        (None, (3, 1), False, "3,1"),
        ("2,2", (3, 1), False, "2,2"),
        ("2,2", (3, 1), True, "3,1"),
        (None, (), False, None),
    ]:
        monkeypatch.setattr("os.environ", {} if told is None else {LAYERS: told})
        prepare_environment((0, 1), 2, layers, asked=asked)
        assert os.environ.get(LAYERS) == expected


def test_a_workload_s_mix_is_of_what_is_computed() -> None:
    """Of 64 tokens that three prompts begin with, one computes all; a repeated prompt its last token."""
    items = [WorkloadItem(prompt=[*range(64), end], out=4) for end in (1, 2)]
    items.append(WorkloadItem(prompt=list(range(64)), out=2))
    assert token_mix(items) == TokenMix(65 + 1 + 1, 10, (69**2 // 2 + (69**2 - 64**2) // 2 + 207) // 77)
    assert token_mix(items, reuse=False).prompt == 194


@pytest.mark.parametrize("text", ["2", "2:x", "2:1:1:1", "0:1", "2:-1", "2:1:-1", ""])
def test_what_is_no_mix_is_refused(text: str) -> None:
    """With what was given."""
    with pytest.raises(ConfigError, match=f"--token-mix .*got '{text}'"):
        TokenMix.parse(text)
