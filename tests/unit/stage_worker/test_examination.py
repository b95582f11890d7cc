"""What is found about a model of the library is kept: by versions, once for all that ask at the same time."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stage_worker.transformers_code import examination
from stage_worker.transformers_code.examination import Examination, examine, told

CONFIG = {"model_type": "mixtral"}


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Mapping[str, Any]]:
    """The configurations that were tried, in a cache folder of their own."""
    monkeypatch.setenv("TIDEPIPE_CACHE", str(tmp_path))
    tried: list[Mapping[str, Any]] = []

    def trial(config: Mapping[str, Any]) -> str:
        tried.append(config)
        time.sleep(0.01)
        return told(Examination(None, "for the test"))

    monkeypatch.setattr(examination, "_tried", trial)
    return tried


def test_a_model_is_tried_once_however_many_ask(trials: list[Mapping[str, Any]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(examine, [CONFIG, {**CONFIG, "_name_or_path": "elsewhere"}, CONFIG, CONFIG]))
    assert {one.reason for one in found} == {"for the test"}
    assert len(trials) == 1


def test_another_version_or_configuration_is_tried_anew(
    trials: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    examine(CONFIG)
    examine({**CONFIG, "hidden_size": 64})
    assert len(trials) == 2
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0")
    examine(CONFIG)
    examine(CONFIG)
    assert len(trials) == 3


def test_what_is_damaged_or_not_to_be_kept_costs_a_trial_only(
    trials: list[Mapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examine(CONFIG)
    [kept] = (tmp_path / "architectures").glob("*.json")
    kept.write_text("{")
    assert examine(CONFIG).reason == "for the test"
    monkeypatch.setattr(examination, "private_folder", _refused)
    assert examine(CONFIG).reason == "for the test"
    assert len(trials) == 3


def _refused(folder: Path) -> Path:
    raise PermissionError(folder)
