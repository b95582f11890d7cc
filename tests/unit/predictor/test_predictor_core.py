"""The running-quantile model: honest about cut answers, bounded, sane before it has data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.evaluation.running_quantile import RunningQuantile
from tidepipe_common.lengths.request import LEVELS, Observation, RequestFeatures
from tidepipe_common.lengths.survival import censored_quantiles
from tidepipe_common.settings.defaults import LEAST_WINDOW

FEATURES = RequestFeatures(prompt_tokens=10, max_tokens=1000, temperature=1.0)


def seen(length: int, censored: bool = False) -> Observation:
    return Observation(FEATURES, length, censored)


def test_without_cut_answers_it_is_the_empirical_quantile() -> None:
    lengths = np.random.default_rng(0).integers(0, 500, 777)
    expected = np.quantile(lengths, LEVELS, method="inverted_cdf")
    assert censored_quantiles(lengths, np.zeros(777, dtype=np.bool_), LEVELS).tolist() == expected.tolist()


def test_textbook_product_limit() -> None:
    # Ends at 6 (three of 21), 7, 10, 13, 16, 22, 23; "+" cut: the 6-MP trial of Freireich et al., median 23.
    ends = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    cuts = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    lengths = np.array(ends + cuts)
    censored = np.array([False] * len(ends) + [True] * len(cuts))
    quartile, median, beyond = censored_quantiles(lengths, censored, (0.25, 0.5, 0.9))
    assert (quartile, median, beyond) == (13, 23, np.inf)


def test_limits_do_not_drag_predictions_down() -> None:
    """True lengths are uniform on 0..999; half of the requests are cut at 200."""
    model = RunningQuantile()
    for index, length in enumerate(np.random.default_rng(1).integers(0, 1000, 4000)):
        limit = 200 if index % 2 else 1000
        model.observe([seen(min(int(length), limit), censored=length >= limit)])
    tokens = model.predict([FEATURES])[0].tokens
    assert tokens == pytest.approx([1000 * level for level in LEVELS], abs=35)


@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), max_size=120), st.integers(1, 1200))
def test_predictions_never_fall_and_respect_max_tokens(history: list[tuple[int, bool]], limit: int) -> None:
    model = RunningQuantile(window=64)
    model.observe([seen(*entry) for entry in history])
    assert model.window == min(64, len(history))
    tokens = model.predict([RequestFeatures(1, limit, 0.0)])[0].tokens
    assert list(tokens) == sorted(tokens)
    assert tokens[0] >= 0 and tokens[-1] <= limit


def test_only_the_newest_count_and_a_prior_answers_first() -> None:
    model = RunningQuantile(window=64)
    assert model.version.endswith("-prior")
    assert model.predict([FEATURES])[0].tokens[2] == pytest.approx(130)
    model.observe([seen(900)] * (LEAST_WINDOW - 1))
    assert model.predict([FEATURES])[0].tokens[2] == pytest.approx(130)
    model.observe([seen(5)] * 64)
    assert model.predict([FEATURES])[0].tokens == (5.0,) * len(LEVELS)
    assert model.version == "running-quantile/1"


def test_what_follows_thoughts_is_learned_by_itself() -> None:
    model = RunningQuantile(window=64)
    rest = replace(FEATURES, behind_thought=True)
    model.observe([seen(900)] * 64 + [Observation(rest, 5, False)] * 64)
    whole, behind = model.predict([FEATURES, rest])
    assert whole.tokens == (900.0,) * len(LEVELS) and behind.tokens == (5.0,) * len(LEVELS)
