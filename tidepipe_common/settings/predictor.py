"""The settings of a length predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from tidepipe_common.numerals import MAX_COUNT
from tidepipe_common.settings import defaults, fields
from tidepipe_common.settings.definition import setting
from tidepipe_common.settings.service import ServiceSettings


class PredictorSettings(ServiceSettings):
    """Predicts how long answers will be, and learns it from those that have ended."""

    service: ClassVar[str] = "predictor"

    window: Annotated[int, setting("Newest observations kept.", ge=defaults.LEAST_WINDOW, le=MAX_COUNT)] = (
        defaults.WINDOW
    )
    model: fields.LengthModel | None = None
    state: Annotated[
        Annotated[Path, fields.NAMED] | None,
        setting(
            "Models learnt here; they survive a restart.",
            metavar="DIR",
            otherwise="a temporary folder",
            strict=False,
        ),
    ] = None
    signal_samples: Annotated[
        int,
        setting(
            "Length signals kept in memory for training, of each model; 0: none are kept, and none are used.",
            ge=0,
            le=MAX_COUNT,
        ),
    ] = defaults.SIGNAL_SAMPLES
    # Half of them are held back.
    train_after: Annotated[
        int,
        setting(
            "Answers before the first training beside the service.",
            ge=2 * defaults.LEAST_ANSWERS,
            le=MAX_COUNT,
        ),
    ] = defaults.FIRST_TRAINING_AFTER
