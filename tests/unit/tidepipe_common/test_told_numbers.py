"""No number that cannot be gets past the messages that stages, instances, routers and the predictor send."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from controller.runtime.predictor_client import _p50_p90
from controller.runtime.stage_client import StageClient, StageLostError
from tidepipe.v1 import controller_pb2, predictor_pb2, stage_pb2
from tidepipe_common.codec.controller import check_report, check_spec, check_values
from tidepipe_common.codec.kv_transfer import orders_from_wire
from tidepipe_common.codec.numbers import strange_number
from tidepipe_common.codec.plan import WirePlan
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.types.plan import Phase, StepPlan
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.thought import ThoughtMarks

BAD = (math.nan, math.inf, -math.inf, 1e300)
SIGNED = {"window_left_s", "mean_s", "low_s", "low_latest_s", "age_ms", "ttft_ms", "tpot_ms"}
COSTS = controller_pb2.StepCosts(stages=1, step_tokens=8, linear_tokens=[1, 8], linear_s=[0.1, 0.2])
GOOD = controller_pb2.InstanceReport(serving=True, costs=COSTS, window_left_s=-3.0)


def numbers_of(of: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a message has doubles, not looking into lists of messages."""
    for field in of.fields:
        if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
            yield (*path, field.name)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE and not field.is_repeated:
            yield from numbers_of(field.message_type, (*path, field.name))


def told(message: Message, path: tuple[str, ...], number: float) -> Message:
    """The same with that number there."""
    changed = type(message)()
    changed.CopyFrom(message)
    inner = changed
    for name in path[:-1]:
        inner = getattr(inner, name)
    if isinstance(getattr(inner, path[-1]), float):
        setattr(inner, path[-1], number)
    else:
        getattr(inner, path[-1])[:] = [0.1, number]
    return changed


@pytest.mark.parametrize("message", [GOOD, stage_pb2.RunResponse(), stage_pb2.ConfigureResponse()])
def test_each_number_of_a_message_is_looked_at(message: Message) -> None:
    paths = list(numbers_of(message.DESCRIPTOR))
    assert paths
    signed = SIGNED if message is GOOD else ()
    for path in paths:
        for number in (*BAD, *([] if path[-1] in SIGNED else [-1.0])):
            assert path[-1] in strange_number(told(message, path, number), signed)
            if isinstance(message, controller_pb2.InstanceReport):
                with pytest.raises(InvalidRequestError, match="cannot be"):
                    check_report(told(message, path, number))  # type: ignore[arg-type]
    assert not strange_number(message, signed)


@pytest.mark.parametrize(
    "costs",
    [
        {"stages": 0},
        {"step_tokens": 0},
        {"linear_tokens": [0, 8]},
        {"linear_tokens": [8, 1]},
        {"linear_tokens": [1]},
    ],
)
def test_costs_that_would_be_divided_by(costs: dict[str, object]) -> None:
    check_report(GOOD)
    wrong = controller_pb2.InstanceReport()
    wrong.CopyFrom(GOOD)
    for name, value in costs.items():
        if isinstance(value, list):
            getattr(wrong.costs, name)[:] = value
        else:
            setattr(wrong.costs, name, value)
    with pytest.raises(InvalidRequestError, match="the instance reports"):
        check_report(wrong)


@pytest.mark.parametrize("name", ["ttft_ms", "tpot_ms", "age_ms"])
@pytest.mark.parametrize("number", BAD)
def test_targets_of_a_sequence(name: str, number: float) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        check_spec(controller_pb2.SequenceSpec(sequence_id="a", **{name: number}))


@pytest.mark.parametrize("levels", [(0.5, math.nan), (math.nan, 0.9), (0.9, 0.5), (-0.1, 0.9), (0.5, 9.0)])
def test_levels_of_a_prediction(levels: tuple[float, float]) -> None:
    assert _p50_p90(predictor_pb2.LengthPrediction(levels=[0.5, 0.9], tokens=[3, 7])) == (3, 7)
    with pytest.raises(ValueError, match="makes no sense"):
        _p50_p90(predictor_pb2.LengthPrediction(levels=levels, tokens=[3, 7]))


@pytest.mark.parametrize("number", [*BAD, 2.0])
def test_tokens_of_a_prediction(number: float) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        _p50_p90(predictor_pb2.LengthPrediction(levels=[0.5, 0.9], tokens=[3, number]))


