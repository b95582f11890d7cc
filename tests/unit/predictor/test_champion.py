"""The champion: calibrates itself, notices change, and gives way; versions on disk switch at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from predictor.evaluation.champion import Champion
from predictor.training.fit import fit
from predictor.versions import KEPT, ModelVersions
from tests.unit.predictor.synthetic import lines
from tidepipe_common.lengths.prompt import prompt_features
from tidepipe_common.lengths.request import LEVELS, Observation, RequestFeatures


def answers(count: int, seed: int, scale: float = 1.0) -> list[Observation]:
    return [
        Observation(
            RequestFeatures(prompt=prompt_features(str(one["prompt"]))), int(str(one["output_tokens"])), False
        )
        for one in lines(count, seed, scale)
    ]


def test_coverage_recovers_after_lengths_have_changed() -> None:
    champion = Champion(window=1024)
    assert champion.version.startswith("running-quantile")
    champion.replace(fit(answers(500, seed=1), "hazard/1").model)
    assert champion.version == "hazard/1"
    p90 = LEVELS.index(0.9)

    def covered(observations: list[Observation]) -> float:
        hits = []
        for one in observations:
            hits.append(one.output_tokens <= champion.predict([one.features])[0].tokens[p90])
            champion.observe([one])
        return float(np.mean(hits))

    assert covered(answers(150, seed=2)) > 0.82
    assert champion.drifts == 0
    # All answers become twice as long: the old P90 covers far fewer.
    assert covered(answers(64, seed=3, scale=2.0)) < 0.75
    covered(answers(64, seed=4, scale=2.0))
    assert champion.drifts >= 1
    assert covered(answers(150, seed=5, scale=2.0)) > 0.82


def test_versions_switch_and_old_ones_go(tmp_path: Path) -> None:
    versions = ModelVersions(tmp_path)
    assert versions.current is None
    (tmp_path / "job-left").mkdir()
    for number in range(1, KEPT + 3):
        assert versions.next_number == number
        model = versions.job_folder() / "challenger"
        model.mkdir()
        (model / "model.json").write_text(str(number))
        versions.adopt(model, number)
        assert versions.current is not None
        assert (versions.current / "model.json").read_text() == str(number)
    assert len(list(tmp_path.glob("v*"))) == KEPT
    assert ModelVersions(tmp_path).next_number == KEPT + 3
    assert not (tmp_path / "job-left").exists()
