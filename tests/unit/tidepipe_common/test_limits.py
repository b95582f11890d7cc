"""Byte limits: what is at every limit at once passes every hop, and what is beyond one is refused at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidepipe_common import limits
from tidepipe_common.codec.plan import StartsAhead, WirePlan, plan_from_wire
from tidepipe_common.codec.sampling import check_carried, sampling_to_wire
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.openai.batch import BatchLineError, parse_line
from tidepipe_common.openai.bodies import parse_chat
from tidepipe_common.types.plan import Phase, SequenceStart, StepPlan
from tidepipe_common.types.request import ChatTurn, GenerationRequest
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.structure import Structure

LARGEST_ID = 2**32 - 1


def everything_at_its_limit(texts: str = "x") -> SamplingParams:
    """Values that take the most room on the wire."""
    width = len(texts.encode())
    return SamplingParams(
        temperature=0.3,
        top_k=2**31 - 1,
        top_p=0.3,
        min_p=0.3,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        seed=2**64 - 1,
        logit_bias={LARGEST_ID - i: -99.9 for i in range(limits.MAX_LOGIT_BIAS)},
        max_tokens=2**31 - 1,
        min_tokens=2**31 - 1,
        stop_token_ids=(LARGEST_ID,) * limits.MAX_STOP_TOKEN_IDS,
        logprobs=limits.MAX_LOGPROBS,
        structure=Structure("json_schema", texts * (limits.MAX_STRUCTURE_BYTES // width)),
    )


@pytest.mark.parametrize("texts", ["x", "\u00e9", "\U0001f30a"])
def test_one_sequence_at_all_limits_is_far_below_a_message(texts: str) -> None:
    """Whatever the fields hold, n of them included."""
    sampling = everything_at_its_limit(texts)
    # A structure and min_tokens are refused together; both are carried.
    GenerationRequest("id", "x", replace(sampling, n=limits.MAX_ANSWERS, min_tokens=0)).check()
    message = sampling_to_wire(sampling)
    check_carried(message)
    assert limits.MAX_ANSWERS * message.ByteSize() <= limits.PIECE_BYTES


@settings(max_examples=30, deadline=None)
@given(
    heavy=st.lists(st.booleans(), max_size=40),
    history=st.lists(st.integers(0, LARGEST_ID), min_size=1, max_size=3),
    length=st.sampled_from([1, 1000, 700_000]),
)
def test_starts_of_any_size_arrive_whole_in_small_messages(
    heavy: list[bool], history: list[int], length: int
) -> None:
    """A step may begin with hundreds of sequences that carry all they may, and with long histories."""
    carried = everything_at_its_limit()
    starts = tuple(
        SequenceStart(
            key,
            carried if is_heavy else SamplingParams(temperature=0.0),
            prompt_tokens=3,
            history=tuple(history) * (length if key == 0 else 1),
            eos_token_ids=(7,),
        )
        for key, is_heavy in enumerate(heavy)
    )
    plan = StepPlan(5, Phase.PREFILL, (), starts, (1, 2))
    ahead = StartsAhead()
    sizes = []
    for request in WirePlan(plan).requests(9, first=True, last=True):
        sizes.append(request.ByteSize())
        ahead.add(request.starts)
    assert request.HasField("plan")
    assert max(sizes) <= limits.PIECE_BYTES + limits.MAX_SAMPLING_BYTES
    arrived = plan_from_wire(request.plan, ahead.take())
    assert [start.key for start in arrived.starts] == list(range(len(heavy)))
    for before, after in zip(starts, arrived.starts, strict=True):
        assert after.history == before.history
        assert after.sampling.structure == before.sampling.structure
        assert after.eos_token_ids == (7,)


GREEDY = SamplingParams(temperature=0.0)
TOO_MUCH: list[tuple[dict[str, Any], str]] = [
    ({"sampling": replace(GREEDY, stop_token_ids=(1,) * (limits.MAX_STOP_TOKEN_IDS + 1))}, "stop_token_ids"),
    ({"sampling": replace(GREEDY, logit_bias=dict.fromkeys(range(1025), 1.0))}, "logit_bias"),
    ({"sampling": replace(GREEDY, structure=Structure("regex", "\u00e9" * 40_000))}, "response_format"),
    ({"prompt": "\u00e9" * (limits.MAX_PROMPT_BYTES // 2 + 1)}, "prompt"),
    ({"prompt": (7,) * (limits.MAX_PROMPT_TOKENS + 1)}, "prompt"),
    ({"prompt": (ChatTurn("user", ""),) * (limits.MAX_TURNS + 1)}, "messages"),
    ({"prompt": (ChatTurn("r" * 65, "hi"),)}, "messages"),
    ({"prompt": (ChatTurn("user", "hi", name="n" * 257),)}, "messages"),
    ({"prompt": (ChatTurn("tool", "hi", tool_call_id="n" * 257),)}, "messages"),
    ({"prompt": (ChatTurn("assistant", "", tool_calls="c" * limits.MAX_TOOLS_BYTES),) * 2}, "messages"),
    ({"prompt": (ChatTurn("user", "hi"),), "tools": ("{}",) * 129}, "tools"),
    ({"prompt": (ChatTurn("user", "hi"),), "tools": ("t" * limits.MAX_TOOLS_BYTES,) * 2}, "tools"),
    ({"model": "m" * 1025}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), TOO_MUCH, ids=[str(i) for i in range(len(TOO_MUCH))])
def test_beyond_a_limit_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    """Where all doors pass."""
    with pytest.raises(InvalidRequestError, match="may have") as refusal:
        GenerationRequest(**{"request_id": "id", "prompt": "x", **fields}).check()
    assert refusal.value.param == param


def test_a_stored_line_that_is_too_large_fails_by_itself() -> None:
    """As an older router may have stored it: it is answered with an error, and never runs."""
    ids = ",".join(["7"] * 1_000_000)
    body = f'{{"model": "m", "prompt": "x", "n": 3, "stop_token_ids": [{ids}]}}'
    line = f'{{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {body}}}'
    parsed = parse_line(line.encode(), 1, "id")
    assert isinstance(parsed, BatchLineError)
    assert (parsed.custom_id, parsed.param) == ("a", "stop_token_ids")
    assert "may have 1024 entries, got 1000000" in parsed.message


LONG = "a " * 2_000_000
MANY_VALUES = [1.5] * 200_000


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": LONG, "content": "x"}]},
        {"messages": [{"role": MANY_VALUES, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": MANY_VALUES}]}]},
        {LONG: 1},
        {"logit_bias": {LONG: 1}},
        {"response_format": {"type": MANY_VALUES}},
        {"guided_choice": ["a"] * 200_000},
    ],
    ids=range(7),
)
def test_a_refusal_quotes_no_more_than_it_shows(fields: dict[str, Any]) -> None:
    """What is wrong with megabytes is said without writing them down again."""
    with pytest.raises(InvalidRequestError) as refusal:
        parse_chat({"messages": [{"role": "user", "content": "x"}], **fields}, "id")
    assert len(str(refusal.value)) <= 500
    assert len(refusal.value.param or "") <= 100
