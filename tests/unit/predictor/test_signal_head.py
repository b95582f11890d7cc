"""Heads on length signals learn what signals tell, answers to one prompt joined, and survive a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from predictor.contest import CHALLENGER
from predictor.evaluation.champion import Champion
from predictor.evaluation.signal_head import head_columns, told_columns
from predictor.head_job import compete
from predictor.head_store import HEAD, load_head, save_head
from predictor.signals import SignalHeads
from predictor.training.head_samples import pack_samples, read_samples
from tidepipe_common.errors import ModelError
from tidepipe_common.lengths.calibration import Ends
from tidepipe_common.lengths.request import LEVELS, Observation, RequestFeatures
from tidepipe_common.types.length_signal import BYTES, pack_signal

P50, P90 = LEVELS.index(0.5), LEVELS.index(0.9)


def answers(count: int, seed: int, *, telling: bool = True, model: str = "m") -> list[Observation]:
    """The first number of the signal says how long, within a factor; at most 1,000 tokens."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        numbers = chance.normal(size=64)
        says = numbers[0] if telling else chance.normal()
        length = int(np.ceil(100.0 * np.exp(0.8 * says + 0.2 * chance.normal())))
        features = RequestFeatures(10, 1000, signal=pack_signal(numbers.tolist()), model=model)
        found.append(Observation(features, min(length, 1000), length >= 1000))
    return found


def packed(observations: list[Observation], prompts: list[int]) -> bytes:
    """As the service gives them to a training."""
    told = told_columns([(20.0, 50.0, 100.0, 200.0, 280.0, 370.0, 640.0)] * len(observations))
    columns = head_columns([one.features.signal for one in observations], told).astype(np.float32)
    lengths = np.array([float(one.output_tokens) for one in observations])
    return pack_samples(columns, lengths, Ends.of(observations), np.array(prompts))


def train(folder: Path, observations: list[Observation], held_back: int, prompts: list[int]) -> bool:
    """As the service does, without its process."""
    return compete(packed(observations, prompts), folder, "m", "head/1", held_back).better


def test_a_head_learns_what_signals_tell_and_is_calibrated(tmp_path: Path) -> None:
    assert train(tmp_path, answers(600, seed=1), 150, list(range(600)))
    model, head = load_head(tmp_path / CHALLENGER)
    fresh = answers(600, seed=2)
    told = told_columns([(20.0, 50.0, 100.0, 200.0, 280.0, 370.0, 640.0)] * len(fresh))
    columns = head_columns([one.features.signal for one in fresh], told)
    lengths = np.array([one.output_tokens for one in fresh])
    limits, nothing = np.full(600, 1000.0), np.zeros(600)
    found = head.quantiles(columns, limits, nothing)
    assert model == "m" and (np.diff(found, axis=1) >= 0).all() and found.max() <= 1000
    # Knowing nothing, the median errs 65 tokens; the law itself 18.
    assert np.abs(found[:, P50] - lengths).mean() < 0.5 * np.abs(np.median(lengths) - lengths).mean()
    assert 0.85 < (lengths <= found[:, P90]).mean() < 0.95
    # Of answers under way: longer than they are, and right about those that are.
    under_way = head.quantiles(columns, limits, np.full(600, 80.0))
    longer = lengths > 80
    assert (under_way >= 80).all()
    assert 0.4 < (lengths[longer] <= under_way[longer, P50]).mean() < 0.6


def test_a_signal_that_tells_nothing_takes_no_place(tmp_path: Path) -> None:
    assert not train(tmp_path, answers(300, seed=3, telling=False), 150, list(range(300)))
    # Of a prompt that always gets the same answer four say what one does.
    again = [one for one in answers(100, seed=4) for _ in range(4)]
    of_prompts = [place // 4 for place in range(400)]
    train(tmp_path, again, 100, of_prompts)
    weight = read_samples(packed(again, of_prompts)).weight
    assert weight == pytest.approx(np.full(400, 1 / 4), rel=0.05)


def test_heads_answer_for_their_model_only_and_survive_a_restart(tmp_path: Path) -> None:
    assert train(tmp_path, answers(400, seed=1), 100, list(range(400)))
    _, head = load_head(tmp_path / CHALLENGER)
    save_head(head, "m", tmp_path / "heads" / "any")
    heads = SignalHeads(Champion(64), tmp_path, kept=100, first_after=1000)
    asyncio.run(heads.restore())
    long = next(one.features for one in answers(100, seed=5) if one.output_tokens > 400)
    plain, other = RequestFeatures(10, 1000), RequestFeatures(10, 1000, signal=long.signal, model="other")
    predicted = heads.predict([plain, long, other])
    assert predicted[0] == predicted[2]
    assert predicted[1].tokens[P50] > 300 > predicted[0].tokens[P50]
    # What ends is kept, bounded, and calibrates.
    heads.observe([*answers(150, seed=6), Observation(plain, 5, False)])
    assert heads.samples == 100
    for damage in (
        b"{}",
        b"no json",
        (tmp_path / "heads" / "any" / HEAD).read_bytes().replace(b'"head/1"', b"1"),
    ):
        (tmp_path / "heads" / "any" / HEAD).write_bytes(damage)
        with pytest.raises(ModelError):
            load_head(tmp_path / "heads" / "any")


def test_nonsense_is_no_signal() -> None:
    good = pack_signal([1.0, -2.5])
    assert RequestFeatures(signal=good, model="m").fault() is None
    for signal, model in (
        (good, ""),
        (good[:3], "m"),
        (bytes(BYTES + 2), "m"),
        (b"\x00\x7e", "m"),
        (good, "m" * 201),
    ):
        assert RequestFeatures(signal=signal, model=model).fault() is not None
