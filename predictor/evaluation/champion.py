"""The model that answers now: a trained one once there is one, running quantiles until then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from predictor.evaluation.drift import LEVELS as WATCHED
from predictor.evaluation.drift import SPANS, DriftWatch
from predictor.evaluation.running_quantile import RunningQuantile
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.request import LEVELS, LengthPrediction, Observation, RequestFeatures
from tidepipe_common.lengths.shares import owners_of
from tidepipe_common.lengths.trained import TrainedLengths

_COLUMNS = [LEVELS.index(level) for level in WATCHED]


class Champion:
    """A LengthModel that is calibrated by what it observes, and can be replaced at any time.

    Every answer that ends shows which level its length had in what the model says of it. Those levels are
    the calibration's memory: small changes of the lengths are followed within it, and when the watch says
    that they have changed altogether, only the newest are kept.
    """

    def __init__(self, window: int) -> None:
        """window: of the running quantiles, observations."""
        self.trained: TrainedLengths | None = None
        self.drifts = 0
        self._running = RunningQuantile(window)
        self._watch = DriftWatch()

    @property
    def version(self) -> str:
        """Part of LengthModel."""
        return self.trained.version if self.trained else self._running.version

    @property
    def window(self) -> int:
        """Part of LengthModel."""
        return self._running.window

    @property
    def coverage(self) -> tuple[float, ...]:
        """Shares of the newest answers that were not longer than their predicted P50 and P90."""
        return self._watch.coverage()

    def predict(self, requests: Sequence[RequestFeatures]) -> list[LengthPrediction]:
        """Part of LengthModel."""
        return (self.trained or self._running).predict(requests)

    def observe(self, observations: Sequence[Observation]) -> None:
        """Part of LengthModel."""
        if not observations:
            return
        if self.trained is not None:
            changed = self._observe_trained(self.trained, observations)
        else:
            changed = self._observe_running(observations)
        self._running.observe(observations)
        if changed is not None:
            self._running.keep_newest(changed)
            self._watch.restart()
            self.drifts += 1

    def replace(self, trained: TrainedLengths) -> None:
        """Answer from another model from now on."""
        self.trained = trained
        self._watch.restart()

    def _observe_trained(self, model: TrainedLengths, observations: Sequence[Observation]) -> int | None:
        """Calibrate; the newest answers that tell of the present, or None if nothing has changed."""
        known = [one for one in observations if not one.lost]
        changed = self._watch.note(_covered(model, known)) if known else None
        model.learn(observations)
        if changed is not None:
            model.calibration.keep_newest(changed)
        return changed

    def _observe_running(self, observations: Sequence[Observation]) -> int | None:
        """As `_observe_trained`. While there are few observations the estimate still moves by itself."""
        known = [one for one in observations if not one.lost]
        if self._running.window < SPANS[-1] or not known:
            return None
        predicted = self._running.predict([one.features for one in known])
        tokens = np.array([one.tokens for one in predicted])[:, _COLUMNS]
        lengths = np.array([float(one.output_tokens) for one in known])[:, None]
        limits = np.array([one.features.limit for one in known])[:, None]
        return self._watch.note(np.where(tokens >= limits, np.nan, lengths <= tokens))


def _covered(model: TrainedLengths, known: Sequence[Observation]) -> Floats:
    """Not longer than predicted? (n, watched levels). NaN where nobody can tell.

    A prediction at the limit, behind which nobody sees, says nothing.
    """
    limits = np.array([one.features.limit for one in known])
    asked = model.calibration.asked(LEVELS, limits, owners_of(known))[:, _COLUMNS]
    covered = (model.reached(known)[:, None] <= asked).astype(np.float64)
    tokens = model.quantiles([one.features for one in known])[:, _COLUMNS]
    return np.where(tokens >= limits[:, None], np.nan, covered)
