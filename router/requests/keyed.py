"""Requests with an idempotency key: asked again with it, they are the same request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from router.requests.admission import draw_seed
from router.requests.entry import RequestEntry, request_digest
from tidepipe_common.errors import KeyReusedError
from tidepipe_common.types.request import GenerationRequest
from tidepipe_common.types.request_ids import draw_request_id
from tidepipe_common.types.results import SequenceUpdate

MAX_CLAIMS = 65_536
"""Of whoever has most the oldest go first: who comes back after so many others starts anew."""
CLAIM_S = 86_400.0
"""A key that was not used for so long is free again."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a key stands for. digest: of the request. seed: None if it draws nothing, or named one.

    given: what there is of each answer already.
    """

    digest: str
    request_id: str
    seed: int | None
    given: Sequence[SequenceUpdate] = ()

    def request(self, request: GenerationRequest) -> GenerationRequest:
        """The request under the id and with the seed that the key stands for.

        KeyReusedError if that is another request.
        """
        if request_digest(request) != self.digest:
            raise KeyReusedError(
                "this idempotency key belongs to another request; send that one again, or choose a new key",
                "Idempotency-Key",
            )
        seed = request.sampling.seed if self.seed is None else self.seed
        return replace(request, request_id=self.request_id, sampling=replace(request.sampling, seed=seed))


def new_claim(request: GenerationRequest) -> Claim:
    """For a key that is new."""
    draws = not request.sampling.greedy and request.sampling.seed is None
    return Claim(request_digest(request), draw_request_id(), draw_seed() if draws else None)


class KeyedRequests(Protocol):
    """Keys by (owner, key): those of one owner are no business of another."""

    async def claim(self, owner: str, key: str, request: GenerationRequest) -> Claim:
        """What the key stands for: what it did, or from now on this request. StorageError: not stored."""
        ...

    def follow(self, entry: RequestEntry, claim: Claim) -> None:
        """A request that was claimed runs, or has ended."""
        ...


class RememberedKeys:
    """Keys of a router that stores nothing: they last as long as it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._claims: dict[str, OrderedDict[str, tuple[Claim, float]]] = {}

    async def claim(self, owner: str, key: str, request: GenerationRequest) -> Claim:
        """Part of KeyedRequests."""
        now = self._clock()
        mine = self._claims.setdefault(owner, OrderedDict())
        claim, at = mine.pop(key, (None, now))
        if claim is None or at < now - CLAIM_S:
            claim = new_claim(request)
        mine[key] = claim, now
        if sum(map(len, self._claims.values())) > MAX_CLAIMS:
            max(self._claims.values(), key=len).popitem(last=False)
        return claim

    def follow(self, entry: RequestEntry, claim: Claim) -> None:
        """Part of KeyedRequests: the table remembers what is complete."""
