"""A head's file: JSON, whole or not at all, with a card beside it that says what it gains."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from predictor.contest import Verdict
from predictor.evaluation.signal_head import COLUMNS, SignalHead
from tidepipe_common.errors import ModelError
from tidepipe_common.lengths.calibration import KEPT, LevelLists
from tidepipe_common.regular_files import read_bytes

FORMAT = 1
HEAD, CARD = "head.json", "MODEL_CARD.md"
MAX_BYTES = 1 << 20
_Numbers = list[float]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    format: int
    model: str = Field(min_length=1, max_length=200)
    version: str = Field(max_length=200)
    answers: int = Field(ge=0)
    edges: _Numbers = Field(min_length=2, max_length=1024)
    base: _Numbers = Field(min_length=1, max_length=1024)
    tail_rate: float = Field(gt=0)
    mean: _Numbers = Field(min_length=COLUMNS, max_length=COLUMNS)
    scale: _Numbers = Field(min_length=COLUMNS, max_length=COLUMNS)
    weights: _Numbers = Field(min_length=COLUMNS, max_length=COLUMNS)
    reached: _Numbers = Field(min_length=1, max_length=KEPT)
    reached_cut: list[bool]
    reached_lost: list[bool]
    reached_limit: list[int]


def head_folder(state: Path, model: str) -> Path:
    """Where the head of a model lies."""
    return state / "heads" / hashlib.sha256(model.encode()).hexdigest()[:16]


def save_head(head: SignalHead, model: str, folder: Path, verdict: Verdict | None = None) -> None:
    """Readers find the old one or the new one. ModelError if it cannot be written."""
    kept = head.calibration.lists()
    facts = _Facts(
        format=FORMAT,
        model=model,
        version=head.version,
        answers=head.answers,
        edges=head.edges.tolist(),
        base=head.base.tolist(),
        tail_rate=head.tail_rate,
        mean=head.mean.tolist(),
        scale=head.scale.tolist(),
        weights=head.weights.tolist(),
        reached=kept.reached,
        reached_cut=kept.cut,
        reached_lost=kept.lost,
        reached_limit=kept.limits,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{HEAD}"
        draft.write_text(facts.model_dump_json(), encoding="utf-8")
        draft.replace(folder / HEAD)
        if verdict is not None:
            (folder / CARD).write_text(_card(head, model, verdict), encoding="utf-8")
    except OSError as error:
        raise ModelError(f"cannot write the head {folder}: {error.strerror or error}") from error


def load_head(folder: Path) -> tuple[str, SignalHead]:
    """The model that it is of, and the head. ModelError if it is missing, damaged, or of another version."""
    path = folder / HEAD
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path} is larger than {MAX_BYTES >> 20} MiB: not a head")
        facts = _Facts.model_validate_json(read_bytes(path))
    except OSError as error:
        raise ModelError(f"cannot read the head {path}: {error.strerror or error}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ModelError(f"{path} is damaged: {where} {problem['msg']}") from error
    edges, scale = np.array(facts.edges), np.array(facts.scale)
    kept = LevelLists(facts.reached, facts.reached_cut, facts.reached_lost, facts.reached_limit)
    if facts.format != FORMAT:
        raise ModelError(f"{path} comes from another version of TidePipe")
    sound = edges[0] == 0 and (np.diff(edges) > 0).all() and (scale > 0).all()
    if not (kept.alike and sound and len(facts.base) == len(edges) - 1):
        raise ModelError(f"{path} is damaged: its numbers do not belong together")
    head = SignalHead(
        facts.version,
        facts.answers,
        edges,
        np.array(facts.base),
        facts.tail_rate,
        np.array(facts.mean),
        scale,
        np.array(facts.weights),
        kept.levels(),
    )
    return facts.model, head


def _card(head: SignalHead, model: str, verdict: Verdict) -> str:
    gain = 1.0 - verdict.challenger / verdict.champion if verdict.champion else 0.0
    return "\n".join(
        [
            "# Head on length signals",
            "",
            f"`{head.version}`, of the model `{model}`, trained on {head.answers} answers: what the model's "
            "state behind a prompt says of the answer's length, beside what the request says.",
            "",
            "Pinball loss (P50 and P90) on the newest answers, which it had not seen: "
            f"{verdict.challenger:.2f} tokens; of what answered before {verdict.champion:.2f} (standard "
            f"error of the difference {verdict.standard_error:.2f}). It gains {gain:.1%}.",
            "",
            "It knows signals of this model only, and holds weights and levels, neither prompts nor signals.",
            "",
        ]
    )
