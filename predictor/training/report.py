"""Trains, and writes model, card and pictures into one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from predictor.evaluation.figures import Figures, figures
from predictor.evaluation.floor import Knowable, knowable
from predictor.training.card import model_card
from predictor.training.fit import Fitted, Progress, fit
from predictor.training.pictures import draw_report
from predictor.training.trees import Settings
from tidepipe_common.errors import ConfigError
from tidepipe_common.lengths.request import LEVELS, Observation
from tidepipe_common.lengths.store import save_lengths
from tidepipe_common.lengths.survival import censored_quantiles

VERSION = "hazard/1"
LEAST_PROMPTS = 30
"""With several answers each, that say what can be known at all."""
LEAST_ANSWERS_EACH = 4


def train_into(
    folder: Path, observations: Sequence[Observation], settings: Settings, progress: Progress
) -> tuple[dict[str, Figures], list[str]]:
    """Figures by name, and remarks for the user. Errors as `fit` and `save_lengths`."""
    fitted = fit(observations, VERSION, settings, progress)
    rows = compared(fitted, observations[-fitted.model.answers :])
    save_lengths(fitted.model, folder)
    remarks = []
    pictures: list[str] = []
    try:
        pictures = [path.stem for path in draw_report(fitted.model, rows, folder)]
    except ConfigError as error:
        remarks.append(str(error))
    known = what_prompts_tell(fitted, observations[-fitted.model.answers :])
    card = model_card(fitted.model, observations, rows, pictures, int(fitted.prompts.max()) + 1, known)
    report: dict[str, object] = {name: row.as_json() for name, row in rows.items()}
    if known is not None:
        report["what prompts tell"] = {**asdict(known), "share": known.share}
    try:
        (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the report into {folder}: {error.strerror or error}") from error
    return rows, remarks


def compared(fitted: Fitted, observations: Sequence[Observation]) -> dict[str, Figures]:
    """The model on held-out folds, with and without calibration, and the best that ignores the request."""
    limits = np.array([one.features.limit for one in observations])[:, None]
    lengths = np.array([float(one.output_tokens) for one in observations])
    censored = np.array([one.censored for one in observations], dtype=np.bool_)
    same = censored_quantiles(lengths, censored, LEVELS)
    same = np.where(np.isfinite(same), same, lengths.max())
    return {
        "model": figures(observations, fitted.held_out, LEVELS),
        "uncalibrated": figures(observations, fitted.held_out_raw, LEVELS),
        "quantiles of all answers": figures(observations, np.minimum(same[None, :], limits), LEVELS),
    }


def what_prompts_tell(fitted: Fitted, observations: Sequence[Observation]) -> Knowable | None:
    """The model beside the floor; None where too few prompts have several answers."""
    middle = LEVELS.index(0.5)
    places: dict[int, list[int]] = {}
    for place, (one, prompt) in enumerate(zip(observations, fitted.prompts.tolist(), strict=True)):
        if not one.lost:
            places.setdefault(prompt, []).append(place)
    several = [np.array(one) for one in places.values() if len(one) >= LEAST_ANSWERS_EACH]
    if len(several) < LEAST_PROMPTS:
        return None
    lengths = np.array([float(one.output_tokens) for one in observations])
    templates = [observations[int(one[0])].features.prompt.template for one in several]
    medians = [fitted.held_out[one, middle] for one in several]
    return knowable([lengths[one] for one in several], medians, templates)
