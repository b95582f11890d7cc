"""The access of API keys, within each key's limits; shared by the gRPC and the HTTP surface.

A call is let in at the door (`enter`); the work that it asks for is counted where it begins (`begin`) until
it ends, whoever waits for it: by answers at a time, and by tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tidepipe_common.errors import (
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from tidepipe_common.security.api_key import ApiKey
from tidepipe_common.security.key_store import KeyStore

BURST_S = 10.0
"""A key may use up so many seconds' worth of its rate of requests at once."""
TOKEN_BURST_S = 60.0
"""And of its rate of tokens: requests come in lumps of thousands of them."""
CONCURRENCY_RETRY_MS = 1000
BACKGROUND_RETRY_MS = 100
"""Nobody waits for it, and it holds nothing while it waits."""
CALLS_PER_ANSWER, MORE_CALLS = 2, 16
"""Calls that a key may have open, by the answers that it may have at a time: also looking takes a place."""
KEPT_FREE = 4
"""One of so many places is not for background work, nor is this part of its tokens."""
WANTED_S = 2.0
"""After a refusal places are kept free of background work for so long: who was refused comes again."""
SCHEME = "bearer"
ENDED = "the API key was revoked or has expired"


def bearer(authorization: str | None) -> str | None:
    """The credential in an Authorization header (`Bearer ...`), or None."""
    scheme, _, credential = (authorization or "").partition(" ")
    return credential.strip() or None if scheme.lower() == SCHEME else None


def presented(headers: Mapping[str, str]) -> str | None:
    """What a caller over HTTP says to be let in, as an Authorization header has it; None if nothing.

    Clients of Anthropic's API say it in a header of their own.
    """
    key = headers.get("x-api-key")
    return headers.get("authorization") or (f"Bearer {key}" if key else None)


def credential(headers: Mapping[str, str]) -> str | None:
    """The key that a caller over HTTP shows. InvalidRequestError if there are two: who is in front of this
    server may have gone by the other one."""
    shown, other = bearer(presented(headers)), headers.get("x-api-key")
    if shown and other and shown != other:
        raise InvalidRequestError("authorization and x-api-key say different keys; send one", "x-api-key")
    return shown


class Lease:
    """One call of a key, from admission until `release`. Use it as a context manager, or call release.

    on_end: called once if the key ends before the call does.
    """

    def __init__(self, key: ApiKey, release: Callable[[Lease], None]) -> None:
        self.key = key
        self.on_end: Callable[[], object] | None = None
        self._release: Callable[[Lease], None] | None = release

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """The call is over. Harmless when repeated."""
        if self._release is not None:
            release, self._release = self._release, None
            release(self)


@dataclass(slots=True)
class Bucket:
    """What may be taken now, filled again at a steady rate; in debt where more was used than was foreseen."""

    level: float = float("inf")
    at: float = 0.0

    def refill(self, per_minute: float, burst_s: float, now: float) -> float:
        """What it holds at most."""
        most = max(1.0, per_minute / 60 * burst_s)
        self.level = min(most, self.level + (now - self.at) * per_minute / 60)
        self.at = now
        return most


@dataclass(slots=True)
class _Use:
    """How much of a key's limits is used. answers: those that run, background: of these."""

    calls: set[Lease] = field(default_factory=set)
    answers: int = 0
    background: int = 0
    requests: Bucket = field(default_factory=Bucket)
    tokens: Bucket = field(default_factory=Bucket)
    wanted_until: float = float("-inf")
    used_tokens: int = 0


class Work:
    """What one request computes. Ends with the last of its answers, not with the call that began it."""

    def __init__(self, access: KeyAccess, key: ApiKey, use: _Use, answers: int, *, background: bool) -> None:
        self._access = access
        self._key = key
        self._use = use
        self._answers = 0
        self._background = background
        self._charged = 0.0
        self.running(answers)

    def running(self, answers: int) -> None:
        """So many of its answers have not ended."""
        change, self._answers = answers - self._answers, answers
        self._use.answers += change
        self._use.background += change if self._background else 0

    def charge(self, tokens: int) -> None:
        """Pay for prompt and answers in advance. OverloadedError: they would exceed the rate."""
        self._access.spend_tokens(self._key, self._use, tokens, background=self._background)
        self._charged = tokens

    def end(self, tokens: int) -> None:
        """Nothing runs any more; it took so many tokens. Once."""
        self.running(0)
        self._use.used_tokens += tokens
        self._use.tokens.level += self._charged - tokens


