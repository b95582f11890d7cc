"""The predictor's client: how long outputs will be, with a fallback at once if it is down or slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

import grpc
import numpy as np
import structlog

from controller.scheduler.actions import Finish
from controller.scheduler.sequence import Sequence
from tidepipe.v1 import predictor_pb2, predictor_pb2_grpc
from tidepipe.v1.predictor_pb2 import RequestFeatures
from tidepipe_common.codec.numbers import rising
from tidepipe_common.codec.prompt import prompt_to_wire
from tidepipe_common.lengths.prompt import PromptFeatures
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.types.length_signal import signal_fault
from tidepipe_common.types.sampling import FinishReason

PREDICT_TIMEOUT_S = 0.1
OBSERVE_TIMEOUT_S = 1.0
MAX_QUEUED = 16_384
BATCH = 256
FALLBACK_WINDOW = 512
FALLBACK_LEAST = 16
MOST_LEVELS = 64
"""Of one prediction: what is answered is read on the event loop."""
SILENCE_S = 5.0
"""After a failure the predictor is left alone for this long."""

log = structlog.get_logger()


BEHIND_A_THOUGHT = 0x5EED_0A15
"""In the hash of a prompt's template: what is asked is how long the answer behind the thought will be."""

REFRESH_EVERY = 64
"""Output tokens after which a sequence's prediction is asked for anew, at least; and always half as many
again as at the last time: what a few tokens tell of a long answer is little."""
REFRESH_S = 0.5
"""Between looks at who has got so far."""

Predicted = Callable[[str, float, float, int], None]
"""(sequence id, median, 90th percentile, output tokens that it had when asked), tokens."""


@dataclass(slots=True)
class _Growing:
    """Of a sequence that runs. given: output tokens that it came with. refresh_at: with which its prediction
    is asked for anew."""

    sequence: Sequence
    given: int
    refresh_at: int


@dataclass(slots=True)
class _Thought:
    """Of a sequence that may be thinking. ends: tokens, each of which ends a thought. tokens: so far."""

    ends: frozenset[int]
    tokens: int


@dataclass(slots=True)
class _Behind:
    """Of a sequence that answers. tokens: of its thought. whole: what was asked when it began."""

    tokens: int
    whole: RequestFeatures


