"""What a step takes, learned from timed ones: a fixed part, one for each decode row, one per prompt token."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidepipe_common.latency.model import StepCost

MEMORY = 0.98
"""What an earlier step counts beside the next one of its kind: about fifty are remembered."""
FORGOTTEN, LEAST_GUESSED = 0.7, 1e-6
"""What the model's steps count with each timed one more, and at least: they decide what was never seen."""
_ROWS, _PROMPTS = (1, 32), 512
"""Of the model's steps."""


class StepTime(NamedTuple):
    """Seconds. A decode row reads its whole context, so it takes several times what a prompt's token does."""

    fixed_s: float
    row_s: float
    token_s: float

    def of(self, rows: float, prompts: float) -> float:
        """A step with so many decode rows and tokens of prompts."""
        return self.fixed_s + self.row_s * rows + self.token_s * prompts


class StepTimes:
    """Least squares of relative errors. Pure.

    Steps with prompts and steps without are forgotten apart from each other, so that what prompts take is
    still known after a long time without any.
    """

    def __init__(self, modelled: StepCost) -> None:
        points = [(rows, 0, modelled.linear_s(rows)) for rows in _ROWS]
        points.append((0, _PROMPTS, modelled.linear_s(_PROMPTS)))
        self._guesses = np.sum([_sums(*point) for point in points], axis=0)
        self._guessed = 1.0
        self._kinds = {True: np.zeros((3, 4)), False: np.zeros((3, 4))}

    def observe(self, rows: int, prompts: int, seconds: float) -> None:
        """A step took so long at each stage."""
        self._guessed = max(LEAST_GUESSED, FORGOTTEN * self._guessed)
        kind = prompts > 0
        self._kinds[kind] = MEMORY * self._kinds[kind] + _sums(rows, prompts, seconds)

    def now(self) -> StepTime:
        """As far as it is known."""
        sums = self._guessed * self._guesses + self._kinds[True] + self._kinds[False]
        found = np.linalg.solve(sums[:, :3], sums[:, 3])
        fixed, row, token = (max(float(one), 1e-9) for one in found)
        return StepTime(fixed, row, token)


def _sums(rows: int, prompts: int, seconds: float) -> NDArray[np.float64]:
    """What a step adds to the normal equations, as (3, 4)."""
    row = np.array([1.0, rows, prompts, seconds]) / seconds
    product: NDArray[np.float64] = row[:3, None] * row
    return product
