"""The plain policy: wherever there is least to do."""

from __future__ import annotations

from collections.abc import Sequence

from router.core.routing import Choice, InstanceView, SequenceFacts


class LeastLoaded:
    """A RoutingPolicy: the instance that holds the fewest tokens; of equals the one with fewer sequences.

    Tokens and not sequences, because one long prompt is as much work as many short ones.
    """

    def choose(self, sequence: SequenceFacts, instances: Sequence[InstanceView], now: float) -> Choice | None:
        """None if every instance that is large enough holds as many sequences as it accepts."""
        free = [
            view
            for view in instances
            if view.sequences < view.max_sequences and view.context_length >= sequence.longest
        ]
        if not free:
            return None
        best = min(free, key=lambda view: (view.tokens, view.sequences, view.instance_id))
        return Choice(
            best.instance_id,
            f"fewest tokens of {len(free)} instances with room: {best.tokens}",
            {"tokens": best.tokens, "sequences": best.sequences, "candidates": len(free)},
        )