class LengthOracle:
    """Predictions in, observations out; never waits, never fails. Asks for each sequence when it comes, when
    the model's length signal of its prompt is there, as it grows, and when its thought has ended; lets the
    predictor learn from its end.

    A signal lives as long as its sequence, and until its end is told.

    fallbacks: predictions that the fallback gave. observations_lost: ends that the predictor never heard of.
    signals, refreshed: asked for with a signal that had come; asked for because it grew. bad_signals: that
    stages told, and that are none.
    """

    def __init__(self, address: str | None, predicted: Predicted) -> None:
        self.fallbacks = 0
        self.observations_lost = 0
        self.signals = 0
        self.bad_signals = 0
        self.refreshed = 0
        self._address = address
        self._predicted = predicted
        self._running: dict[str, RequestFeatures] = {}
        self._thinking: dict[str, _Thought] = {}
        self._behind: dict[str, _Behind] = {}
        self._growing: dict[str, _Growing] = {}
        self._asked: asyncio.Queue[RequestFeatures] = asyncio.Queue(MAX_QUEUED)
        self._seen: deque[tuple[RequestFeatures, int, bool]] = deque(maxlen=MAX_QUEUED)
        self._recent: deque[int] = deque(maxlen=FALLBACK_WINDOW)
        self._new = asyncio.Event()
        self._silent_until = 0.0

    def ask(self, sequence: Sequence, prompt: PromptFeatures) -> None:
        """A sequence was taken: predict soon; if too many are waiting, the fallback answers now."""
        if not sequence.ends_by_itself:
            # It ends at its limit; that says nothing of other answers.
            limit = float(sequence.max_tokens)
            self._predicted(sequence.sequence_id, limit, limit, 0)
            return
        features = self._running[sequence.sequence_id] = RequestFeatures(
            key=sequence.sequence_id,
            prompt_tokens=len(sequence.prompt),
            max_tokens=sequence.max_tokens,
            temperature=sequence.sampling.temperature,
            prompt=prompt_to_wire(prompt),
            generated_tokens=len(sequence.output),
        )
        self._queue(features)
        if self._address:
            self._growing[sequence.sequence_id] = _Growing(
                sequence, len(sequence.output), next_refresh(len(sequence.output))
            )
        if (marks := sequence.sampling.thought) is not None:
            self._thinking[sequence.sequence_id] = _Thought(frozenset(marks.ends), 0)
            for token in sequence.output:
                self.heard((sequence.sequence_id,), (token,))

    def signal(self, sequence_id: str, model: str, values: bytes) -> None:
        """What the model's state behind the prompt says is there. model: its digest.

        Nothing of that is taken which the predictor would refuse, with all that is asked beside it.
        """
        features = self._running.get(sequence_id)
        if features is None or features.behind_thought or not self._address or not values:
            return
        if (fault := signal_fault(values, model)) is not None:
            if not self.bad_signals:
                log.warning("a stage's length signal is no signal", reason=fault)
            self.bad_signals += 1
            return
        refined = self._copied(features)
        refined.signal, refined.model = values, model
        self.signals += 1
        self._ask_again(sequence_id, refined)

    def refresh(self) -> None:
        """Ask anew for those that have grown much since they were asked for."""
        # A copy: where the fallback answers at once, what follows from that may end one of them.
        for sequence_id, growing in list(self._growing.items()):
            if self._growing.get(sequence_id) is not growing:
                continue
            output = len(growing.sequence.output)
            if output < growing.refresh_at:
                continue
            growing.refresh_at = next_refresh(output)
            if sequence_id not in self._thinking:
                behind = self._behind.get(sequence_id)
                again = self._copied(self._running[sequence_id])
                again.generated_tokens = output - (0 if behind is None else behind.tokens)
                self.refreshed += 1
                self._ask_again(sequence_id, again)

    @staticmethod
    def _copied(features: RequestFeatures) -> RequestFeatures:
        copy = RequestFeatures()
        copy.CopyFrom(features)
        return copy

    def _ask_again(self, sequence_id: str, features: RequestFeatures) -> None:
        """What was asked before is not waited for any more."""
        self._running[sequence_id] = features
        self._queue(features)

    def heard(self, sequence_ids: Many[str], token_ids: Many[int]) -> None:
        """The next tokens of these. Where a thought ends, how long the answer will be is asked anew."""
        if not self._thinking:
            return
        for sequence_id, token in zip(sequence_ids, token_ids, strict=True):
            if (thought := self._thinking.get(sequence_id)) is not None:
                thought.tokens += 1
                if token in thought.ends:
                    self._thought_ended(sequence_id, thought.tokens)

    def ended(self, end: Finish) -> None:
        """An output ended; only if it stopped by itself is its length known."""
        features = self._running.pop(end.sequence_id, None)
        behind = self._behind.pop(end.sequence_id, None)
        self._thinking.pop(end.sequence_id, None)
        growing = self._growing.pop(end.sequence_id, None)
        if features is None or end.reason is FinishReason.ERROR:
            return
        if growing is not None:
            # Of the whole, not of what was left when it was last asked for.
            features.generated_tokens = growing.given if behind is None else 0
        cut = end.reason is not FinishReason.STOP
        self.observe(features if behind is None else behind.whole, end.output_tokens, censored=cut)
        if behind is not None:
            self._see(features, max(0, end.output_tokens - behind.tokens), cut)

    def left(self, sequence_id: str) -> None:
        """An output goes on elsewhere: nothing is learned from it here."""
        for kept in (self._running, self._behind, self._thinking, self._growing):
            kept.pop(sequence_id, None)

    def _thought_ended(self, sequence_id: str, tokens: int) -> None:
        del self._thinking[sequence_id]
        whole = self._running[sequence_id]
        rest = self._copied(whole)
        rest.prompt_tokens += tokens
        rest.max_tokens = max(1, whole.max_tokens - tokens)
        rest.generated_tokens = 0
        rest.behind_thought = True
        rest.signal, rest.model = b"", ""  # it was read before the thought, and is of the whole
        rest.prompt.template_hash ^= BEHIND_A_THOUGHT
        self._behind[sequence_id] = _Behind(tokens, whole)
        self._ask_again(sequence_id, rest)

    def _queue(self, features: RequestFeatures) -> None:
        try:
            self._asked.put_nowait(features)
        except asyncio.QueueFull:
            self._fall_back([features])

    def observe(self, features: RequestFeatures, output_tokens: int, censored: bool) -> None:
        """Learn of an output's length, if its owner lets it be learned from. censored: it was cut."""
        if not (censored or features.prompt.unlearned):
            self._recent.append(output_tokens)
        self._see(features, output_tokens, censored)

    def _see(self, features: RequestFeatures, output_tokens: int, censored: bool) -> None:
        if self._address and not features.prompt.unlearned:
            self.observations_lost += len(self._seen) == MAX_QUEUED
            self._seen.append((features, output_tokens, censored))
            self._new.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        if self._address is None:
            while True:
                self._fall_back([await self._asked.get()])
        async with open_channel(self._address) as channel, asyncio.TaskGroup() as group:
            stub = predictor_pb2_grpc.PredictorServiceStub(channel)
            group.create_task(self._predict_loop(stub), name="predict")
            group.create_task(self._observe_loop(stub), name="observe")
            group.create_task(self._refresh_loop(), name="refresh")

    async def _predict_loop(self, stub: predictor_pb2_grpc.PredictorServiceAsyncStub) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._asked.get()]
            while len(batch) < BATCH and not self._asked.empty():
                batch.append(self._asked.get_nowait())
            if loop.time() < self._silent_until:
                self._fall_back(batch)
                continue
            try:
                reply = await stub.Predict(
                    predictor_pb2.PredictRequest(requests=batch),
                    timeout=PREDICT_TIMEOUT_S,
                )
                self._take(batch, reply)
            except (grpc.aio.AioRpcError, ValueError) as error:
                self._silent_until = loop.time() + SILENCE_S
                log.warning("predictor failed, using the fallback", reason=_reason(error))
                self._fall_back(batch)

    async def _refresh_loop(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            if asyncio.get_running_loop().time() >= self._silent_until:
                self.refresh()

    def _take(self, batch: Many[RequestFeatures], reply: predictor_pb2.PredictResponse) -> None:
        """Pass predictions on; ValueError, before any is, if they make no sense."""
        told = reply.predictions
        if len(told) != len(batch) or any(one.key != of.key for one, of in zip(told, batch, strict=True)):
            raise ValueError("the predictor's answer is not about what it was asked")
        quantiles = [_p50_p90(one) for one in reply.predictions]
        for features, (p50, p90) in zip(batch, quantiles, strict=True):
            self._tell(features, p50, p90)

    def _tell(self, features: RequestFeatures, p50: float, p90: float) -> None:
        """Unless something else has been asked of the sequence meanwhile."""
        if self._running.get(features.key) is features:
            behind, limit = self._behind.get(features.key), features.max_tokens
            spent = 0 if behind is None else behind.tokens
            at = spent + features.generated_tokens
            self._predicted(features.key, spent + min(p50, limit), spent + min(p90, limit), at)

    def _fall_back(self, batch: Many[RequestFeatures]) -> None:
        """Quantiles of the newest outputs here; none at all while there are too few."""
        if self._address:
            self.fallbacks += len(batch)
        if len(self._recent) < FALLBACK_LEAST:
            return
        p50, p90 = np.quantile(np.fromiter(self._recent, dtype=np.float64), (0.5, 0.9))
        for one in batch:
            # What is known of whole outputs says nothing of the rest; a prediction that is there is better.
            growing = self._growing.get(one.key)
            predicted = growing is not None and growing.sequence.predicted_p50 is not None
            if one.key not in self._behind and not predicted:
                self._tell(one, float(p50), float(p90))

    async def _observe_loop(self, stub: predictor_pb2_grpc.PredictorServiceAsyncStub) -> None:
        while True:
            await self._new.wait()
            # Ends come in bursts; one call for many.
            await asyncio.sleep(0.2)
            self._new.clear()
            while self._seen:
                batch = [self._seen.popleft() for _ in range(min(BATCH, len(self._seen)))]
                observations = [_nameless(*one) for one in batch]
                try:
                    await stub.Observe(
                        predictor_pb2.ObserveRequest(observations=observations), timeout=OBSERVE_TIMEOUT_S
                    )
                except grpc.aio.AioRpcError:
                    # They cost a little accuracy, nothing else.
                    self.observations_lost += len(batch)


def _nameless(features: RequestFeatures, output_tokens: int, censored: bool) -> predictor_pb2.Observation:
    """What the predictor may keep. A sequence's id tells its API key, and what its client calls it."""
    told = predictor_pb2.Observation(features=features, output_tokens=output_tokens, censored=censored)
    told.features.ClearField("key")
    return told


def _p50_p90(prediction: predictor_pb2.LengthPrediction) -> tuple[float, float]:
    levels, tokens = prediction.levels, prediction.tokens
    if not 0 < len(levels) == len(tokens) <= MOST_LEVELS:
        raise ValueError(f"the predictor's answer has {len(levels)} levels and {len(tokens)} lengths")
    if not (rising(levels, 1.0) and rising(tokens)):
        raise ValueError(f"the predictor's answer makes no sense: {[*levels]}, {[*tokens]}")
    p50, p90 = np.interp((0.5, 0.9), levels, tokens)
    return float(p50), float(p90)


def next_refresh(output: int) -> int:
    """Output tokens with which a sequence's prediction is asked for anew, of one that has so many."""
    return output + max(REFRESH_EVERY, output // 2)


def _reason(error: Exception) -> str:
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else str(error)
