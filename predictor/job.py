"""`python -m predictor.job DIR`: trains a challenger beside the service, at the lowest priority.

It reads answers (an ObserveRequest, oldest first). DIR holds `champion/`, if there is a trained one. It gets
`challenger/` if that is better on the newest answers, which neither of them learned from, and `verdict.json`
in any case. A process of its own, so that the service keeps answering, whatever happens here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from predictor.api.wire import observation_from_wire
from predictor.contest import CHALLENGER, CHAMPION, Verdict, judge
from predictor.evaluation.figures import pinball
from predictor.evaluation.running_quantile import RunningQuantile
from predictor.training.fit import fit
from predictor.training.trees import Settings
from tidepipe.v1 import predictor_pb2
from tidepipe_common.lengths.request import LEVELS
from tidepipe_common.lengths.store import FACTS, load_lengths, save_lengths


def compete(answers: bytes, folder: Path, version: str, held_back: int) -> Verdict:
    """Train on all answers but the newest, and compare on those. Errors as `fit` and `load_lengths`."""
    message = predictor_pb2.ObserveRequest.FromString(answers)
    observations = [observation_from_wire(one) for one in message.observations]
    older, newest = observations[:-held_back], observations[-held_back:]
    parent = os.getppid()

    def go_on(*_: object) -> None:
        if os.getppid() != parent:
            raise SystemExit("the service is gone")

    challenger = fit(older, version, Settings(threads=1), go_on).model
    known = [one for one in newest if not one.lost]
    requests = [one.features for one in known]
    lengths = np.array([float(one.output_tokens) for one in known])
    levels = np.array(LEVELS)
    if (folder / CHAMPION / FACTS).exists():
        before = load_lengths(folder / CHAMPION).quantiles(requests)
    else:
        running = RunningQuantile()
        running.observe(older)
        before = np.array([one.tokens for one in running.predict(requests)])
    old_loss = pinball(lengths, before, levels).mean(axis=1)
    new_loss = pinball(lengths, challenger.quantiles(requests), levels).mean(axis=1)
    verdict = Verdict.of(old_loss, new_loss)
    if verdict.better:
        # The answers that it was judged on calibrate it from now on.
        challenger.learn(newest)
        save_lengths(challenger, folder / CHALLENGER)
    return verdict


def main(arguments: Sequence[str]) -> int:
    """Arguments: folder, the challenger's version, answers held back. Exit code 0 with a verdict."""
    folder = Path(arguments[0])
    answers = sys.stdin.buffer.read()
    return judge(folder, lambda: compete(answers, folder, arguments[1], int(arguments[2])))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
