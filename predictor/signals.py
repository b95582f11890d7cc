"""Heads on length signals: one for each served model, trained beside the service on what was served."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from predictor.contest import CHALLENGER, CHAMPION, held_back, hold, is_due
from predictor.evaluation.champion import Champion
from predictor.evaluation.drift import SPANS
from predictor.evaluation.signal_head import SignalHead, head_columns, told_columns
from predictor.head_store import head_folder, load_head, save_head
from predictor.training.head_samples import pack_samples
from tidepipe_common.errors import ModelError, TidePipeError
from tidepipe_common.lengths.calibration import Ends
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.request import LEVELS, LengthPrediction, Observation, RequestFeatures
from tidepipe_common.lengths.shares import SharedMemory

MOST_MODELS = 8
"""Whose samples and heads are in memory; those longest unused go first."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Sample:
    """columns: of the head, float32: the signal itself. prompt: hash of what it was made of."""

    columns: NDArray[np.float32]
    observation: Observation
    prompt: int


@dataclass(slots=True)
class _Model:
    """One served model. new: samples since its last training. trained: trainings."""

    samples: SharedMemory[_Sample]
    head: SignalHead | None = None
    new: int = 0
    trained: int = 0


class SignalHeads:
    """Answers for requests that bring a signal, from the head of its model; for all others, and before there
    is a head, from the champion. Samples live in memory alone.

    trained, adopted: challenging heads, and those that took a champion's place.
    """

    def __init__(self, champion: Champion, state: Path, kept: int, first_after: int) -> None:
        """state: folder where heads survive a restart. kept: samples of each model; 0 keeps and trains none.

        first_after: samples before the first training.
        """
        self.trained = 0
        self.adopted = 0
        self.refined = 0
        self.last_failure = ""
        self._champion = champion
        self._state = state
        self._kept = kept
        self._first_after = first_after
        self._models: OrderedDict[str, _Model] = OrderedDict()
        self._due = asyncio.Event()

    @property
    def samples(self) -> int:
        """Held now, of all models."""
        return sum(len(one.samples) for one in self._models.values())

    async def restore(self) -> None:
        """Take the heads that can be read, if signals are used at all."""
        if not self._kept:
            return
        for folder in (await asyncio.to_thread(lambda: sorted(self._state.glob("heads/*"))))[:MOST_MODELS]:
            try:
                model, head = await asyncio.to_thread(load_head, folder)
            except ModelError as error:
                self._fail(str(error))
            else:
                self._model(model).head = head

    def predict(self, requests: Sequence[RequestFeatures]) -> list[LengthPrediction]:
        """One for each, in their order."""
        by_model: dict[str, list[int]] = {}
        asked = list(requests)
        for place, one in enumerate(requests):
            if one.signal and (known := self._models.get(one.model)) is not None and known.head is not None:
                by_model.setdefault(one.model, []).append(place)
                # What the head is told is of the whole answer.
                asked[place] = replace(one, generated_tokens=0)
        predictions = self._champion.predict(asked)
        for model, places in by_model.items():
            chosen = [requests[place] for place in places]
            head = self._model(model).head
            assert head is not None
            told = told_columns([predictions[place].tokens for place in places])
            limits = np.array([one.limit for one in chosen])
            generated = np.array([float(one.generated_tokens) for one in chosen])
            columns = head_columns([one.signal for one in chosen], told)
            self.refined += len(chosen)
            owners = np.array([one.prompt.owner for one in chosen], dtype=np.int64)
            found = head.quantiles(columns, limits, generated, owners).tolist()
            for place, row in zip(places, found, strict=True):
                predictions[place] = LengthPrediction(LEVELS, tuple(row))
        return predictions

    def observe(self, observations: Sequence[Observation]) -> None:
        """Answers that ended, oldest first: they calibrate heads and champion, and are kept as samples."""
        with_signal = [one for one in observations if one.features.signal]
        if self._kept and with_signal:
            # Before the champion hears how long they were.
            columns = self._columns([one.features for one in with_signal])
            for model in dict.fromkeys(one.features.model for one in with_signal):
                places = [i for i, one in enumerate(with_signal) if one.features.model == model]
                self._note(model, columns[places], [with_signal[place] for place in places])
        drifts = self._champion.drifts
        self._champion.observe(observations)
        if self._champion.drifts != drifts:
            for known in self._models.values():
                if known.head is not None:
                    known.head.calibration.keep_newest(SPANS[0])

    def _note(self, model: str, columns: Floats, observations: Sequence[Observation]) -> None:
        known = self._model(model)
        if known.head is not None:
            known.head.learn(columns, _lengths(observations), Ends.of(observations))
        known.samples.extend(
            (
                _Sample(row.astype(np.float32), one, _prompt(one.features))
                for row, one in zip(columns, observations, strict=True)
            ),
            (one.features.prompt.owner for one in observations),
        )
        known.new += len(observations)
        if self._is_due(known):
            self._due.set()

    def _is_due(self, known: _Model) -> bool:
        return is_due(known.new, len(known.samples), self._first_after)

    def _columns(self, requests: Sequence[RequestFeatures]) -> Floats:
        whole = [replace(one, generated_tokens=0) for one in requests]
        told = told_columns([one.tokens for one in self._champion.predict(whole)])
        return head_columns([one.signal for one in requests], told)

    def _model(self, name: str) -> _Model:
        known = self._models.get(name)
        if known is None:
            known = self._models[name] = _Model(SharedMemory(self._kept))
            if len(self._models) > MOST_MODELS:
                self._models.popitem(last=False)
        self._models.move_to_end(name)
        return known

    async def run(self) -> None:
        """Train when it is time, until cancelled. What goes wrong is logged and told by the status."""
        while True:
            await self._due.wait()
            self._due.clear()
            for name, known in list(self._models.items()):
                if self._is_due(known):
                    try:
                        await self._train(name, known)
                    except (TidePipeError, OSError, ValueError) as error:
                        self._fail(str(error))

    async def _train(self, name: str, known: _Model) -> None:
        judging = held_back(known.new)
        known.new = 0
        samples, champion = tuple(known.samples), known.head
        version = f"head/{known.trained + 1}"
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="job-", dir=self._state))
        try:
            if champion is not None:
                await asyncio.to_thread(save_head, champion.copy(), name, folder / CHAMPION)
            packed = await asyncio.to_thread(_packed, samples)
            verdict = await hold("predictor.head_job", folder, packed, name, version, str(judging))
            self.trained += 1
            known.trained += 1
            log.info(
                "challenging head trained",
                model=name[:16],
                better=verdict.better,
                champion_loss=round(verdict.champion, 3),
                challenger_loss=round(verdict.challenger, 3),
                standard_error=round(verdict.standard_error, 3),
            )
            if verdict.better:
                _, head = await asyncio.to_thread(load_head, folder / CHALLENGER)
                await asyncio.to_thread(save_head, head, name, head_folder(self._state, name), verdict)
                known.head = head
                self.adopted += 1
            self.last_failure = ""
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _fail(self, reason: str) -> None:
        self.last_failure = reason
        log.warning("head not taken", reason=reason)


def _lengths(observations: Sequence[Observation]) -> Floats:
    return np.array([float(one.output_tokens) for one in observations])


def _prompt(features: RequestFeatures) -> int:
    """Equal for answers to one prompt: by its text's numbers, else by the signal."""
    prompt = features.prompt
    told = (prompt.dense, prompt.buckets, prompt.template) if prompt.dense else features.signal
    return hash((features.prompt_tokens, told))


def _packed(samples: Sequence[_Sample]) -> bytes:
    observations = [one.observation for one in samples]
    columns = np.stack([one.columns for one in samples])
    prompts = np.array([one.prompt for one in samples], dtype=np.int64)
    return pack_samples(columns, _lengths(observations), Ends.of(observations), prompts)
