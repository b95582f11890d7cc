"""A trained model, ready to answer: `load_lengths(DIR).predict(requests)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tidepipe_common.lengths.calibration import Ends, ReachedLevels
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.hazard import HazardModel
from tidepipe_common.lengths.recent import RecentLengths
from tidepipe_common.lengths.request import LEVELS, LengthPrediction, Observation, RequestFeatures


@dataclass(slots=True)
class TrainedLengths:
    """Hazard model, its calibration, and the recent lengths of clients and templates.

    version: such as hazard/3. answers: observations that it was trained on. calibration: levels that were
    reached by answers which the model had not seen.
    """

    version: str
    answers: int
    hazard: HazardModel
    calibration: ReachedLevels
    recent: RecentLengths = field(default_factory=RecentLengths)

    def copy(self) -> TrainedLengths:
        """The same now, to be stored while this one learns on. The trees never change: they are one."""
        return replace(self, calibration=self.calibration.copy(), recent=RecentLengths(self.recent.entries()))

    def quantiles(
        self,
        requests: Sequence[RequestFeatures],
        levels: Sequence[float] = LEVELS,
        *,
        calibrated: bool = True,
    ) -> Floats:
        """Tokens at each level, (requests, levels); never falling, none above a request's max_tokens."""
        if not requests:
            return np.empty((0, len(levels)))
        limits = np.array([one.limit for one in requests])
        asked = np.asarray(levels, dtype=np.float64)
        if calibrated:
            owners = np.array([one.prompt.owner for one in requests], dtype=np.int64)
            asked = self.calibration.asked(tuple(levels), limits, owners)
        generated = np.array([float(one.generated_tokens) for one in requests])
        found = self.hazard.distributions(requests, self.recent).quantiles(
            asked, generated if generated.any() else None
        )
        return np.asarray(np.minimum(found, limits[:, None]), dtype=np.float64)

    def predict(self, requests: Sequence[RequestFeatures]) -> list[LengthPrediction]:
        """One prediction per request, at LEVELS."""
        return [LengthPrediction(LEVELS, tuple(row)) for row in self.quantiles(requests).tolist()]

    def reached(self, observations: Sequence[Observation]) -> Floats:
        """The level that each answer's length had in its distribution, before calibration."""
        distributions = self.hazard.distributions([one.features for one in observations], self.recent)
        lengths = np.array([float(one.output_tokens) for one in observations])
        return 1.0 - distributions.beyond(lengths)

    def learn(self, observations: Sequence[Observation]) -> None:
        """Answers that ended, and that the trees have not seen: they calibrate, and are recent ones."""
        self.calibration.add(self.reached(observations), Ends.of(observations))
        for one in observations:
            self.recent.note(one)
