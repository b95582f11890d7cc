"""Conformal calibration: which level of a model's distribution is really the 90th percentile?

A model says F(length). If it were right, F at the lengths that came true would be uniform. Where it is not,
the 90 % quantile of those values is the level to ask the model for: the share of new answers below it is
90 % whatever the model's faults, as long as they are exchangeable with the ones seen (distributional
conformal prediction, Chernozhukov et al., PNAS 2021). Levels keep their order, so quantiles cannot cross.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tidepipe_common.lengths.survival import censored_quantiles

HIGHEST = 0.9999
"""Asked for at most: level 1 of a distribution without end is infinite."""


def calibrated_levels(
    reached: NDArray[np.float64], censored: NDArray[np.bool_], levels: Sequence[float]
) -> NDArray[np.float64]:
    """The model's levels that cover the given shares.

    reached: F at each length that was seen, (n,). censored: the answer would have gone on; such values say
    "at least" (Kaplan-Meier). For finite samples, ceil((n + 1) level) of n are asked for.
    """
    count = len(reached)
    wanted = [min(1.0, math.ceil((count + 1) * level) / count) for level in levels]
    found = censored_quantiles(reached, censored, wanted)
    return np.minimum(found, HIGHEST)
