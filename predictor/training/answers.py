"""Finished answers as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from predictor.training.bins import Flags
from predictor.training.words import WordTable
from tidepipe_common.lengths.calibration import Ends
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.hazard import request_rows
from tidepipe_common.lengths.recent import RecentLengths
from tidepipe_common.lengths.request import Observation
from tidepipe_common.lengths.survival import censored_quantiles


@dataclass(frozen=True, slots=True)
class Answers:
    """Observations in the order in which they came; all arrays (n,), rows (n, columns).

    target: logarithm of the length, for the words' regression.
    """

    rows: Floats
    words: WordTable
    lengths: Floats
    censored: Flags
    ends: Ends
    target: Floats

    @classmethod
    def of(cls, observations: Sequence[Observation], recent: RecentLengths) -> Answers:
        """recent: empty; afterwards it knows all of them. Each row sees those before it only."""
        requests = [one.features for one in observations]
        history = []
        for one in observations:
            history.append(recent.numbers(one.features))
            recent.note(one)
        lengths = np.array([float(one.output_tokens) for one in observations])
        censored = np.array([one.censored for one in observations], dtype=np.bool_)
        return cls(
            rows=request_rows(requests, history),
            words=WordTable.of(requests),
            lengths=lengths,
            censored=censored,
            ends=Ends.of(observations),
            target=_targets(lengths, censored),
        )


def _targets(lengths: Floats, censored: Flags) -> Floats:
    """Logarithms; an answer that was cut counts as the median of those that got further."""
    filled = lengths.copy()
    for cut in np.unique(lengths[censored]):
        below = float(np.mean(lengths <= cut))
        middle = censored_quantiles(lengths, censored, (0.5 * (1.0 + below),))[0]
        filled[censored & (lengths == cut)] = middle if np.isfinite(middle) else 1.5 * cut
    return np.asarray(np.log1p(filled), dtype=np.float64)