class Stream:
    """A stage's stream of news that has one thing to say."""

    def __init__(self, news: stage_pb2.RunResponse) -> None:
        self._news = news

    async def read(self) -> stage_pb2.RunResponse:
        return self._news

    def cancel(self) -> None:
        pass


def _behind(*before: stage_pb2.StageTimes) -> stage_pb2.StepReport:
    return stage_pb2.StepReport(step_id=1, compute_s=1e-9, before=before)


@pytest.mark.parametrize(
    ("news", "said"),
    [
        (stage_pb2.RunResponse(step=stage_pb2.StepReport(step_id=1, compute_s=math.nan)), "compute_s nan"),
        (stage_pb2.RunResponse(step=stage_pb2.StepReport(step_id=1, idle_s=-1.0)), "idle_s -1"),
        (stage_pb2.RunResponse(step=stage_pb2.StepReport(step_id=1, compute_s=1e4)), "took 1e\\+04 s"),
        (
            stage_pb2.RunResponse(step=_behind(stage_pb2.StageTimes(idle_s=math.nan))),
            "before it has idle_s nan",
        ),
        (stage_pb2.RunResponse(step=_behind(stage_pb2.StageTimes(compute_s=1e4))), "took 1e\\+04 s"),
        (stage_pb2.RunResponse(step=_behind(*[stage_pb2.StageTimes()] * 2)), "2 stages before it"),
        (stage_pb2.RunResponse(fetched=stage_pb2.KvFetched(fetch_id=1, seconds=math.inf)), "seconds inf"),
    ],
)
async def test_a_stages_news_end_its_epoch_before_they_count(news: stage_pb2.RunResponse, said: str) -> None:
    stage = StageClient("127.0.0.1:1", 1, 2)
    try:
        stage._stub.Run = lambda requests: Stream(news)
        stage.send(WirePlan(StepPlan(1, Phase.DECODE, ())))
        with pytest.raises(StageLostError, match=f"stage 1 at 127.0.0.1:1: .*{said}.*, which cannot be"):
            await stage.run(1, lambda index, report: pytest.fail("it was heard"))
        assert stage.account.decode_busy_s == 0.0 and stage.open_steps == (1,)
    finally:
        await stage.close()


@pytest.mark.parametrize(
    ("sequence", "named"),
    [
        ({"prompt": (1, 100)}, "prompt_token_ids"),
        ({"output": (100,)}, "output_token_ids"),
        ({"sampling": SamplingParams(temperature=math.nan)}, "temperature"),
        ({"sampling": SamplingParams(logprobs=2**32 - 1)}, "logprobs"),
        ({"sampling": SamplingParams(logit_bias={100: 1.0})}, "logit_bias"),
        ({"sampling": SamplingParams(thought=ThoughtMarks((1,), (2,), (100,)))}, "thought"),
    ],
)
def test_no_sequence_gets_to_a_stage_that_no_stage_can_compute(sequence: dict[str, Any], named: str) -> None:
    """It would end the epoch of all others there."""
    good = {"prompt": (1, 99), "output": (), "sampling": SamplingParams()}
    check_values(**good, vocab_size=100)
    with pytest.raises(InvalidRequestError) as refused:
        check_values(**{**good, **sequence}, vocab_size=100)
    assert refused.value.param == named


def test_orders_of_blocks_that_cannot_be_are_refused() -> None:
    good = {"fetch_id": 1, "ticket": b"t" * 16, "blocks": [1], "timeout_s": 1.0}
    assert orders_from_wire(stage_pb2.RunRequest(fetches=[stage_pb2.KvFetch(**good)])) is not None
    for wrong in (
        {"fetches": [stage_pb2.KvFetch(**{**good, "timeout_s": math.nan})]},
        {"fetches": [stage_pb2.KvFetch(**{**good, "ticket": b"t" * 17})]},
        {"grants": [stage_pb2.KvGrant(ticket=b"t" * 5000, blocks=[1])]},
        {"revoked_tickets": [b"t" * 5000]},
    ):
        with pytest.raises(ValueError, match=r"cannot be|16 bytes"):
            orders_from_wire(stage_pb2.RunRequest(**wrong))
