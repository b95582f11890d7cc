"""What the tests of the stage worker share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch

# Tiny products gain nothing from threads, and lose much where other processes want the cores too.
torch.set_num_threads(1)


@pytest.fixture
def trials_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of architectures run in this process, once each: another one would import PyTorch anew."""
    from stage_worker.transformers_code import opening

    def examine(config: Mapping[str, Any]) -> object:
        return _examined(json.dumps(config))

    monkeypatch.setattr(opening, "examine", examine)


@cache
def _examined(config: str) -> object:
    # Late: of the tests here, few need the library.
    from stage_worker.transformers_code import trial
    from stage_worker.transformers_code.attention_calls import UnsuitableError
    from stage_worker.transformers_code.examination import Examination

    try:
        return Examination(trial.tried(json.loads(config)))
    except UnsuitableError as error:
        return Examination(None, str(error))
