"""What a head is fitted to: answers with signals, as arrays and as the bytes that a training gets."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from predictor.training.bins import Flags, Indices
from predictor.training.weighting import targets, weights
from tidepipe_common.lengths.calibration import Ends
from tidepipe_common.lengths.distribution import Floats


@dataclass(frozen=True, slots=True)
class HeadSamples:
    """Answers with signals, oldest first; all arrays (n,), columns (n, COLUMNS).

    prompts: which prompt each is an answer to. weight: of each; alike answers to one prompt say less.
    """

    columns: Floats
    lengths: Floats
    censored: Flags
    ends: Ends
    prompts: Indices
    weight: Floats

    def chosen(self, which: Flags) -> HeadSamples:
        """Some of them."""
        return HeadSamples(
            self.columns[which],
            self.lengths[which],
            self.censored[which],
            self.ends.chosen(which),
            self.prompts[which],
            self.weight[which],
        )


def pack_samples(columns: NDArray[np.float32], lengths: Floats, ends: Ends, prompts: Indices) -> bytes:
    """For `read_samples`, in another process."""
    packed = BytesIO()
    np.savez(
        packed,
        columns=columns,
        lengths=lengths,
        cut=ends.cut,
        lost=ends.lost,
        limits=ends.limits,
        owners=ends.owners,
        prompts=prompts,
    )
    return packed.getvalue()


def read_samples(packed: bytes) -> HeadSamples:
    """What `pack_samples` made."""
    with np.load(BytesIO(packed), allow_pickle=False) as kept:
        lengths, cut = kept["lengths"], kept["cut"]
        _, prompts = np.unique(kept["prompts"], return_inverse=True)
        return HeadSamples(
            kept["columns"].astype(np.float64),
            lengths,
            cut,
            Ends(cut, kept["lost"], kept["limits"], kept["owners"]),
            prompts,
            weights(prompts, targets(lengths, cut)),
        )
