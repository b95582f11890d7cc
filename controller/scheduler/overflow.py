"""The margin of KV memory that admission leaves free, so that it runs out as often as it may."""

from __future__ import annotations


class OverflowMargin:
    """Adaptive conformal control (Gibbs and Candes, 2021): over many fills of the memory the share of those
    that run out of blocks comes to `rate`, whatever is wrong with the predictions.

    Each fill that ran out raises the margin by STEP (1 - rate), each that did not lowers it by STEP x rate. A
    margin computed from the doubt about single lengths does not do it: their errors have causes in common.
    """

    STEP = 0.01
    START = 0.02
    MOST = 0.2

    def __init__(self, rate: float) -> None:
        """rate: of fills that run out of blocks."""
        self.share = self.START
        self.rate = rate
        self._full = False
        self._preemptions = 0

    def filled(self, preemptions: int, *, full: bool) -> None:
        """No more is admitted for now. preemptions: so far. full: for lack of memory, not of prompts."""
        if self._full:
            ran_out = preemptions > self._preemptions
            self.share = min(max(self.share + self.STEP * (ran_out - self.rate), 0.0), self.MOST)
        self._full, self._preemptions = full, preemptions
