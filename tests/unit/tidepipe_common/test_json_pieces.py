"""JSON in pieces is the same JSON."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidepipe_common.json_pieces import AT_ONCE, json_pieces

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
)


@given(VALUES)
def test_pieces_are_what_the_writer_writes(value: Any) -> None:
    assert "".join(json_pieces(value, json.dumps, ", ", ": ")) == json.dumps(value)


def test_long_lists_are_cut() -> None:
    body = {"choices": [{"logprobs": {"content": [{"top_logprobs": [1] * 20}] * 10 * AT_ONCE}}] * 2}
    pieces = list(json_pieces(body, json.dumps, ", ", ": "))
    assert "".join(pieces) == json.dumps(body)
    assert max(map(len, pieces)) < len(json.dumps(body)) / 15
