"""Quantiles of lengths of which some are only lower bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def censored_quantiles(
    lengths: NDArray[np.float64] | NDArray[np.int64], censored: NDArray[np.bool_], levels: Sequence[float]
) -> NDArray[np.float64]:
    """Kaplan-Meier estimate of the quantiles of `lengths`; infinite where the data does not reach a level.

    An answer that was cut at 64 tokens says "longer than 64", not "64": taken at face value, short limits
    would drag every prediction down; left out, long answers would be missing, because they are the ones
    that get cut. The product-limit estimate uses exactly what is known: up to its cut the answer counts
    among those still running, after it no more. It assumes that limits do not depend on the length.
    Without cut answers the result is the empirical quantile (inverted distribution function).
    """
    # At equal lengths ends come before cuts: who was cut at 64 was still running when another ended at 64.
    order = np.lexsort((censored, lengths))
    ordered, cut = lengths[order], censored[order]
    still_running = np.arange(len(ordered), 0, -1, dtype=np.float64)
    survival = np.cumprod(np.where(cut, 1.0, 1.0 - 1.0 / still_running))
    # Rounding in the product must not push a level one observation further.
    first_reaching = np.searchsorted(1.0 - survival, np.asarray(levels) - 1e-9)
    reached = first_reaching < len(ordered)
    quantiles = np.full(len(levels), np.inf)
    quantiles[reached] = ordered[first_reaching[reached]]
    return quantiles
