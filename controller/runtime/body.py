"""The body of an instance, as its brain sees it: what computes plans, in epochs, and may be lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from controller.runtime.kv_port import KvPort
from controller.runtime.stage_client import StageAbout, StageAccount
from controller.scheduler.offload import OffloadCapacity
from controller.scheduler.patience import StepWatch
from tidepipe_common.types.plan import StepPlan, StepReport
from tidepipe_common.types.sampling import SamplingParams


class Stage(Protocol):
    """One stage of a body. address: where it is, for people."""

    @property
    def index(self) -> int:
        """From 0, first to last."""
        ...

    @property
    def address(self) -> str:
        """Where it is, for people."""
        ...

    @property
    def account(self) -> StageAccount:
        """What is known of it."""
        ...


class Body(Protocol):
    """Stages that are brought up together for an epoch, and lost together.

    All methods run on the event loop.
    """

    @property
    def epoch(self) -> int:
        """Of the stages' state; 0 before the first."""
        ...

    @property
    def about(self) -> StageAbout | None:
        """Which model they compute; None before the first epoch."""
        ...

    @property
    def stages(self) -> Sequence[Stage]:
        """First to last; as many in each epoch."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens of a KV block; known with the first epoch."""
        ...

    @property
    def most_rows(self) -> int:
        """Sequences that one step may have at most; 0: as many as it has tokens."""
        ...

    @property
    def wants_history(self) -> bool:
        """True if it must be told all tokens of each sequence that begins, whatever its sampling."""
        ...

    @property
    def replaced(self) -> bool:
        """True if a stage of this epoch is another process than in the one before."""
        ...

    @property
    def offload(self) -> OffloadCapacity:
        """Of the second tier in this epoch."""
        ...

    @property
    def kv(self) -> KvPort | None:
        """Its KV blocks towards other instances; None: it neither hands them out nor takes others'."""
        ...

    @property
    def watch(self) -> StepWatch:
        """How long each stage has been at its step."""
        ...

    @property
    def lacks(self) -> frozenset[str]:
        """What it cannot do for a request; see tidepipe_common/types/needs.py. `check` refuses that, too."""
        ...

    def check(self, sampling: SamplingParams) -> None:
        """InvalidRequestError names what it cannot do for a request."""
        ...

    async def bring_up(self) -> int:
        """Begin an epoch; the KV blocks that every stage has.

        Waits for what may still come; an error of `pipeline.FATAL` if it never will.
        """
        ...

    async def run_epoch(self, report: Callable[[int, StepReport], None]) -> None:
        """Serve the epoch until cancelled or StageLostError; reports go to `report(stage index, report)`."""
        ...

    def send(self, plan: StepPlan) -> None:
        """Let a step be computed behind those that were sent before. Whatever is wrong ends the epoch."""
        ...

    def look_for_hangs(self, now: float) -> None:
        """End the epoch if a stage has been at a step for longer than any slowness explains."""
        ...

    async def close(self) -> None:
        """Give everything back."""
        ...