class KeyAccess:
    """One per router. Lives on the event loop: no locks, no waiting."""

    def __init__(self, store: KeyStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    def enter(self, presented: str | None, *roles: str) -> Lease:
        """Admit one call of whoever presents a key that has one of the roles.

        Raises UnauthenticatedError (no key, or no valid one), PermissionDeniedError (valid, but none of the
        roles), OverloadedError (over the key's rate or its open calls; says when to come again),
        UnavailableError (keys cannot be checked).
        """
        if not presented:
            raise UnauthenticatedError(
                "an API key is needed: send it as `Authorization: Bearer KEY` (`tidepipe keys add` makes one)"
            )
        key = self._store.authenticate(presented)
        if not key.roles & set(roles):
            raise PermissionDeniedError(
                f"the API key {key.key_id} has role {', '.join(sorted(key.roles))}; "
                f"this needs {' or '.join(roles) or 'to be a service of the cluster'}"
            )
        use = self._use(key)
        most = None if key.max_concurrent is None else CALLS_PER_ANSWER * key.max_concurrent + MORE_CALLS
        if most is not None and len(use.calls) >= most:
            text = f"the API key {key.key_id} may have {most} calls open at a time, and has them"
            raise OverloadedError(text, CONCURRENCY_RETRY_MS)
        self._spend_request(key, use)
        lease = Lease(key, use.calls.discard)
        use.calls.add(lease)
        return lease

    def begin(self, owner: str, answers: int, *, background: bool) -> Work | None:
        """Count a request's answers from now on; None if its owner is no key, and has no limits.

        background: nobody waits for it: it leaves room for its owner's other requests.
        InvalidRequestError if it never fits, OverloadedError if it does not now, UnauthenticatedError.
        """
        if not owner or not owner.isalnum():
            return None
        key = self._store.find(owner)
        if key is None:
            raise UnauthenticatedError(ENDED)
        use, most, now = self._use(key), key.max_concurrent, self._clock()
        if most is not None:
            if answers > most:
                raise InvalidRequestError(
                    f"n is {answers}, and the API key {key.key_id} may have {most} answers at a time", "n"
                )
            free = most - use.answers
            if background and (use.background or now < use.wanted_until):
                free -= self._kept_free(most, use)
            if answers > free:
                if not background:
                    use.wanted_until = now + WANTED_S
                raise OverloadedError(
                    f"the API key {key.key_id} may have {most} answers at a time, and has {use.answers}",
                    BACKGROUND_RETRY_MS if background else CONCURRENCY_RETRY_MS,
                )
            if not background:
                use.wanted_until = float("-inf")
        if background:  # others were counted at the door
            self._spend_request(key, use, background=True)
        return Work(self, key, use, answers, background=background)

    def background_places(self, owner: str) -> int | None:
        """As many background answers as its owner has places for; None for any number."""
        try:
            key = self._store.find(owner)
        except UnavailableError:
            return None
        if key is None or key.max_concurrent is None:
            return None
        return max(1, key.max_concurrent - -(-key.max_concurrent // KEPT_FREE))

    def stored(self, owner: str) -> tuple[int | None, int | None]:
        """Bytes and number of what an owner may store, if its key says it; from any thread."""
        key = self._store.known(owner)
        return (None, None) if key is None else (key.stored_bytes, key.stored_items)

    def unlearned(self, owner: str) -> bool:
        """True if nothing is to be learned from an owner's answers."""
        key = self._store.known(owner)
        return key is not None and key.unlearned

    def name(self, owner: str) -> str:
        """What a key is called; empty if the owner is none."""
        key = self._store.known(owner)
        return "" if key is None else key.name

    def ended(self, owner: str) -> bool:
        """True if the owner is a key that opens nothing any more; False also while that cannot be known."""
        if not owner or not owner.isalnum():
            return False
        try:
            return self._store.find(owner) is None
        except UnavailableError:
            return False

    def end_calls(self) -> None:
        """Tell the calls of keys that have ended."""
        for key_id, use in self._uses.items():
            if use.calls and self.ended(key_id):
                for lease in [*use.calls]:
                    on_end, lease.on_end = lease.on_end, None
                    if on_end is not None:
                        on_end()

    def headers(self, key: ApiKey) -> dict[str, str]:
        """What is left of its rates, as the OpenAI API says it."""
        use, now, found = self._use(key), self._clock(), {}
        for what, rate, bucket, burst_s in (
            ("requests", key.requests_per_minute, use.requests, BURST_S),
            ("tokens", key.tokens_per_minute, use.tokens, TOKEN_BURST_S),
        ):
            if rate is not None:
                most = bucket.refill(rate, burst_s, now)
                found[f"x-ratelimit-limit-{what}"] = f"{rate:.0f}"
                found[f"x-ratelimit-remaining-{what}"] = f"{max(0.0, bucket.level):.0f}"
                found[f"x-ratelimit-reset-{what}"] = f"{(most - bucket.level) * 60 / rate:.3f}s"
        return found

    def usage(self) -> dict[str, tuple[int, int]]:
        """By key: answers that run, and tokens that ended ones took."""
        return {key_id: (use.answers, use.used_tokens) for key_id, use in self._uses.items()}

    def spend_tokens(self, key: ApiKey, use: _Use, tokens: int, *, background: bool) -> None:
        """Take so many from the key's rate. More than it ever holds needs a full bucket, and is paid off."""
        if key.tokens_per_minute is None:
            return
        most = use.tokens.refill(key.tokens_per_minute, TOKEN_BURST_S, self._clock())
        need = min(float(tokens), most)
        if background:
            need = min(most, need + most / KEPT_FREE)
        if use.tokens.level < need:
            wait_s = (need - use.tokens.level) * 60 / key.tokens_per_minute
            text = f"the API key {key.key_id} may use {key.tokens_per_minute:g} tokens a minute"
            raise OverloadedError(
                f"{text}, and this request takes up to {tokens}", max(1, round(1000 * wait_s))
            )
        use.tokens.level -= tokens

    def _use(self, key: ApiKey) -> _Use:
        return self._uses.setdefault(key.key_id, _Use())

    def _kept_free(self, most: int, use: _Use) -> int:
        return -(-most // KEPT_FREE) if use.background else 1

    def _spend_request(self, key: ApiKey, use: _Use, *, background: bool = False) -> None:
        if key.requests_per_minute is None:
            return
        rate = key.requests_per_minute / 60
        most = use.requests.refill(key.requests_per_minute, BURST_S, self._clock())
        need = min(most, 1 + most / KEPT_FREE) if background else 1
        if use.requests.level < need:
            raise OverloadedError(
                f"the API key {key.key_id} may make {key.requests_per_minute:g} requests a minute",
                max(1, round(1000 * (need - use.requests.level) / rate)),
            )
        use.requests.level -= 1
