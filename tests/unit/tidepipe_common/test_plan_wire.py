"""Plans over the wire: columns and listed rows arrive as the same rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepipe.v1 import stage_pb2
from tidepipe_common.codec import plan as plan_codec
from tidepipe_common.codec.plan import WirePlan, plan_from_wire
from tidepipe_common.types.plan import DecodeRows, Phase, PlanRow, StepPlan

ids = st.integers(0, 2**31)
blocks = st.lists(ids, max_size=3).map(tuple)


@given(
    decode=st.lists(st.tuples(ids, ids, ids, blocks), max_size=6),
    chunks=st.lists(
        st.tuples(ids, ids, st.lists(ids, min_size=1, max_size=5), blocks, st.booleans()), max_size=4
    ),
)
def test_rows_survive(
    decode: list[tuple[int, int, int, tuple[int, ...]]],
    chunks: list[tuple[int, int, list[int], tuple[int, ...], bool]],
) -> None:
    """Decode's rows first, each with its own token and blocks."""
    keys, positions, tokens, _ = zip(*decode, strict=True) if decode else ((), (), (), ())
    granted = tuple((index, row[3]) for index, row in enumerate(decode) if row[3])
    listed = tuple(PlanRow(k, first, len(ids), tuple(ids), new, s) for k, first, ids, new, s in chunks)
    plan = StepPlan(3, Phase.MIXED, listed, (), (7,), DecodeRows(keys, positions, tokens, granted))
    told = WirePlan(plan)
    (middle,) = told.requests(1, first=False, last=False)
    assert not middle.plan.token_ids and list(middle.plan.sequence_keys) == [row.key for row in plan.rows]
    (whole,) = told.requests(1, first=True, last=True)
    arrived = plan_from_wire(whole.plan)
    expected = [PlanRow(k, position, 1, (token,), new, True) for k, position, token, new in decode]
    assert arrived.rows == plan.rows == (*expected, *listed)
    assert (arrived.tokens, arrived.samples, arrived.releases) == (plan.tokens, plan.samples, (7,))


def test_starts_without_a_plan_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_codec, "MAX_AHEAD_BYTES", 100)
    ahead = plan_codec.StartsAhead()
    ahead.add([stage_pb2.SequenceStart(sequence_key=1, history_token_ids=[1] * 50)])
    assert len(ahead.take()) == 1
    ahead.add([stage_pb2.SequenceStart(sequence_key=1, history_token_ids=[1] * 50)])
    with pytest.raises(ValueError, match="ahead of one plan"):
        ahead.add([stage_pb2.SequenceStart(sequence_key=1, history_token_ids=[1] * 50)])
