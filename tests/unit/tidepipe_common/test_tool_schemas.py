"""A few of the generated functions of `bench.tool_schemas`: calls of tokens that are drawn are valid."""

from __future__ import annotations

from bench.tool_schemas import Drawing, functions
from tests.fakes.byte_tokenizer import END, byte_tokenizer


def test_arguments_of_forced_calls_are_valid() -> None:
    made = byte_tokenizer()
    drawing = Drawing(made.to_str(), made.get_vocab_size(), made.token_to_id(END))
    chosen = [one for number, one in enumerate(functions(100)) if number % 20 != 1][::6]
    assert [drawing.call(function, number) for number, function in enumerate(chosen)] == [""] * len(chosen)
