"""A sequence as the routing core sees it, and how long it may wait for an instance."""

from __future__ import annotations

from dataclasses import dataclass

from router.instances.sequence import RoutedSequence
from router.scheduler.request import RouteRequest
from router.scheduler.shedding import WAIT_SHARE
from router.scheduler.slo import SloClasses

SHEDDING = ("padg", "padg-published", "padg-shuffled")
"""Routing policies that refuse who cannot be served in time, instead of serving all too late."""
NOWHERE_S = 0.1
"""While there is no instance, waiting sequences are looked at so often."""


@dataclass(frozen=True, slots=True)
class WaitingRules:
    """slos: targets of those that bring none. patience_s: how long to wait while there is no instance."""

    slos: SloClasses
    patience_s: float

    def sheds(self, sequence: RoutedSequence, policy: str) -> bool:
        """May it be refused for being late? What an instance has had is finished, however late."""
        return policy in SHEDDING and not sequence.output and not sequence.has_moved

    def request(self, sequence: RoutedSequence, policy: str, now: float, *, nowhere: bool) -> RouteRequest:
        """nowhere: there is no instance at all."""
        slo = self.slos.resolve(None, sequence.ttft_s, sequence.tpot_s)
        produced = len(sequence.output)
        expires = now + (min(self.patience_s, NOWHERE_S) if nowhere else self.patience_s)
        if sheds := self.sheds(sequence, policy):
            expires = max(now, sequence.arrived + WAIT_SHARE * slo.ttft_s)
        return RouteRequest(
            request_id=sequence.key,
            prompt_tokens=len(sequence.prompt) + produced,
            max_tokens=max(0, (sequence.sampling.max_tokens or 0) - produced),
            slo=slo,
            arrived=sequence.arrived,
            expires=expires,
            sheds=sheds,
            tenant=sequence.tenant,
        )
