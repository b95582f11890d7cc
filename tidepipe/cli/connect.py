"""The connection of a command to the router that it was told of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tidepipe.cli.waiting import named_if_slow

if TYPE_CHECKING:
    from tidepipe.client.async_client import AsyncClient
    from tidepipe.client.retry import RetryPolicy
    from tidepipe_common.security.credentials import Credentials


def waiting_for(endpoint: str) -> str:
    """What a command says that has no answer yet."""
    return f"waiting for an answer from {endpoint} ..."


async def connected(
    endpoint: str,
    *,
    retry: RetryPolicy | None = None,
    credentials: Credentials | None = None,
    within_s: float = math.inf,
) -> AsyncClient:
    """A client of the router at HOST:PORT, which somebody is told of if it takes time to answer.

    retry, credentials: as of AsyncClient. within_s: what its user has left. UnavailableError if none answers.
    """
    # Late, so that `tidepipe --help` stays quick, and gRPC reads what `main` tells it of its log.
    from tidepipe.client.admin import CONNECT_TIMEOUT_S
    from tidepipe.client.async_client import AsyncClient

    async with named_if_slow(waiting_for(endpoint)):
        return await AsyncClient.connect(
            endpoint,
            connect_timeout=min(CONNECT_TIMEOUT_S, within_s),
            retry=retry,
            credentials=credentials,
        )
