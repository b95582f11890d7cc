"""Errors of predictions, carried to other lengths: what was calibrated stays so, what was told stays told."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from bench.length_carry import Answers, ranked
from tidepipe_common.lengths.request import LEVELS

PROMPTS, EACH, LIMIT = 400, 8, 512.0


@pytest.mark.parametrize(("median", "cut"), [(100.0, 0.02), (480.0, 0.45)])
def test_a_calibrated_predictor_stays_calibrated_and_knows_as_much(median: float, cut: float) -> None:
    """Also where nearly half of the answers were cut, and their predictions with them."""
    chance, known = np.random.default_rng(1), 0.6
    of_prompt = chance.normal(size=PROMPTS)
    own = np.sqrt(1.0 - known**2)
    scores = known * np.repeat(of_prompt, EACH) + own * chance.normal(size=PROMPTS * EACH)
    lengths = np.ceil(median * np.exp(0.9 * scores))
    told = median * np.exp(0.9 * (known * of_prompt[:, None] + own * ndtri(np.array(LEVELS))))
    answers = Answers(np.minimum(lengths, LIMIT), lengths > LIMIT, np.repeat(np.arange(PROMPTS), EACH))
    assert answers.cut.mean() == pytest.approx(cut, abs=0.05)
    errors = ranked(answers, {"it": np.minimum(told, LIMIT)}, "it", seed=2)
    assert errors.correlation["it"] == pytest.approx(known, abs=0.06)
    mix = np.ceil(np.random.default_rng(3).exponential(2000.0, 4000))
    p50, p90 = np.array(errors.predictions(mix.astype(int).tolist(), np.random.default_rng(4))["it"]).T
    assert np.mean(mix <= p50) == pytest.approx(0.5, abs=0.04)
    assert np.mean(mix <= p90) == pytest.approx(0.9, abs=0.03)
    ranks = [np.argsort(np.argsort(one)) for one in (mix, p50)]
    assert np.corrcoef(*ranks)[0, 1] == pytest.approx(6 / np.pi * np.arcsin(known / 2), abs=0.06)
