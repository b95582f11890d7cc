"""When to ask again, and how long to wait before."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from tidepipe_common.rpc.status import RETRY_AFTER, TRANSIENT

CANCEL_TIMEOUT_S = 2.0
"""For telling the router that an answer is not wanted any more."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How stubborn a client is.

    Waits grow from initial_s to longest_s. give_up_s: a service that was not heard of for so long is
    reported as unavailable, even if the request's own timeout is longer; None: patience ends with that
    alone. A full queue is not a loss: the client waits for its turn until the request's timeout.
    """

    initial_s: float = 0.1
    longest_s: float = 5.0
    factor: float = 2.0
    give_up_s: float | None = None


class Backoff:
    """Growing waits with jitter, so that the clients of a restarted router do not come all at once."""

    def __init__(self, policy: RetryPolicy, draw: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self._draw = draw
        self._failures = 0

    def reset(self) -> None:
        """The service was heard of: start over."""
        self._failures = 0

    def next_wait(self) -> float:
        """Seconds to wait after one more failure."""
        policy = self._policy
        limit = min(policy.longest_s, policy.initial_s * policy.factor ** min(self._failures, 32))
        self._failures += 1
        return limit * (0.5 + 0.5 * self._draw())


def is_loss(error: grpc.RpcError) -> bool:
    """True if the connection or the service was lost, so that the same call may well succeed later."""
    code = error.code()
    if code is grpc.StatusCode.INTERNAL:
        # What a call sees when the process at the other end is killed in the middle of a message.
        return "RST_STREAM" in (error.details() or "")
    return code in TRANSIENT


def queue_full_wait_s(error: grpc.RpcError) -> float | None:
    """Seconds after which a full queue is worth another try; None if the error is another one."""
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    # gRPC uses this status also for messages that are too large; those come without the hint.
    metadata: Any = error.trailing_metadata() or ()
    hint = dict(metadata).get(RETRY_AFTER)
    return None if hint is None else max(int(hint), 1) / 1000
