"""Controllers and their predictor: slow, dead or mad, it costs accuracy and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import grpc
import pytest

from bench.service_process import started
from controller.api.sequences import new_sequence_from_wire
from controller.runtime import predictor_client
from controller.runtime.predictor_client import FALLBACK_LEAST, PREDICT_TIMEOUT_S, REFRESH_EVERY, LengthOracle
from controller.scheduler.actions import Finish
from controller.scheduler.sequence import Sequence
from tidepipe.v1 import controller_pb2
from tidepipe.v1 import predictor_pb2 as pb
from tidepipe.v1 import predictor_pb2_grpc as pb_grpc
from tidepipe_common.lengths.request import NO_PROMPT
from tidepipe_common.types.sampling import FinishReason, SamplingParams
from tidepipe_common.types.thought import ThoughtMarks

Answer = Callable[[pb.PredictRequest], pb.PredictResponse]


class FakePredictor(pb_grpc.PredictorServiceServicer):
    """Answers as it is told, after a while."""

    def __init__(self, answer: Answer, delay_s: float = 0.0) -> None:
        self.asked = 0
        self.requests: list[pb.RequestFeatures] = []
        self.observed: list[pb.Observation] = []
        self._answer = answer
        self._delay_s = delay_s

    async def Predict(self, request: pb.PredictRequest, context: object) -> pb.PredictResponse:  # noqa: N802
        self.asked += 1
        self.requests.extend(request.requests)
        await asyncio.sleep(self._delay_s)
        return self._answer(request)

    async def Observe(self, request: pb.ObserveRequest, context: object) -> pb.ObserveResponse:  # noqa: N802
        self.observed.extend(request.observations)
        return pb.ObserveResponse()


def prediction(key: str, tokens: list[float]) -> pb.LengthPrediction:
    return pb.LengthPrediction(key=key, levels=[0.1, 0.5, 0.9], tokens=tokens)


def sound(request: pb.PredictRequest) -> pb.PredictResponse:
    return pb.PredictResponse(predictions=[prediction(one.key, [5, 50, 90]) for one in request.requests])


def not_a_number(request: pb.PredictRequest) -> pb.PredictResponse:
    return pb.PredictResponse(
        predictions=[prediction(one.key, [5, float("nan"), 90]) for one in request.requests]
    )


def falling(request: pb.PredictRequest) -> pb.PredictResponse:
    return pb.PredictResponse(predictions=[prediction(one.key, [9, 5, 1]) for one in request.requests])


def about_others(request: pb.PredictRequest) -> pb.PredictResponse:
    return pb.PredictResponse(predictions=[prediction("somebody else", [1, 2, 3])])


def too_much(request: pb.PredictRequest) -> pb.PredictResponse:
    """Sound, but megabytes of it."""
    levels = [place / 50_001 for place in range(1, 50_001)]
    return pb.PredictResponse(
        predictions=[
            pb.LengthPrediction(key=one.key, levels=levels, tokens=levels) for one in request.requests[:1]
        ]
        + [prediction(one.key, [5, 50, 90]) for one in request.requests[1:]]
    )


@contextlib.asynccontextmanager
async def serving(fake: FakePredictor) -> AsyncIterator[str]:
    server = grpc.aio.server()
    pb_grpc.add_PredictorServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def running(address: str) -> AsyncIterator[tuple[LengthOracle, dict[str, tuple[float, float]]]]:
    predicted: dict[str, tuple[float, float]] = {}
    oracle = LengthOracle(address, lambda key, p50, p90, at: predicted.update({key: (p50, p90)}))
    task = asyncio.create_task(oracle.run())
    try:
        yield oracle, predicted
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def sequence(key: str) -> Sequence:
    return Sequence(key, (1,) * 10, SamplingParams(), max_tokens=80, arrived=0.0, deadline=None)


async def ask(oracle: LengthOracle, predicted: dict[str, tuple[float, float]], count: int = 20) -> None:
    """Some answers are known here; then predictions are asked for and must come."""
    for index in range(FALLBACK_LEAST):
        features = pb.RequestFeatures(key=f"old-{index}", prompt_tokens=10, max_tokens=80, temperature=1.0)
        oracle.observe(features, 20, censored=False)
    for index in range(count):
        oracle.ask(sequence(str(index)), NO_PROMPT)
    async with asyncio.timeout(30):
        while len(predicted) < count:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0.01)


async def test_who_asks_reaches_the_predictor() -> None:
    """The hash that the router made comes with what is asked and with what is observed, which has no other
    name; of an answer that is not to be learned from nothing is observed, neither there nor here."""
    spec = controller_pb2.SequenceSpec(sequence_id="a", prompt_token_ids=[1, 2, 3])
    spec.prompt_features.client_hash, spec.prompt_features.owner_hash = 77, 88
    arrival = new_sequence_from_wire(spec, 0.0)
    fake = FakePredictor(sound)
    async with serving(fake) as address, running(address) as (oracle, _):
        oracle.ask(sequence("a"), arrival.features)
        oracle.ask(sequence("b"), replace(arrival.features, unlearned=True))
        for key, length in (("b", 11), ("a", 12)):
            oracle.ended(Finish(key, FinishReason.STOP, length))
        async with asyncio.timeout(30):
            while not (len(fake.requests) == 2 and fake.observed):  # noqa: ASYNC110 - others' state, without events
                await asyncio.sleep(0.01)
    assert fake.requests[0].prompt.client_hash == 77
    assert [(one.features.key, one.output_tokens) for one in fake.observed] == [("", 12)]
    learned = fake.observed[0].features.prompt
    assert (learned.client_hash, learned.owner_hash) == (77, 88)


async def test_signal_and_growth_refine_what_is_predicted() -> None:
    """Asked anew with the signal and as it grows; learned as the whole, with the signal, once."""
    fake = FakePredictor(sound)
    one, values = sequence("a"), struct.pack("<3e", 1.0, 2.0, 3.0)
    async with serving(fake) as address, running(address) as (oracle, predicted):
        oracle.ask(one, NO_PROMPT)
        oracle.signal("a", "model-1", values)
        oracle.signal("nobody", "model-1", values)
        # Of a stage that is broken: the predictor would refuse all that is asked beside them.
        for model, bad in (
            ("model-1", bytes(130)),
            ("model-1", b"\0\x7e"),
            ("m" * 201, values),
            ("", values),
        ):
            oracle.signal("a", model, bad)
        oracle.signal("a", "model-1", b"")
        one.output += [5] * REFRESH_EVERY
        oracle.refresh()
        oracle.refresh()
        async with asyncio.timeout(30):
            while len(fake.requests) < 3 or not predicted:  # noqa: ASYNC110 - others' state, without events
                await asyncio.sleep(0.01)
        oracle.ended(Finish("a", FinishReason.STOP, 70))
        async with asyncio.timeout(30):
            while not fake.observed:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    asked = [(entry.signal, entry.model, entry.generated_tokens) for entry in fake.requests]
    assert asked == [(b"", "", 0), (values, "model-1", 0), (values, "model-1", REFRESH_EVERY)]
    learned = fake.observed[0].features
    assert (learned.signal, learned.generated_tokens) == (values, 0)
    assert (oracle.signals, oracle.bad_signals) == (1, 4)


async def test_the_answer_behind_a_thought_is_asked_for_and_learned_by_itself() -> None:
    fake = FakePredictor(sound)
    marks = ThoughtMarks((7,), (8,), (8,), open=True)
    thinking = Sequence("a", (1,) * 10, SamplingParams(thought=marks), 80, arrived=0.0, deadline=None)
    async with serving(fake) as address, running(address) as (oracle, predicted):
        oracle.ask(thinking, NO_PROMPT)
        oracle.ask(sequence("b"), NO_PROMPT)
        for token in (3, 8, 8, 3):  # at (8) it ends
            oracle.heard(("a", "b"), (token, 8))
        async with asyncio.timeout(30):
            while len(fake.requests) < 3 or len(predicted) < 2:  # noqa: ASYNC110 - others' state
                await asyncio.sleep(0.01)
            while predicted["a"] != (52.0, 80.0):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        oracle.ended(Finish("a", FinishReason.STOP, 12))
        async with asyncio.timeout(30):
            while len(fake.observed) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert predicted["b"] == (50.0, 80.0)
    whole, rest = fake.observed
    assert (whole.output_tokens, rest.output_tokens) == (12, 10)
    assert (rest.features.prompt_tokens, rest.features.max_tokens) == (12, 78)
    assert rest.features.behind_thought and not whole.features.behind_thought
    assert whole.features.prompt.template_hash != rest.features.prompt.template_hash


async def test_one_call_for_many_and_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_client, "PREDICT_TIMEOUT_S", 20.0)  # however busy the machine is
    fake = FakePredictor(sound)
    async with serving(fake) as address, running(address) as (oracle, predicted):
        await ask(oracle, predicted)
        assert set(predicted.values()) == {(50.0, 80.0)}
        assert fake.asked < 20 and oracle.fallbacks == 0
        async with asyncio.timeout(30):
            while len(fake.observed) < FALLBACK_LEAST:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("answer", [not_a_number, falling, about_others, too_much])
async def test_nonsense_is_not_believed(answer: Answer) -> None:
    fake = FakePredictor(answer)
    async with serving(fake) as address, running(address) as (oracle, predicted):
        await ask(oracle, predicted)
        assert set(predicted.values()) == {(20.0, 20.0)}
        assert oracle.fallbacks == 20


async def test_a_slow_predictor_is_waited_for_once_only() -> None:
    fake = FakePredictor(sound, delay_s=20 * PREDICT_TIMEOUT_S)
    async with serving(fake) as address, running(address) as (oracle, predicted):
        await ask(oracle, predicted)
        assert set(predicted.values()) == {(20.0, 20.0)}
        oracle.ask(sequence("later"), NO_PROMPT)
        async with asyncio.timeout(30):
            while "later" not in predicted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        # It was left alone.
        assert fake.asked <= 1 and oracle.fallbacks == 21


async def test_nobody_there() -> None:
    async with serving(FakePredictor(sound)) as address:
        pass
    async with running(address) as (oracle, predicted):
        await ask(oracle, predicted)
        assert set(predicted.values()) == {(20.0, 20.0)}
        async with asyncio.timeout(30):
            while oracle.observations_lost < FALLBACK_LEAST:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_killed_under_load_it_costs_accuracy_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of the process while many ask, then another one at its address: each sequence gets an answer,
    from the fallback while nobody is there, and the new one is asked by itself."""
    monkeypatch.setattr(predictor_client, "SILENCE_S", 0.2)
    prior, fallback = (80.0, 80.0), (20.0, 20.0)
    asked = 0

    async def load(oracle: LengthOracle, until: Callable[[], bool]) -> None:
        nonlocal asked
        async with asyncio.timeout(60):
            while not until():
                oracle.ask(sequence(str(asked)), NO_PROMPT)
                asked += 1
                await asyncio.sleep(0.005)

    with started("predictor", "--listen", "127.0.0.1:0") as (process, announced):
        address = announced["ready"]
        async with running(address) as (oracle, predicted):
            for index in range(FALLBACK_LEAST):
                features = pb.RequestFeatures(key=f"old-{index}", prompt_tokens=10, max_tokens=80)
                oracle.observe(features, 20, censored=False)
            await load(oracle, lambda: prior in predicted.values())
            process.kill()
            before = oracle.fallbacks
            await load(oracle, lambda: oracle.fallbacks >= before + 100)
            with started("predictor", "--listen", address):
                later = asked
                await load(oracle, lambda: predicted.get(str(max(later, asked - 20))) == prior)
            async with asyncio.timeout(30):
                while len(predicted) < asked:  # noqa: ASYNC110 - others' state, without events
                    await asyncio.sleep(0.01)
    assert set(predicted.values()) == {prior, fallback}
