"""A trained model of output lengths as the simulator's predictor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from predictor.training.dataset import read_answers
from predictor.training.fit import fit
from predictor.training.trees import Settings
from simulator.predictions import predictor
from tests.unit.predictor.synthetic import lines
from tidepipe_common.lengths.store import save_lengths
from workloads.files import open_workload


def test_texts_are_read_and_without_them_lengths_must_do(tmp_path: Path) -> None:
    """Long and short answers are told apart by their prompts' words; without words all look alike."""
    data = tmp_path / "answers.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines(300, seed=1)))
    save_lengths(fit(read_answers(data), "trees/1", Settings(threads=1)).model, tmp_path / "model")
    requests = open_workload(str(data), None, 0).requests
    predict = predictor(str(tmp_path / "model"))
    stories = [isinstance(one.text, str) and one.text.startswith("Write") for one in requests]
    for story, quantiles in zip(stories, predict(requests, 0), strict=True):
        assert quantiles is not None
        p50, p90 = quantiles
        assert p50 <= p90
        assert p50 > 150 if story else p50 < 20
    mute = tuple(replace(one, text=None, prompt_tokens=9) for one in requests)
    assert len(set(predict(mute, 0))) == 1
