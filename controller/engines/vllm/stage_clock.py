"""What each stage took for a step, where only the end of the whole step is known."""

from __future__ import annotations

from collections.abc import Sequence

from tidepipe_common.types.plan import StageTimes


class StageClock:
    """Stages in a row, each of which takes the same time for a step, one step after the other.

    vLLM says when a step has come out of the last stage, and nothing about the others. Under this one
    assumption (vLLM splits layers evenly) the end determines the rest: with t per stage, a step that stage k
    could begin at b_k at the earliest ends at max over k of b_k + (S - k) * t, so t is the largest that
    explains the end.
    """

    def __init__(self, stages: int) -> None:
        self._ends: list[float | None] = [None] * stages

    def done(self, sent: float, ended: float) -> Sequence[StageTimes]:
        """The times of each stage, first to last, of the step that came out now. Steps keep their order."""
        stages = len(self._ends)
        earliest = [sent if end is None else end for end in self._ends]
        earliest[0] = max(sent, earliest[0])
        each = min(max(0.0, ended - begin) / (stages - k) for k, begin in enumerate(earliest))
        times: list[StageTimes] = []
        arrived = sent
        for k, end in enumerate(self._ends):
            begins = max(arrived, arrived if end is None else end)
            times.append(StageTimes(each, begins - (sent if end is None else end)))
            arrived = self._ends[k] = begins + each
        return times
