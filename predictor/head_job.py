"""`python -m predictor.head_job DIR`: trains a challenging head beside the service, at the lowest priority.

It reads samples (`pack_samples`, oldest first). DIR holds `champion/`, if there is one. It gets `challenger/`
if that is better on the newest answers, and `verdict.json` in any case.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from predictor.contest import CHALLENGER, CHAMPION, Verdict, judge
from predictor.evaluation.figures import pinball
from predictor.evaluation.signal_head import TOLD, TOLD_PLACES
from predictor.head_store import HEAD, load_head, save_head
from predictor.training.fit_head import fit_head
from predictor.training.head_samples import HeadSamples, read_samples
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.types.length_signal import NUMBERS


def compete(packed: bytes, folder: Path, model: str, version: str, held_back: int) -> Verdict:
    """Train on all answers but the newest, and compare on those: to prompts as they come, new ones or not."""
    samples = read_samples(packed)
    count = len(samples.lengths)
    newest = np.arange(count) >= count - held_back
    challenger = fit_head(samples.chosen(~newest), version)
    judged = samples.chosen(newest & ~samples.ends.lost)
    if (folder / CHAMPION / HEAD).exists():
        _, champion = load_head(folder / CHAMPION)
        before = champion.quantiles(judged.columns, judged.ends.limits, _whole(judged))[:, TOLD_PLACES]
    else:
        told = np.expm1(judged.columns[:, NUMBERS:])
        before = np.minimum(told, judged.ends.limits[:, None])
    after = challenger.quantiles(judged.columns, judged.ends.limits, _whole(judged))[:, TOLD_PLACES]
    levels = np.array(TOLD)
    old_loss = pinball(judged.lengths, before, levels).mean(axis=1)
    new_loss = pinball(judged.lengths, after, levels).mean(axis=1)
    verdict = Verdict.of(old_loss, new_loss)
    if verdict.better:
        # The answers that it was judged on calibrate it from now on.
        challenger.learn(judged.columns, judged.lengths, judged.ends)
        save_head(challenger, model, folder / CHALLENGER, verdict)
    return verdict


def _whole(samples: HeadSamples) -> Floats:
    return np.zeros(len(samples.lengths))


def main(arguments: Sequence[str]) -> int:
    """Arguments: folder, model, the challenger's version, answers held back. Exit code 0 with a verdict."""
    folder = Path(arguments[0])
    packed = sys.stdin.buffer.read()
    return judge(folder, lambda: compete(packed, folder, arguments[1], arguments[2], int(arguments[3])))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
