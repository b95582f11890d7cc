"""The seam between macro scheduler and routing policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from router.scheduler.request import RouteRequest
from router.scheduler.view import InstanceView


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision that explains itself. instance_id None: the request waits at the macro scheduler.

    lender: the instance that is to lend its beginning to the chosen one; empty: nobody.
    """

    instance_id: str | None
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    lender: str = ""


class RoutingPolicy(Protocol):
    """Decides where requests go. It may keep notes (whose turn it is), but owns no request.

    One policy object serves one macro instance.
    """

    @property
    def name(self) -> str:
        """As users choose it."""
        ...

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """An instance, or waiting. `views`: all instances of the macro instance, in their cyclic order."""
        ...
