"""When a challenger is trained, how it is judged, and what the service and its training process tell each
other: the same for the model of lengths and for heads on signals."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from predictor.job_process import run_job
from tidepipe_common.errors import ModelError, TidePipeError
from tidepipe_common.lengths.distribution import Floats

CHAMPION, CHALLENGER, VERDICT = "champion", "challenger", "verdict.json"
"""Names in a job's folder."""
NEXT_AFTER_SHARE = 0.25
"""New answers that are due for another training: so many of those that are kept."""
MOST_HELD_BACK = 1000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Pinball losses on the held-back answers, tokens; standard_error: of their difference.

    failure: why there is no challenger; empty if there is.
    """

    better: bool
    champion: float = 0.0
    challenger: float = 0.0
    standard_error: float = 0.0
    failure: str = ""

    @classmethod
    def of(cls, before: Floats, after: Floats) -> Verdict:
        """By the losses of champion and challenger on the same answers, (n,): better beyond the error."""
        gain = before - after
        error = float(gain.std() / max(len(gain), 1) ** 0.5)
        better = len(gain) > 0 and float(gain.mean()) > error
        return cls(better, float(before.mean()), float(after.mean()), error)


def is_due(new: int, kept: int, first_after: int) -> bool:
    """Have enough answers come since the last training? kept: all that there are."""
    return new >= max(first_after, NEXT_AFTER_SHARE * kept)


def held_back(new: int) -> int:
    """Of the new answers so many judge, and train nobody."""
    return min(new // 2, MOST_HELD_BACK)


async def hold(module: str, folder: Path, samples: bytes, *arguments: str) -> Verdict:
    """The verdict of a training process (`run_job`). ModelError if there is none."""
    await run_job(module, folder, samples, *arguments)
    verdict = Verdict(**json.loads(await asyncio.to_thread((folder / VERDICT).read_bytes)))
    if verdict.failure:
        raise ModelError(verdict.failure)
    return verdict


def judge(folder: Path, compete: Callable[[], Verdict]) -> int:
    """The training process: at the lowest priority, with a verdict in any case. The exit code."""
    os.nice(19)
    try:
        verdict = compete()
    except TidePipeError as error:
        verdict = Verdict(better=False, failure=str(error))
    (folder / VERDICT).write_text(json.dumps(asdict(verdict)), encoding="utf-8")
    return 0
