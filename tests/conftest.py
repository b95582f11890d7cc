"""Fixtures that several kinds of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.time_limits import TimeLimits
from tidepipe_common.errors import ModelError
from tidepipe_common.model_source import resolve_model

# A busy machine draws examples slowly; that says nothing about the code.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

SMALL_MODEL = "smollm2-135m"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(TimeLimits(config), "time limits")


@pytest.fixture(scope="session")
def model_path() -> Path:
    """Folder of the small real model. `make test` fetches it first."""
    try:
        return resolve_model(SMALL_MODEL)
    except ModelError as error:
        pytest.fail(f"run `tidepipe model pull {SMALL_MODEL}` first: {error}")
