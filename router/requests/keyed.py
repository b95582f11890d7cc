"""Requests with an idempotency key: asked again with it, they are the same request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from common.errors import KeyReusedError
from common.request import GenerationRequest
from common.request_ids import draw_request_id
from router.requests.digest import request_digest
from router.requests.seeds import draw_seed

MAX_CLAIMS = 65_536
"""Oldest ones go first: who comes back after so many others starts anew."""
CLAIM_S = 86_400.0
"""A key that was not used for so long is free again."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a key stands for. digest: of the request. seed: None if it draws nothing, or named one."""

    digest: str
    request_id: str
    seed: int | None
    at: float


class KeyedRequests:
    """Keys by (owner, key): those of one owner are no business of another."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._claims: OrderedDict[tuple[str, str], Claim] = OrderedDict()

    def claim(self, owner: str, key: str, request: GenerationRequest) -> GenerationRequest:
        """The request under the id and with the seed that the key stands for.

        KeyReusedError if it stands for another request.
        """
        now = self._clock()
        digest = request_digest(request)
        found = self._claims.pop((owner, key), None)
        if found is None or found.at < now - CLAIM_S:
            draws = not request.sampling.greedy and request.sampling.seed is None
            found = Claim(digest, draw_request_id(), draw_seed() if draws else None, now)
        # Also a wrong guess keeps it: it is what the key stands for.
        self._claims[owner, key] = replace(found, at=now)
        if len(self._claims) > MAX_CLAIMS:
            self._claims.popitem(last=False)
        if found.digest != digest:
            raise KeyReusedError(
                "this idempotency key belongs to another request; send that one again, or choose a new key",
                "Idempotency-Key",
            )
        seed = request.sampling.seed if found.seed is None else found.seed
        sampling = replace(request.sampling, seed=seed)
        return replace(request, request_id=found.request_id, sampling=sampling)
