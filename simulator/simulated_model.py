"""The model of virtual time: its tokens say nothing but whether an output goes on, unless they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidepipe_common.types.plan import StepPlan
from workloads.content import ANSWER, OWN_PARTS, token_ids
from workloads.mixes import SimRequest

STOP, GO_ON = (1 << 32) - 1, ANSWER
"""What the model samples; the scheduler must have STOP, which is no token of any vocabulary, among its end
tokens."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """The token ids of a request that was served before. root: as a NewSequence's prefix_root."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    root: str = ""


def prompt_ids(request: SimRequest, index: int) -> tuple[int, ...]:
    """Token ids of a prompt: equal to others' where its content is; a prompt without content is like none."""
    return token_ids(request.content or ((OWN_PARTS + index, request.prompt_tokens),))


class SimulatedModel:
    """Samples what was expected of each request, whom it knows by its sampling seed."""

    def __init__(self) -> None:
        self._outputs: dict[int, int] = {}
        self._texts: dict[int, Sequence[int]] = {}
        # By a sequence's key: after so many tokens its last one is sampled; its prompt, and its text.
        self._last_at: dict[int, int] = {}
        self._told: dict[int, tuple[int, Sequence[int]]] = {}

    def expect(self, seed: int, output_tokens: int, text: Sequence[int] = ()) -> None:
        """The output of a request has so many tokens, and these ids if they matter."""
        self._outputs[seed] = output_tokens
        if text:
            self._texts[seed] = text

    def forget(self, seed: int) -> None:
        """A request has ended."""
        del self._outputs[seed]
        self._texts.pop(seed, None)

    def sample(self, plan: StepPlan) -> tuple[int, ...]:
        """A token for each row that wants one, decode's first."""
        last_at = self._last_at
        for key in plan.releases:
            last_at.pop(key, None)
            self._told.pop(key, None)
        for start in plan.starts:
            seed = start.sampling.seed
            assert seed is not None
            last_at[start.key] = start.prompt_tokens + self._outputs[seed] - 1
            if seed in self._texts:
                self._told[start.key] = start.prompt_tokens, self._texts[seed]
        decode = plan.decode
        if self._told:
            sampled = [
                self._token(key, position + 1)
                for key, position in zip(decode.keys, decode.positions, strict=True)
            ]
        else:
            sampled = [
                STOP if position + 1 >= last_at[key] else GO_ON
                for key, position in zip(decode.keys, decode.positions, strict=True)
            ]
        sampled += [self._token(row.key, row.first_position + row.count) for row in plan.listed if row.sample]
        return tuple(sampled)

    def _token(self, key: int, length: int) -> int:
        """Behind so many tokens, prompt and output."""
        if length >= self._last_at[key]:
            return STOP
        prompt, text = self._told.get(key, (0, ()))
        return text[length - prompt] if text else GO_ON
