"""A model's folder: `model.json` and `trees.txt` (LightGBM's text). Whole or not at all; no pickle."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidepipe_common.errors import ModelError
from tidepipe_common.lengths.booster import lightgbm
from tidepipe_common.lengths.calibration import LevelLists
from tidepipe_common.lengths.hazard import COLUMNS, HazardModel
from tidepipe_common.lengths.prompt import BUCKETS, VERSION
from tidepipe_common.lengths.recent import MAX_KEYS, MEMORY, RecentLengths
from tidepipe_common.lengths.trained import TrainedLengths
from tidepipe_common.regular_files import read_text

FORMAT = 2
FACTS, TREES, CURRENT = "model.json", "trees.txt", "current"
MAX_BYTES = 64 * 2**20

Finite = Field(allow_inf_nan=False)


class _Made(BaseModel):
    """By which version a model.json was written."""

    model_config = ConfigDict(extra="ignore", strict=True)

    format: int
    prompt_version: int
    columns: list[str]

    @property
    def ours(self) -> bool:
        return self == _Made(format=FORMAT, prompt_version=VERSION, columns=list(COLUMNS))


class _Facts(BaseModel):
    """model.json."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int
    prompt_version: int
    version: str = Field(max_length=200)
    answers: int = Field(ge=0)
    columns: list[str]
    edges: list[float] = Field(min_length=2, max_length=1024)
    base: list[float] = Field(min_length=1, max_length=1024)
    tail_rate: float = Field(gt=0, allow_inf_nan=False)
    words: list[float] = Field(min_length=BUCKETS, max_length=BUCKETS)
    rarity: list[float] = Field(min_length=BUCKETS, max_length=BUCKETS)
    words_mean: float
    reached: list[float] = Field(min_length=1)
    reached_cut: list[bool] = Field(min_length=1)
    reached_lost: list[bool] = Field(min_length=1)
    reached_limit: list[int] = Field(min_length=1)
    recent: list[tuple[str, Annotated[list[Annotated[float, Finite]], Field(max_length=MEMORY)]]] = Field(
        max_length=MAX_KEYS
    )
    trees_sha256: str


def save_lengths(model: TrainedLengths, folder: Path) -> None:
    """Write the model so that readers find the old one, the new one, or none; ModelError if that fails."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            write_files(model, draft)
            if folder.exists():
                # A folder cannot take another one's place at once: file by file, facts last, digest inside.
                for name in (TREES, FACTS):
                    (draft / name).replace(folder / name)
            else:
                draft.chmod(0o755)
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"cannot write the length model {folder}: {error.strerror or error}") from error


def write_files(model: TrainedLengths, folder: Path) -> None:
    """model.json and trees.txt into an existing folder."""
    hazard = model.hazard
    trees = hazard.booster.model_to_string()
    kept = model.calibration.lists()
    facts = _Facts(
        format=FORMAT,
        prompt_version=VERSION,
        version=model.version,
        answers=model.answers,
        columns=list(COLUMNS),
        edges=hazard.edges.tolist(),
        base=hazard.base.tolist(),
        tail_rate=hazard.tail_rate,
        words=[float(f"{weight:.5g}") for weight in hazard.words],
        rarity=[float(f"{weight:.4g}") for weight in hazard.rarity],
        words_mean=hazard.words_mean,
        reached=kept.reached,
        reached_cut=kept.cut,
        reached_lost=kept.lost,
        reached_limit=kept.limits,
        recent=model.recent.entries(),
        trees_sha256=hashlib.sha256(trees.encode()).hexdigest(),
    )
    (folder / TREES).write_text(trees, encoding="utf-8")
    (folder / FACTS).write_text(facts.model_dump_json(), encoding="utf-8")


def load_lengths(folder: Path) -> TrainedLengths:
    """A model that `save_lengths` wrote, or the current one of a folder of versions.

    ModelError if it is missing, damaged, of another version, or LightGBM cannot be loaded.
    """
    if not (folder / FACTS).exists() and (folder / CURRENT).is_dir():
        folder = folder / CURRENT
    text = _read(folder / FACTS)
    try:
        if not _Made.model_validate_json(text).ours:
            raise _unfit(folder, "comes from another version of TidePipe")
        facts = _Facts.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ModelError(f"{folder / FACTS} is damaged: {where} {problem['msg']}") from error
    trees = _read(folder / TREES)
    kept = LevelLists(facts.reached, facts.reached_cut, facts.reached_lost, facts.reached_limit)
    _check(folder, facts, kept, trees)
    try:
        booster = lightgbm().Booster(model_str=trees)
        columns = int(booster.num_feature())
    except Exception as error:  # LightGBM raises its own kind, and ValueError
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{folder / TREES} is damaged: {error}") from error
    if columns != len(COLUMNS):
        raise ModelError(f"{folder / TREES} has {columns} columns instead of {len(COLUMNS)}")
    hazard = HazardModel(
        edges=np.array(facts.edges),
        base=np.array(facts.base),
        tail_rate=facts.tail_rate,
        words=np.array(facts.words),
        rarity=np.array(facts.rarity),
        words_mean=facts.words_mean,
        booster=booster,
    )
    return TrainedLengths(facts.version, facts.answers, hazard, kept.levels(), RecentLengths(facts.recent))


def _unfit(folder: Path, why: str) -> ModelError:
    return ModelError(f"the length model {folder} {why}; train it again: tidepipe predictor train")


def _check(folder: Path, facts: _Facts, kept: LevelLists, trees: str) -> None:
    if hashlib.sha256(trees.encode()).hexdigest() != facts.trees_sha256:
        raise _unfit(folder, f"is damaged: {TREES} is not the file that {FACTS} belongs to")
    edges = np.array(facts.edges)
    numbers = [*facts.edges, *facts.base, *facts.words, *facts.rarity, *facts.reached, facts.words_mean]
    if not np.isfinite(numbers).all() or edges[0] != 0 or (np.diff(edges) <= 0).any():
        raise _unfit(folder, f"is damaged: {FACTS} has impossible numbers")
    if len(facts.base) != len(edges) - 1 or not kept.alike:
        raise _unfit(folder, f"is damaged: {FACTS} has lists of different lengths")


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path} is larger than {MAX_BYTES >> 20} MiB: not a length model")
        return read_text(path)
    except OSError as error:
        raise ModelError(f"cannot read the length model {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is damaged: not text") from error
