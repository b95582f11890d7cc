"""The predictor's metrics (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric

from common.telemetry.telemetry import gauge, total
from predictor.edge import PredictorServicer


def predictor_metrics(servicer: PredictorServicer) -> Iterable[Metric]:
    """What the predictor has done, and what its answers rest on."""
    counts = servicer.counts
    yield total("tidepipe_predictor_predictions", "Requests predicted.", counts.predicted)
    yield total("tidepipe_predictor_observations", "Finished answers learnt from.", counts.observed)
    yield total(
        "tidepipe_predictor_rejected_observations", "Observations that made no sense.", counts.rejected
    )
    yield gauge("tidepipe_predictor_window_observations", "Observations held now.", servicer.window)
