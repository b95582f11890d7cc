"""The window of newest answers, and the training of a challenger whenever enough new ones have come."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

from predictor.contest import CHALLENGER, CHAMPION, held_back, hold, is_due
from predictor.evaluation.champion import Champion
from predictor.versions import ModelVersions
from tidepipe.v1 import predictor_pb2
from tidepipe_common.errors import ModelError, TidePipeError
from tidepipe_common.lengths.shares import SharedMemory
from tidepipe_common.lengths.store import load_lengths, save_lengths
from tidepipe_common.settings.defaults import FIRST_TRAINING_AFTER

WINDOW = 8192
"""Answers kept, as serialized: some 400 bytes each; shared out among owners."""

log = structlog.get_logger()


class Learning:
    """Owns the window, the training process, and the folder of model versions."""

    def __init__(
        self, champion: Champion, versions: ModelVersions, first_after: int = FIRST_TRAINING_AFTER
    ) -> None:
        """first_after: answers before the first training."""
        self.trained = 0
        self.adopted = 0
        self.last_failure = ""
        self._champion = champion
        self._versions = versions
        self._first_after = first_after
        self._answers = SharedMemory[bytes](WINDOW)
        self._new = 0
        self._due = asyncio.Event()

    async def restore(self, given: Path | None) -> None:
        """Begin with the newest version that can be read, or the given model; with none if neither can."""
        for folder in (self._versions.current, given):
            if folder is None:
                continue
            try:
                self._champion.replace(await asyncio.to_thread(load_lengths, folder))
            except ModelError as error:
                self._fail(str(error))
            else:
                log.info("model loaded", version=self._champion.version, folder=str(folder))
                return

    def note(self, answers: Sequence[predictor_pb2.Observation]) -> None:
        """Sound observations, oldest first."""
        self._answers.extend(
            (one.SerializeToString() for one in answers),
            (one.features.prompt.owner_hash for one in answers),
        )
        self._new += len(answers)
        if is_due(self._new, len(self._answers), self._first_after):
            self._due.set()

    async def run(self) -> None:
        """Train when it is time, until cancelled. What goes wrong is logged and told by the status."""
        while True:
            await self._due.wait()
            self._due.clear()
            judging = held_back(self._new)
            self._new = 0
            try:
                await self._train(judging)
            except (TidePipeError, OSError, ValueError) as error:
                self._fail(str(error))

    async def _train(self, judging: int) -> None:
        number = await asyncio.to_thread(lambda: self._versions.next_number)
        folder = await asyncio.to_thread(self._versions.job_folder)
        try:
            # Copies, as answers come while a thread writes: whoever asks waits a tenth of a second at most.
            answers, champion = tuple(self._answers), self._champion.trained
            if champion is not None:
                await asyncio.to_thread(save_lengths, champion.copy(), folder / CHAMPION)
            packed = await asyncio.to_thread(_packed, answers)
            verdict = await hold("predictor.job", folder, packed, f"hazard/{number}", str(judging))
            self.trained += 1
            log.info(
                "challenger trained",
                better=verdict.better,
                champion=self._champion.version,
                champion_loss=round(verdict.champion, 3),
                challenger_loss=round(verdict.challenger, 3),
                standard_error=round(verdict.standard_error, 3),
            )
            if verdict.better:
                # Only what can be read again takes the champion's place, here and after a restart.
                challenger = await asyncio.to_thread(load_lengths, folder / CHALLENGER)
                await asyncio.to_thread(self._versions.adopt, folder / CHALLENGER, number)
                self._champion.replace(challenger)
                self.adopted += 1
            self.last_failure = ""
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _fail(self, reason: str) -> None:
        self.last_failure = reason
        log.warning("model not taken", reason=reason, answering=self._champion.version)


def _packed(answers: Sequence[bytes]) -> bytes:
    observations = [predictor_pb2.Observation.FromString(one) for one in answers]
    return predictor_pb2.ObserveRequest(observations=observations).SerializeToString()
