"""Which sizes of a step are worth having: the corners of what steps take by their tokens."""

from __future__ import annotations

from itertools import pairwise

from tidepipe_common.latency.model import StepCost

GRAIN = 64


class StepSizes:
    """The sizes of a step that are worth having: the corners of the time curve's lower convex hull.

    Matrix products take whole tiles of tokens, so the curve jumps, and a step should end where a tile ends.
    Between its decode rows and the largest step only the hull's corners are cheapest at some price of a
    prompt token; two neighbours taken in turn reach everything between them, which no fixed chunk does.
    """

    def __init__(self, cost: StepCost, most_tokens: int, near_best: float = 1.0, grain: int = GRAIN) -> None:
        """Multiples of `grain` up to the smallest one whose time per token is within `near_best` of the best
        up to `most_tokens`."""
        curve = [(size, cost.linear_s(size)) for size in range(grain, most_tokens + 1, grain)]
        enough = near_best * min(seconds / size for size, seconds in curve)
        self.largest = next(size for size, seconds in curve if seconds / size <= enough)
        self._curve = [point for point in curve if point[0] <= self.largest]
        self._cost = cost

    def step(self, tokens: float) -> tuple[float, float]:
        """Tokens and seconds of a step of so many on average, taken in corners: no more than the largest."""
        hull = [(1, self._cost.linear_s(1)), *((size, self._cost.linear_s(size)) for size in self.corners(1))]
        tokens = min(max(1.0, tokens), hull[-1][0])
        for low, high in pairwise(hull):
            if tokens <= high[0]:
                return tokens, low[1] + _slope(low, high) * (tokens - low[0])
        return hull[-1]

    def corners(self, rows: int) -> list[int]:
        """Sizes above `rows`, the decode rows that each step has anyway, in rising order; at least one."""
        # The curve is of the time at which it was drawn: a cost that was corrected since then is scaled back.
        (size, seconds), now_s = self._curve[0], self._cost.linear_s
        hull = [(rows, now_s(max(1, rows)) * (seconds / now_s(size)))]
        for point in self._curve:
            if point[0] <= rows:
                continue
            while len(hull) > 1 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
                hull.pop()
            hull.append(point)
        return [size for size, _ in hull[1:]] or [rows]


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
