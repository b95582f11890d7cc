"""The layer split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from controller.core.split import given_split, split_layers


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
