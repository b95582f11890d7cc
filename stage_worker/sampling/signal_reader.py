"""The length signals of prompts, made at the last stage with their first tokens.

A prompt's last hidden state, of which the next token is about to be chosen, also tells how long the answer
will be (ProD, arXiv:2604.07931). It is projected to few numbers by a fixed matrix of random signs, which
keeps distances (Achlioptas, 2003), needs no training, and is the same at every stage worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from tidepipe_common.types.length_signal import NUMBERS, LengthSignal, pack_signal
from tidepipe_common.types.plan import SequenceStart

PROJECTED = NUMBERS - 2
"""Numbers of the state. The others: the next token's entropy, and the likeliest one's log-probability."""
_NAME = b"tidepipe length signal 1"
"""Of the projection: another one is another signal."""


def projection(hidden: int) -> torch.Tensor:
    """Random signs over the root of `hidden`: float32 [hidden, PROJECTED]. States of length root(hidden) give
    numbers of about 1. From a hash, as random generators may change with their library's version."""
    count = hidden * PROJECTED
    drawn = hashlib.shake_256(_NAME + hidden.to_bytes(8, "little")).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(drawn, dtype=np.uint8), count=count)
    signs = bits.astype(np.float32) * 2.0 - 1.0
    return torch.from_numpy(signs.reshape(hidden, PROJECTED) / np.float32(hidden**0.5))


class SignalReader:
    """For the sequences that were started and have no token yet. Of one thread."""

    def __init__(self) -> None:
        self._prompts: dict[int, int] = {}
        self._projection: torch.Tensor | None = None

    def start(self, start: SequenceStart) -> None:
        """Begin a sequence, or begin it anew."""
        if start.wants_signal:
            self._prompts[start.key] = start.prompt_tokens
        else:
            self._prompts.pop(start.key, None)

    def release(self, key: int) -> None:
        """Forget a sequence."""
        self._prompts.pop(key, None)

    def due(self, keys: Sequence[int], next_positions: Sequence[int]) -> list[int]:
        """Rows that sample the first token of a sequence that wants its signal."""
        prompts = self._prompts
        if not prompts:
            return []
        return [row for row, key in enumerate(keys) if prompts.get(key) == next_positions[row]]

    def read(self, keys: Sequence[int], states: torch.Tensor, logits: torch.Tensor) -> list[LengthSignal]:
        """One signal per row. states: final hidden states [rows, hidden]; logits: [rows, vocabulary].

        Rows whose numbers are not finite have none.
        """
        if self._projection is None:
            self._projection = projection(states.shape[-1]).to(states.device)
        wide = states.float()
        wide = wide / wide.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
        likely = logits.float().log_softmax(-1)
        # Of a token that cannot come: 0, not 0 times infinity.
        entropy = -(likely.exp() * likely.clamp_min(-1e4)).sum(-1, keepdim=True)
        best = likely.amax(-1, keepdim=True)
        numbers = torch.cat([wide @ self._projection, entropy, best], dim=-1).tolist()
        packed = [pack_signal(row) for row in numbers]
        for key in keys:
            self._prompts.pop(key, None)
        return [LengthSignal(key, values) for key, values in zip(keys, packed, strict=True) if values]
