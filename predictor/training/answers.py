"""Finished answers as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from predictor.training.bins import Flags, Indices
from predictor.training.weighting import targets, weights
from predictor.training.words import WordTable
from tidepipe_common.lengths.calibration import Ends
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.hazard import request_rows
from tidepipe_common.lengths.recent import RecentLengths
from tidepipe_common.lengths.request import Observation, RequestFeatures


@dataclass(frozen=True, slots=True)
class Answers:
    """Observations in the order in which they came; all arrays (n,), rows (n, columns).

    target: logarithm of the length, for the words' regression. prompts: number of the prompt that each is an
    answer to: several answers to one are joined, as what is learned of a prompt must hold for others.
    weight: of each answer; those to one prompt say less of prompts the more they are alike.
    """

    rows: Floats
    words: WordTable
    lengths: Floats
    censored: Flags
    ends: Ends
    target: Floats
    prompts: Indices
    weight: Floats

    @classmethod
    def of(cls, observations: Sequence[Observation], recent: RecentLengths) -> Answers:
        """recent: empty; afterwards it knows all of them. Each row sees those before it only."""
        requests = [one.features for one in observations]
        history = []
        for one in observations:
            history.append(recent.numbers(one.features))
            recent.note(one)
        lengths = np.array([float(one.output_tokens) for one in observations])
        censored = np.array([one.censored for one in observations], dtype=np.bool_)
        target = targets(lengths, censored)
        prompts = _prompts(requests)
        return cls(
            rows=request_rows(requests, history),
            words=WordTable.of(requests),
            lengths=lengths,
            censored=censored,
            ends=Ends.of(observations),
            target=target,
            prompts=prompts,
            weight=weights(prompts, target),
        )


def _prompts(requests: Sequence[RequestFeatures]) -> Indices:
    """Equal numbers for equal prompts; those without text are each of its own."""
    numbers: dict[object, int] = {}
    found = []
    for place, one in enumerate(requests):
        key = (one.prompt.dense, one.prompt.buckets, one.prompt.template) if one.prompt.dense else place
        found.append(numbers.setdefault(key, len(numbers)))
    return np.array(found, dtype=np.int64)
