"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from grpc.aio import init_grpc_aio
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
    keep_grpc()


def keep_grpc() -> None:
    """Have what serves grpc.aio in a process never end there.

    It ends with the last of its objects, in whatever thread that is collected, and first waits for all that
    is under way: for ever, if that is a server that was not stopped while its event loop was there. So it is
    with a server that a failed test leaves in its traceback. One reference more, and it just stays.
    """

    async def refer() -> None:
        init_grpc_aio()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(refer())
    loop.close()


@pytest.fixture(scope="session")
def model_path() -> Path:
    """Folder of the small real model. `make test` fetches it first."""
    try:
        return resolve_model(SMALL_MODEL)
    except ModelError as error:
        pytest.fail(f"run `tidepipe model pull {SMALL_MODEL}` first: {error}")
