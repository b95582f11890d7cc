"""JSON of more values than any request has is refused before it becomes objects; strings have anything."""

from __future__ import annotations

import json

import pytest

from tidepipe_common.text.json_text import MAX_JSON_PARTS, MAX_JSON_VALUES, NotJsonError, decode_json

MANY = 2_000_000


@pytest.mark.parametrize(
    "text",
    [
        "[" + "1," * MANY + "1]",
        "[" + '"",' * MANY + '""]',
        "[" + "[]," * MAX_JSON_PARTS + "[]]",
        '{"a":"\\\\",' + '"b":{' * MAX_JSON_PARTS + "}" * MAX_JSON_PARTS + "}",
        '{"a":"' + "x" * MANY + '","b":[' + "{}," * MAX_JSON_PARTS + "{}]}",
    ],
)
def test_too_many_values_are_refused_unread(text: str) -> None:
    with pytest.raises(NotJsonError, match="too much JSON"):
        decode_json(text.encode())


def test_strings_may_have_any_marks() -> None:
    value = {"a": "[{:," * MANY, "b": '\\"[{:,' * MANY, "c\\": ["\\", '"'], "d": [7] * MAX_JSON_PARTS}
    assert decode_json(json.dumps(value)) == value
    assert len(decode_json("[" + "1," * (MAX_JSON_VALUES - 1) + "1]")) == MAX_JSON_VALUES
