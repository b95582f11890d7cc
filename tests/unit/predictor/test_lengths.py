"""Length models: prompts in numbers, distributions, calibration, training on cut answers, storage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.evaluation.figures import pinball
from predictor.evaluation.floor import floor_bounds, knowable
from predictor.training.answers import Answers
from predictor.training.dataset import read_answers
from predictor.training.fit import fit
from predictor.training.words import folds
from tests.unit.predictor.synthetic import lines
from tidepipe_common.codec.prompt import prompt_from_wire, prompt_to_wire
from tidepipe_common.errors import ConfigError, ModelError
from tidepipe_common.lengths.calibration import Ends, ReachedLevels, calibrated_levels
from tidepipe_common.lengths.distribution import LengthDistributions
from tidepipe_common.lengths.prompt import DENSE, Manner, prompt_features
from tidepipe_common.lengths.recent import MAX_KEYS, MEMORY, RecentLengths
from tidepipe_common.lengths.request import Observation, RequestFeatures
from tidepipe_common.lengths.store import load_lengths, save_lengths
from tidepipe_common.lengths.trained import TrainedLengths
from tidepipe_common.types.request import ChatTurn


def observations(count: int, seed: int, limits: tuple[int, ...] = ()) -> list[Observation]:
    """Synthetic answers, cut at the limits in turn."""
    found = []
    for index, line in enumerate(lines(count, seed)):
        limit = limits[index % len(limits)] if limits else None
        length = int(str(line["output_tokens"]))
        features = RequestFeatures(max_tokens=limit, prompt=prompt_features(str(line["prompt"])))
        cut = limit is not None and length >= limit
        found.append(Observation(features, limit if cut and limit else length, cut))
    return found


@pytest.fixture(scope="module")
def model() -> TrainedLengths:
    return fit(observations(600, seed=1), "hazard/1").model


@given(st.text(max_size=3000), st.text(max_size=50))
def test_any_prompt_gives_sound_numbers_that_survive_the_wire(text: str, system: str) -> None:
    turns = (ChatTurn("system", system), ChatTurn("user", text))
    for prompt in (text or " ", turns):
        features = prompt_features(prompt, client="me")
        assert features.fault() is None
        back = prompt_from_wire(prompt_to_wire(features))
        assert back.fault() is None
        assert (back.buckets, back.template, back.client) == (
            features.buckets,
            features.template,
            features.client,
        )


def test_numbers_do_not_tell_in_which_order_words_stand() -> None:
    """With a list of words the prompt could be read off them."""
    buckets = prompt_features("the treaty was signed in 1648 by tired envoys").buckets
    assert len(buckets) > 9 and list(buckets) == sorted(buckets)


def test_instructions_are_seen() -> None:
    seen = dict(zip(DENSE, prompt_features("Explain in 50 words: why?").dense, strict=True))
    assert seen["cue_long"] == 1 and seen["cue_question"] == 1 and seen["ends_with_question"] == 1
    assert seen["asked_words"] == pytest.approx(np.log1p(50))
    assert prompt_features((1, 2, 3)).dense == ()
    one, other = (prompt_features((ChatTurn("system", s), ChatTurn("user", "x"))) for s in ("a", "b"))
    assert one.template != other.template and one.buckets == other.buckets
    turns = (ChatTurn("user", "x"),)
    plain, thinking = (prompt_features(turns, manner=manner) for manner in (Manner(), Manner("high", 2)))
    assert plain.template == 0 != thinking.template and plain.buckets == thinking.buckets
    seen = dict(zip(DENSE, thinking.dense, strict=True))
    assert seen["tools"] == pytest.approx(np.log1p(2)) and seen["answers_before"] == 0
    talk = (*turns, ChatTurn("assistant", "y" * 9), ChatTurn("user", "z"), ChatTurn("assistant", ""), *turns)
    seen = dict(zip(DENSE, prompt_features(talk).dense, strict=True))
    assert (seen["answers_before"], seen["last_answer_characters"]) == (2, 0)
    assert seen["mean_answer_characters"] == pytest.approx(np.log1p(9) / 2)


@given(st.lists(st.floats(0.05, 0.95), min_size=2, max_size=12), st.floats(0.02, 0.98), st.integers(0, 400))
def test_quantiles_invert_survival_also_of_answers_under_way(
    hazards: list[float], level: float, generated: int
) -> None:
    survival = np.concatenate([[1.0], np.cumprod(1.0 - np.array(hazards))])[None, :]
    edges = 10.0 * np.arange(len(hazards) + 1)
    answers = LengthDistributions(edges, survival, tail_rate=0.01)
    reached = np.array([float(generated)])
    found = answers.quantiles(np.array([level]), reached)[0]
    assert found[0] >= generated
    left = answers.beyond(found) / answers.beyond(reached)
    assert left[0] == pytest.approx(1.0 - level, abs=1e-6)


def test_calibration_covers_whatever_the_model_thinks() -> None:
    """A model that is far too sure of itself: its P90 covers two thirds, the calibrated one nine tenths."""
    chance = np.random.default_rng(3)

    def levels(count: int) -> np.ndarray:
        error = 2.5 * chance.normal(size=count)
        return 1.0 / (1.0 + np.exp(-error))

    seen = levels(2000)
    asked = calibrated_levels(seen, np.zeros(2000, dtype=np.bool_), (0.5, 0.9))
    fresh = levels(4000)
    assert (fresh <= 0.9).mean() < 0.85
    assert [(fresh <= level).mean() for level in asked] == pytest.approx([0.5, 0.9], abs=0.03)
    assert calibrated_levels(seen[:5], np.zeros(5, dtype=np.bool_), (0.5, 0.99))[1] == seen[:5].max()


def test_who_is_right_stays_as_it_is_where_many_reach_the_limit() -> None:
    """Two thirds of the answers to half of the prompts are cut by the one limit that all have."""
    chance = np.random.default_rng(8)
    level, at_limit = chance.random(2000), np.where(chance.random(2000) < 0.5, 0.33, 0.98)
    cut = level >= at_limit
    ends = Ends(cut, np.zeros(2000, dtype=np.bool_), np.full(2000, 512.0), np.zeros(2000, dtype=np.int64))
    calibration = ReachedLevels(np.minimum(level, at_limit), ends)
    asked = calibration.asked((0.25, 0.5, 0.9), np.array([512.0]), np.zeros(1, dtype=np.int64))[0]
    assert asked == pytest.approx([0.25, 0.5, 0.9], abs=0.04)


def test_learns_from_prompts_and_covers_new_answers(model: TrainedLengths) -> None:
    fresh = observations(500, seed=2)
    tokens = model.quantiles([one.features for one in fresh])
    lengths = np.array([one.output_tokens for one in fresh])
    assert (lengths <= tokens[:, 2]).mean() == pytest.approx(0.5, abs=0.1)
    assert (lengths <= tokens[:, 4]).mean() == pytest.approx(0.9, abs=0.06)
    median_error = np.abs(lengths - tokens[:, 2]).mean()
    assert median_error < 0.6 * np.abs(lengths - np.median(lengths)).mean()
    assert (np.diff(tokens, axis=1) >= 0).all()


def test_answers_to_one_prompt_are_joined() -> None:
    """They are on one side of every fold, and the more alike they are the less another one adds."""
    chance = np.random.default_rng(6)
    spread = {"alike": 0.05, "unlike": 2.0}
    weights = {}
    for name, sigma in spread.items():
        answers = []
        for topic in range(60):
            features = RequestFeatures(prompt=prompt_features(f"Tell me of topic{topic}."))
            lengths = np.exp(4.0 + chance.normal() + sigma * chance.normal(size=8))
            answers += [Observation(features, int(length), False) for length in lengths]
        answers.append(Observation(RequestFeatures(prompt=prompt_features((1, 2))), 5, False))
        table = Answers.of(answers, RecentLengths())
        assert len(set(table.prompts.tolist())) == 61
        sides = folds(table.prompts, chance)
        assert all(len(set(sides[table.prompts == one])) == 1 for one in range(61))
        weights[name] = float(table.weight[:8].sum())
        assert table.weight[-1] == 1.0
        few = folds(table.prompts[:80], chance)
        assert len(set(few[:8])) > 1, "few prompts come again, and are all there is"
    assert 1.0 <= weights["alike"] < 1.1 and 2.0 < weights["unlike"] <= 8.0


def test_the_floor_lies_between_its_bounds_and_is_found() -> None:
    """Prompts whose answers are log-normal: the loss of their true quantiles is known."""
    chance = np.random.default_rng(9)
    levels, answers, losses = np.array([0.5, 0.9]), [], []
    for _ in range(80):
        median, sigma = np.exp(chance.normal(5.0, 0.8)), chance.uniform(0.4, 1.0)
        many = np.minimum(np.ceil(median * np.exp(sigma * chance.normal(size=4000))), 512)
        true = np.tile(np.quantile(many, levels), (len(many), 1))
        losses.append(pinball(many, true, levels).mean(axis=0))
        answers.append(many[:8])
    bounds = floor_bounds(answers, [0] * len(answers), levels)
    assert (bounds.least < bounds.floor).all() and (bounds.floor < bounds.most).all()
    assert bounds.floor == pytest.approx(np.mean(losses, axis=0), rel=0.2)
    said = knowable(answers, [np.median(one) for one in answers], [0] * len(answers))
    assert said.model == pytest.approx(said.least) and said.share > 1.0


def test_recent_lengths_are_those_of_a_key_and_bounded() -> None:
    recent = RecentLengths()
    ours = RequestFeatures(prompt=prompt_features("x", client="us"))
    for index in range(MAX_KEYS + 10):
        other = RequestFeatures(prompt=prompt_features("x", client=str(index)))
        recent.note(Observation(other, 3, False))
        recent.note(Observation(ours, 10 + index % 20, False))
    assert np.isnan(recent.numbers(ours)[:4]).all(), "it has no system message"
    low, middle, high, count = recent.numbers(ours)[4:]
    assert np.log1p(10) <= low <= middle <= high <= np.log1p(29) and count == MEMORY
    assert len(recent.entries()) == MAX_KEYS
    assert RecentLengths(recent.entries()).numbers(ours)[4:] == recent.numbers(ours)[4:]


def test_cut_answers_do_not_drag_predictions_down() -> None:
    """Half of the requests are cut at 250 tokens, below the median story: stories still are about 300."""
    trained = fit(observations(1200, seed=4, limits=(250, 4000)), "hazard/1").model
    story = RequestFeatures(max_tokens=4000, prompt=prompt_features("Write a long story about music."))
    assert trained.quantiles([story], (0.5,))[0, 0] == pytest.approx(300, rel=0.2)


def test_what_is_under_way_is_longer(model: TrainedLengths) -> None:
    prompt = prompt_features("Write a long story about music.")
    medians = [
        model.quantiles([RequestFeatures(prompt=prompt, generated_tokens=done)], (0.5,))[0, 0]
        for done in (0, 200, 400, 2000)
    ]
    assert medians == sorted(medians) and medians[-1] > 2000


def test_stored_models_answer_alike_and_damage_is_found(model: TrainedLengths, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_lengths(model, folder)
    requests = [one.features for one in observations(20, seed=5)]
    assert load_lengths(folder).quantiles(requests) == pytest.approx(model.quantiles(requests), rel=1e-3)
    trees, facts = folder / "trees.txt", folder / "model.json"
    whole_trees, whole_facts = trees.read_text(), json.loads(facts.read_text())
    for broken in (whole_trees[:-100], "", whole_trees.replace("leaf_value=", "leaf_value=9", 1)):
        trees.write_text(broken)
        with pytest.raises(ModelError):
            load_lengths(folder)
    trees.write_text(whole_trees)
    for change in ({"format": 99}, {"edges": [0, 5, 5]}, {"tail_rate": 0.0}, {"words": []}, {"extra": 1}):
        facts.write_text(json.dumps(whole_facts | change))
        with pytest.raises(ModelError):
            load_lengths(folder)
    facts.write_text("{")
    with pytest.raises(ModelError):
        load_lengths(folder)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"prompt": "x"}',
        '{"prompt": 3, "output_tokens": 1}',
        '{"prompt": "x", "output_tokens": -1}',
        '{"prompt": "x", "output_tokens": 9, "max_tokens": 5}',
        "",
    ],
)
def test_lines_that_are_no_answers_are_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"data\.jsonl"):
        read_answers(path)
