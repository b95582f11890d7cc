"""What a sequence went through at the instances that had it."""

from __future__ import annotations

from tidepipe_common.errors import TidePipeError

MAX_FRUITLESS = 16
"""An instance that dies of a sequence takes it along only so often."""


class RetryBudget:
    """The account of one sequence: how often instances lost it, and computed it again."""

    def __init__(self) -> None:
        self.lost = 0
        self._fruitless = 0
        self._preemptions_before = 0
        self._preemptions_here = 0

    @property
    def preemptions(self) -> int:
        """At all instances; to be lost by one counts as well: it is computed again."""
        return self._preemptions_before + self._preemptions_here

    def heard(self, fresh: int, preemptions: int) -> None:
        """News came. fresh: new tokens in it. preemptions: in the present stay so far."""
        self._preemptions_here = max(self._preemptions_here, preemptions)
        if fresh:
            self._fruitless = 0

    def end(self) -> None:
        """The instance lost it."""
        self.lost += 1
        self._fruitless += 1
        self._preemptions_before += self._preemptions_here + 1
        self._preemptions_here = 0

    def hopeless(self) -> TidePipeError | None:
        """Why no further instance should have it, if so."""
        if self._fruitless <= MAX_FRUITLESS:
            return None
        return TidePipeError(
            f"the request was lost {self._fruitless} times without getting any further; "
            "the logs of the instances say why they gave it up"
        )
