"""The predictor's metrics (docs/reference/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric

from predictor.api.servicer import PredictorServicer
from tidepipe_common.telemetry.telemetry import gauge, total


def predictor_metrics(servicer: PredictorServicer) -> Iterable[Metric]:
    """What the predictor has done, and what its answers rest on."""
    counts = servicer.counts
    yield total("tidepipe_predictor_predictions", "Requests predicted.", counts.predicted)
    yield total("tidepipe_predictor_observations", "Finished answers learnt from.", counts.observed)
    yield total(
        "tidepipe_predictor_rejected_observations", "Observations that made no sense.", counts.rejected
    )
    yield gauge("tidepipe_predictor_window_observations", "Observations held now.", servicer.champion.window)
    for name, share in zip(("p50", "p90"), servicer.champion.coverage, strict=True):
        yield gauge(
            "tidepipe_predictor_coverage", "Newest answers not longer than predicted.", share, level=name
        )
    learning = servicer.learning
    yield total("tidepipe_predictor_models_trained", "Challengers trained.", learning.trained)
    yield total("tidepipe_predictor_models_adopted", "Challengers that were better.", learning.adopted)
    heads = servicer.heads
    yield total("tidepipe_predictor_refined", "Predictions by a head on a length signal.", heads.refined)
    yield total("tidepipe_predictor_heads_trained", "Challenging heads trained.", heads.trained)
    yield total("tidepipe_predictor_heads_adopted", "Challenging heads that were better.", heads.adopted)
    yield gauge("tidepipe_predictor_signal_samples", "Length signals held to train on.", heads.samples)
    yield total("tidepipe_predictor_drifts", "Changes of the lengths noticed.", servicer.champion.drifts)
