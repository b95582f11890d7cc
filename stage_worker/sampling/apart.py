"""A sampler whose failures end the sequences that cause them, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import structlog
import torch

from stage_worker.executors.protocol import PlanError
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.types.plan import RowError, SampledTokens, SequenceStart
from tidepipe_common.types.sampling import PositionLogprobs, TokenLogprob

MAX_DETAIL_CHARACTERS = 500
"""Of what is said of an error: it goes to the client."""

log = structlog.get_logger()


class StepSampler(Protocol):
    """What the last stage needs of `stage_worker.sampling.sampler.Sampler`."""

    def start(self, start: SequenceStart) -> None:
        """Begin a sequence."""
        ...

    def release(self, key: int) -> None:
        """Forget a sequence."""
        ...

    def sample(
        self, logits: torch.Tensor, keys: Sequence[int], next_positions: Sequence[int]
    ) -> SampledTokens:
        """Sample one token per row of `logits`; a call that raises has changed nothing."""
        ...


class NotNumbersError(Exception):
    """What the model computed for a sequence is NaN or infinite: a failure of its own, even if all share it.

    keys: the sequences concerned, if the caller does not know.
    """

    def __init__(self, what: str, keys: Sequence[int] = ()) -> None:
        """what: whose numbers, as the subject of a sentence."""
        self.keys = tuple(keys)
        super().__init__(
            f"the model's outputs are not numbers: {what} are NaN or infinite; look for broken values in the "
            "checkpoint or adapter, or compute in another --dtype"
        )


def row_error(key: int, error: Exception) -> RowError:
    """In words for whoever sent the request."""
    detail = " ".join(str(error).split())[:MAX_DETAIL_CHARACTERS] or type(error).__name__
    return RowError(key, detail, (error.param or "") if isinstance(error, InvalidRequestError) else None)


class ApartSampler:
    """Wraps a sampler. A sequence that failed is passed over until it is released."""

    def __init__(self, sampler: StepSampler) -> None:
        self._sampler = sampler
        self._failed: dict[int, RowError] = {}
        self._news: list[RowError] = []

    def start(self, start: SequenceStart) -> None:
        """Begin a sequence; if that fails, it fails alone."""
        self._failed.pop(start.key, None)
        try:
            self._sampler.start(start)
        except Exception as error:
            self._note(start.key, error)

    def release(self, key: int) -> None:
        """Forget a sequence."""
        self._failed.pop(key, None)
        self._sampler.release(key)

    def sample(
        self, logits: torch.Tensor, keys: Sequence[int], next_positions: Sequence[int]
    ) -> SampledTokens:
        """One token per row; those of rows that failed mean nothing.

        Raises what the sampler raises if no row can be named: a plan that makes no sense, or a failure of
        all rows alike, which is the device's rather than theirs. Not so for outputs that are no numbers: of a
        broken adapter's rows a step may have no other, and who has none of it must not pay with an epoch.
        """
        if self._failed:
            return self._by_row(logits, keys, next_positions)
        try:
            sampled = self._sampler.sample(logits, keys, next_positions)
        except PlanError:
            raise
        except Exception as error:
            known = len(self._failed)
            sampled = self._by_row(logits, keys, next_positions)
            alike = len(self._failed) - known == len(keys) and not isinstance(error, NotNumbersError)
            if alike and (len(keys) > 1 or isinstance(error, (RuntimeError, MemoryError))):
                raise
        for one in sampled.errors:
            self._failed[one.key] = one
        return sampled

    def tell(self, sampled: SampledTokens) -> SampledTokens:
        """The same, with all errors that were not told yet."""
        if not self._news:
            return sampled
        errors, self._news = (*self._news, *sampled.errors), []
        return SampledTokens(sampled.token_ids, sampled.logprobs, errors)

    def _by_row(
        self, logits: torch.Tensor, keys: Sequence[int], next_positions: Sequence[int]
    ) -> SampledTokens:
        """Each on its own: a token does not depend on what it is sampled beside."""
        token_ids: list[int] = []
        logprobs: list[PositionLogprobs | None] = []
        errors: list[RowError] = []
        for row, (key, position) in enumerate(zip(keys, next_positions, strict=True)):
            one = SampledTokens((0,))
            if key not in self._failed:
                try:
                    one = self._sampler.sample(logits[row : row + 1], [key], [position])
                except PlanError:
                    raise
                except Exception as error:
                    self._note(key, error)
            token_ids.extend(one.token_ids)
            logprobs.extend(one.logprobs or (None,))
            errors.extend(one.errors)
        filled: tuple[PositionLogprobs, ...] = ()
        if any(logprobs):
            nothing = PositionLogprobs(TokenLogprob(0, 0.0))
            filled = tuple(one or nothing for one in logprobs)
        return SampledTokens(tuple(token_ids), filled, tuple(errors))

    def _note(self, key: int, error: Exception) -> None:
        log.warning("a sequence cannot be sampled", key=key, reason=str(error)[:MAX_DETAIL_CHARACTERS])
        self._failed[key] = row_error(key, error)
        self._news.append(self._failed[key])
