"""`tidepipe predictor`: train, evaluate, errors."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from tests.unit.predictor.synthetic import lines
from tidepipe.cli.main import app
from tidepipe_common.errors import ConfigError, ModelError


def write(path: Path, count: int, seed: int) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(count, seed)))
    return str(path)


def test_train_then_evaluate(tmp_path: Path) -> None:
    model = tmp_path / "model"
    data = write(tmp_path / "train.jsonl", 300, seed=1)
    trained = CliRunner().invoke(app, ["predictor", "train", data, "-o", str(model)])
    assert trained.exit_code == 0, trained.output
    names = {path.name for path in model.iterdir()}
    assert {"model.json", "trees.txt", "MODEL_CARD.md", "calibration.png"} <= names
    fresh = write(tmp_path / "test.jsonl", 300, seed=2)
    judged = CliRunner().invoke(app, ["predictor", "evaluate", fresh, "--model", str(model), "--json"])
    figures = json.loads(judged.stdout.splitlines()[-1])
    assert 0.4 < figures["coverage"]["p50"] < 0.6
    assert 0.82 < figures["coverage"]["p90"] <= 0.97 <= figures["coverage"]["p99"]
    assert figures["mae_tokens"] < 60 and figures["pinball"] < 20


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", 10, seed=1)
    refused = CliRunner().invoke(app, ["predictor", "train", few, "-o", str(tmp_path / "m")])
    assert isinstance(refused.exception, ConfigError) and "10 answers" in str(refused.exception)
    assert not (tmp_path / "m").exists()
    missing = CliRunner().invoke(app, ["predictor", "evaluate", few, "--model", str(tmp_path / "none")])
    assert isinstance(missing.exception, ModelError)
