"""Text from outside: what is no text is refused by its name, and what is shown can always be shown."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.text.json_text import MAX_JSON_DEPTH, parse_json
from tidepipe_common.text.text import (
    check_text,
    is_text,
    on_one_line,
    on_terminal,
    one_json_line,
    repaired,
    repaired_json,
)

ANY = st.text(st.characters(codec=None, exclude_categories=()))
"""Surrogates and control characters as well."""
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3),
    max_leaves=6,
)


def all_text(value: Any) -> bool:
    """True if every string in a JSON value has a UTF-8 form."""
    return is_text(json.dumps(value, ensure_ascii=False))


@given(VALUES)
def test_json_is_taken_exactly_if_it_is_text(value: Any) -> None:
    raw = json.dumps(value).encode()
    good = json.loads(raw)  # halves that fit have become one character
    if all_text(good):
        assert parse_json(raw, "it") == good
        assert parse_json(b"\xef\xbb\xbf" + raw, "it") == good
    else:
        with pytest.raises(InvalidRequestError, match="unpaired surrogates") as caught:
            parse_json(raw, "it")
        str(caught.value).encode()
    mended = repaired_json(value)
    assert all_text(mended)
    assert not all_text(value) or mended == value


@pytest.mark.parametrize(
    ("raw", "message", "param"),
    [
        (b'{"a": {"b": ["x", "\\udfff"]}}', "a.b.1 is not valid Unicode", "a"),
        (b'"\\ud800"', "the body is not valid Unicode", None),
        (b"{", "the body is not JSON: ", None),
        (b"\xff", "the body is not UTF-8: byte 0 is 0xff", None),
        (b'"\xed\xa0\x80"', "the body is not UTF-8: byte 1", None),
        (b"[NaN]", "the body is not JSON: NaN is not a JSON number", None),
        (b"[-Infinity]", "the body is not JSON: -Infinity", None),
        (b"[-1e400]", "the number -1e400 is too large", None),
        (b"9" * 5000, "the body is not usable JSON", None),
        (b'{"a": 1, "b": 2, "a": 1}', "an object has the name 'a' twice", None),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deeply", None),
        (b'{"a":' * (MAX_JSON_DEPTH + 1) + b"1" + b"}" * (MAX_JSON_DEPTH + 1), "nested too deeply", None),
        (b"\xff\xfe{\x00}\x00", "the body is not UTF-8", None),
    ],
)
def test_what_is_no_json_is_said(raw: bytes, message: str, param: str | None) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_json(raw, "the body")
    assert message in str(caught.value) and caught.value.param == param


def test_json_at_the_limits_is_taken() -> None:
    deep = b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH
    assert str(parse_json(b"[" + b"[]," * 500 + b"[]]", "it")).count("[]") == 501
    assert parse_json(deep, "it") is not None
    assert parse_json(b'[1e308, -0.0, "\\ud83d\\ude00", "\\u0000"]', "it") == [1e308, 0.0, "😀", "\0"]
    assert parse_json(str(10**400), "it") == 10**400


@given(ANY)
def test_what_is_shown_can_be_shown(text: str) -> None:
    assert is_text(repaired(text)) and (repaired(text) == text or not is_text(text))
    line, prose = on_one_line(text), on_terminal(text)
    assert line.isprintable() and len(line.splitlines()) <= 1
    assert is_text(prose) and not any((ord(one) < 32 and one not in "\n\t") or one == "\x7f" for one in prose)
    escaped = one_json_line(json.dumps(text, ensure_ascii=False))
    assert json.loads(escaped) == text and len(escaped.splitlines()) == 1


def test_halves_that_fit_are_joined() -> None:
    assert repaired("a\ud83d\ude00b\ud83d") == "a😀b\N{REPLACEMENT CHARACTER}"
    assert on_one_line("\x1b[31m[red]\nx") == "\\x1b[31m[red]\\nx"
    assert on_terminal("a\n\tb\x1b]0;c\x07\x9b") == "a\n\tb\\x1b]0;c\\x07\\x9b"


@pytest.mark.parametrize("wrong", ["\udcff", "a\ud800b", 5, None, b"x"])
def test_a_field_that_is_no_text_is_named(wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^model ") as caught:
        check_text(wrong, "model")
    assert caught.value.param == "model"
    assert check_text("世", "model") == "世" and sys.getdefaultencoding() == "utf-8"
