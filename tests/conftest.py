"""Fixtures that several kinds of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ModelError
from common.model_source import resolve_model

SMALL_MODEL = "smollm2-135m"


@pytest.fixture(scope="session")
def model_path() -> Path:
    """Folder of the small real model. `make test` fetches it first."""
    try:
        return resolve_model(SMALL_MODEL)
    except ModelError as error:
        pytest.fail(f"run `tidepipe model pull {SMALL_MODEL}` first: {error}")
