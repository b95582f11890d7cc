"""Whose output's length the oracle was asked for, and how long it became."""

from __future__ import annotations

from controller.runtime.predictor_client import Features, LengthOracle, Predicted
from controller.scheduler.actions import Finish
from controller.scheduler.sequence import Sequence
from tidepipe_common.lengths.prompt import PromptFeatures
from tidepipe_common.types.sampling import FinishReason


class AskedLengths:
    """Asks for each sequence once, and lets the oracle learn from its end."""

    def __init__(self, oracle: LengthOracle, predicted: Predicted) -> None:
        """predicted: told of what needs no oracle."""
        self._oracle = oracle
        self._predicted = predicted
        self._features: dict[str, Features] = {}

    def ask(self, sequence: Sequence, prompt: PromptFeatures) -> None:
        """A sequence was taken; an answer comes soon, if there is one."""
        if sequence.sampling.ignore_eos and not sequence.sampling.stop_token_ids:
            # It ends at its limit; that says nothing of other answers.
            self._predicted(sequence.sequence_id, float(sequence.max_tokens), float(sequence.max_tokens))
            return
        features = Features(
            sequence.sequence_id,
            len(sequence.prompt),
            sequence.max_tokens,
            sequence.sampling.temperature,
            prompt,
            len(sequence.output),
        )
        self._features[sequence.sequence_id] = features
        self._oracle.ask(features)

    def ended(self, end: Finish) -> None:
        """An output ended; only if it stopped by itself is its length known."""
        features = self._features.pop(end.sequence_id, None)
        if features and end.reason is not FinishReason.ERROR:
            self._oracle.observe(features, end.output_tokens, censored=end.reason is not FinishReason.STOP)
