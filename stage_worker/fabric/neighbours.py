"""A stage's ways to its neighbours by fabric, as far as it has any."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stage_worker.executors.protocol import StageSpec
from stage_worker.fabric.pair import StagePair
from stage_worker.fabric.rendezvous import meeting_place


@dataclass(frozen=True, slots=True)
class FabricWays:
    """None: activations come, or go, as bytes by RPC."""

    before: StagePair | None = None
    after: StagePair | None = None

    def close(self) -> None:
        """Give both up, from any thread."""
        for pair in (self.before, self.after):
            if pair is not None:
                pair.close()


NO_WAYS = FabricWays()


def open_ways(backend: str | None, spec: StageSpec, device: torch.device) -> FabricWays:
    """Meet the neighbours that `spec` names meetings with; UnavailableError if one does not come.

    All stages meet the one before first, so a pipeline comes together from its beginning.
    """
    if backend is None:
        return NO_WAYS
    before = after = None
    try:
        if spec.fabric_before:
            before = StagePair(backend, meeting_place(spec.fabric_before), 1, device)
        if spec.fabric_after:
            after = StagePair(backend, meeting_place(spec.fabric_after), 0, device)
    except BaseException:
        FabricWays(before, after).close()
        raise
    return FabricWays(before, after)
