"""Lets the owners of API keys in, within each key's limits; shared by the gRPC and the HTTP surface."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import OverloadedError, PermissionDeniedError, UnauthenticatedError
from common.security.api_key import ApiKey
from common.security.key_store import KeyStore

BURST_S = 10.0
"""A key may use up so many seconds' worth of its rate at once."""
CONCURRENCY_RETRY_MS = 1000
SCHEME = "bearer"


def bearer(authorization: str | None) -> str | None:
    """The credential in an Authorization header (`Bearer ...`), or None."""
    scheme, _, credential = (authorization or "").partition(" ")
    return credential.strip() or None if scheme.lower() == SCHEME else None


class Lease:
    """One request of a key, from admission until `release`. Use it as a context manager, or call release."""

    def __init__(self, key: ApiKey, release: Callable[[], None]) -> None:
        self.key = key
        self._release: Callable[[], None] | None = release

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """The request is over. Harmless when repeated."""
        if self._release is not None:
            release, self._release = self._release, None
            release()


@dataclass(slots=True)
class _Use:
    """How much of a key's limits is used. tokens: requests that may start now."""

    running: int
    tokens: float
    at: float


class KeyAccess:
    """One per router. Lives on the event loop: no locks, no waiting."""

    def __init__(self, store: KeyStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    def enter(self, presented: str | None, *roles: str) -> Lease:
        """Admit one request of whoever presents a key that has one of the roles.

        Raises UnauthenticatedError (no key, or no valid one), PermissionDeniedError (valid, but none of the
        roles), OverloadedError (over the key's rate or concurrency; says when to come again).
        """
        if not presented:
            raise UnauthenticatedError(
                "an API key is needed: send it as `Authorization: Bearer KEY` (`tidepipe keys add` makes one)"
            )
        key = self._store.authenticate(presented)
        if not key.roles & set(roles):
            raise PermissionDeniedError(
                f"the API key '{key.name}' has role {', '.join(sorted(key.roles))}; "
                f"this needs {' or '.join(roles) or 'to be a service of the cluster'}"
            )
        use = self._uses.setdefault(key.key_id, _Use(0, float("inf"), self._clock()))
        self._spend(key, use)
        use.running += 1

        def release() -> None:
            use.running -= 1

        return Lease(key, release)

    def _spend(self, key: ApiKey, use: _Use) -> None:
        if key.max_concurrent is not None and use.running >= key.max_concurrent:
            raise OverloadedError(
                f"the API key '{key.name}' may have {key.max_concurrent} requests at a time, and has them",
                CONCURRENCY_RETRY_MS,
            )
        if key.requests_per_minute is None:
            return
        rate = key.requests_per_minute / 60
        now = self._clock()
        use.tokens = min(max(1.0, rate * BURST_S), use.tokens + (now - use.at) * rate)
        use.at = now
        if use.tokens < 1:
            raise OverloadedError(
                f"the API key '{key.name}' may make {key.requests_per_minute:g} requests a minute",
                max(1, round(1000 * (1 - use.tokens) / rate)),
            )
        use.tokens -= 1
